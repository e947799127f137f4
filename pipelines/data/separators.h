/* What the C that takes text apart has in common: Arrow's columns, and where separators stand. */

#ifndef SEPARATORS_H
#define SEPARATORS_H

#include <stdint.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { BLOCK = 64 };

static inline int is_null(const uint8_t *validity, int64_t i) { return validity && !(validity[i >> 3] >> (i & 7) & 1); }

static inline int64_t offset(const void *offsets, int wide, int64_t i) {
  return wide ? ((const int64_t *)offsets)[i] : ((const int32_t *)offsets)[i];
}

/* Bit i says whether byte i of 64 is the separator. */
static inline uint64_t separators(const char *text, char separator) {
#ifdef __AVX2__
  const __m256i wanted = _mm256_set1_epi8(separator);
  const __m256i low = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)text), wanted);
  const __m256i high = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(text + 32)), wanted);
  return (uint32_t)_mm256_movemask_epi8(low) | (uint64_t)(uint32_t)_mm256_movemask_epi8(high) << 32;
#else
  uint64_t bits = 0;
  for (int i = 0; i < BLOCK; i++)
    bits |= (uint64_t)(text[i] == separator) << i;
  return bits;
#endif
}

/* The last bytes of a text, where 64 are no longer there. */
static inline uint64_t separators_of_rest(const char *text, int64_t length, char separator) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < length; i++)
    bits |= (uint64_t)(text[i] == separator) << i;
  return bits;
}

#endif
