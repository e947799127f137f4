/* Rows by bytes: open addressing with linear probing over entries of half a cache line, which hold short texts themselves, so that a
   lookup is one miss. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { INLINE_BYTES = 20, LINE_BYTES = 64 };

typedef struct {
  uint32_t tag, length;
  int32_t row; /* -1: free */
  char text[INLINE_BYTES]; /* of longer texts their address, which must stay valid */
} Entry;

typedef struct {
  Entry *entries;
  uint64_t last; /* number of entries - 1; a power of two less one */
} Table;

static inline uint64_t load64(const char *at) {
  uint64_t word;
  memcpy(&word, at, 8);
  return word;
}

static inline uint64_t load32(const char *at) {
  uint32_t word;
  memcpy(&word, at, 4);
  return word;
}

static inline uint64_t mixed(uint64_t a, uint64_t b) {
  const __uint128_t product = (__uint128_t)(a ^ 0x9E3779B97F4A7C15ULL) * (b ^ 0xE7037ED1A0B428DBULL);
  return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t hash_of(const char *text, int64_t length) {
  uint64_t hash = (uint64_t)length;
  for (; length > 16; text += 8, length -= 8)
    hash = mixed(hash, load64(text));
  if (length >= 8)
    return mixed(mixed(hash, load64(text)), load64(text + length - 8));
  if (length >= 4)
    return mixed(hash, load32(text) << 32 | load32(text + length - 4));
  uint64_t word = 0;
  for (int64_t i = 0; i < length; i++)
    word = word << 8 | (uint8_t)text[i];
  return mixed(hash, word);
}

static inline int is_entry(const Entry *entry, uint64_t hash, const char *text, int64_t length) {
  if (entry->tag != (uint32_t)(hash >> 32) || entry->length != (uint64_t)length)
    return 0;
  const char *known = entry->text;
  if (length > INLINE_BYTES)
    memcpy(&known, entry->text, sizeof known);
  return !memcmp(known, text, (size_t)length);
}

static inline int64_t find(const Table *table, uint64_t hash, const char *text, int64_t length, int64_t unknown) {
  for (uint64_t at = hash & table->last;; at = (at + 1) & table->last) {
    const Entry *entry = table->entries + at;
    if (entry->row < 0)
      return unknown;
    if (is_entry(entry, hash, text, length))
      return entry->row;
  }
}

static void add(Table *table, const char *text, int64_t length, int64_t row) {
  const uint64_t hash = hash_of(text, length);
  uint64_t at = hash & table->last;
  while (table->entries[at].row >= 0)
    at = (at + 1) & table->last;
  Entry *entry = table->entries + at;
  entry->tag = (uint32_t)(hash >> 32), entry->length = (uint32_t)length, entry->row = (int32_t)row;
  if (length > INLINE_BYTES)
    memcpy(entry->text, &text, sizeof text);
  else
    memcpy(entry->text, text, (size_t)length);
}

/* For up to `most` values; 0 without memory. */
Table *table_new(int64_t most) {
  uint64_t size = 8;
  while (2 * size < 3 * (uint64_t)most + 2)
    size *= 2;
  Table *table = malloc(sizeof(Table));
  if (!table)
    return 0;
  table->last = size - 1;
  table->entries = aligned_alloc(LINE_BYTES, size * sizeof(Entry));
  if (!table->entries) {
    free(table);
    return 0;
  }
  memset(table->entries, 0xFF, size * sizeof(Entry));
  return table;
}

void table_free(Table *table) {
  free(table->entries);
  free(table);
}

/* Arrow's text [num], 32-bit or `wide` offsets: value i gets row first_row + i where `valid` [num] is 1. `data` must outlive the table. */
void table_add_texts(
    Table *table, const char *data, const void *offsets, int wide, const uint8_t *valid, int64_t num, int64_t first_row
) {
  for (int64_t i = 0; i < num; i++) {
    const int64_t start = wide ? ((const int64_t *)offsets)[i] : ((const int32_t *)offsets)[i];
    const int64_t end = wide ? ((const int64_t *)offsets)[i + 1] : ((const int32_t *)offsets)[i + 1];
    if (valid[i])
      add(table, data + start, end - start, first_row + i);
  }
}

/* Likewise of 64-bit values: integers, or floats by their bits. */
void table_add_words(Table *table, const int64_t *values, const uint8_t *valid, int64_t num, int64_t first_row) {
  for (int64_t i = 0; i < num; i++)
    if (valid[i])
      add(table, (const char *)(values + i), 8, first_row + i);
}
