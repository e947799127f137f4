/* Whole numbers in as few bits as the largest of them takes (see packed.py). Runs without the GIL.

   Blocks of ROWS x LANES values; every lane fills 32-bit words of its own, so that all lanes do the same at once (the vertical layout of
   Lemire and Boytsov, "Decoding billions of integers per second through vectorization", 2015, section 4). */

#include <stdint.h>
#include <string.h>

enum { LANES = 16, ROWS = 32, BLOCK_VALUES = ROWS * LANES };

/* Bits of the largest of N values; 32 where one is negative. */
int64_t bits_of(const uint32_t *values, int64_t num_values) {
  uint32_t all = 1;
  for (int64_t i = 0; i < num_values; i++)
    all |= values[i];
  return 32 - __builtin_clz(all);
}

static void pack_block(const uint32_t *restrict values, int bits, uint32_t *restrict out) {
  uint32_t words[LANES] = {0};
  int filled = 0;
  for (int row = 0; row < ROWS; row++, values += LANES) {
    for (int i = 0; i < LANES; i++)
      words[i] |= values[i] << filled;
    filled += bits;
    if (filled < 32)
      continue;
    filled -= 32;
    memcpy(out, words, sizeof words), out += LANES;
    for (int i = 0; i < LANES; i++)
      words[i] = values[i] >> (bits - filled);
  }
}

static void unpack_block(const uint32_t *restrict words, int bits, uint32_t *restrict values) {
  const uint32_t mask = (1U << bits) - 1;
  int at = 0;
  for (int row = 0; row < ROWS; row++, values += LANES) {
    for (int i = 0; i < LANES; i++)
      values[i] = words[i] >> at;
    if (at + bits > 32)
      for (int i = 0; i < LANES; i++)
        values[i] |= words[LANES + i] << (32 - at);
    for (int i = 0; i < LANES; i++)
      values[i] &= mask;
    at += bits;
    if (at >= 32)
      at -= 32, words += LANES;
  }
}

/* N values below 2^bits, bits < 32, to `bits` words per LANES values of whole blocks; the last block is filled up with zeros. */
void pack(const uint32_t *values, int64_t num_values, int bits, uint32_t *out) {
  const int64_t num_full = num_values / BLOCK_VALUES, rest = num_values % BLOCK_VALUES;
  for (int64_t block = 0; block < num_full; block++)
    pack_block(values + block * BLOCK_VALUES, bits, out + block * bits * LANES);
  if (rest) {
    uint32_t last[BLOCK_VALUES] = {0};
    memcpy(last, values + num_full * BLOCK_VALUES, (size_t)rest * sizeof(uint32_t));
    pack_block(last, bits, out + num_full * bits * LANES);
  }
}

void unpack(const uint32_t *words, int64_t num_values, int bits, uint32_t *out) {
  const int64_t num_full = num_values / BLOCK_VALUES, rest = num_values % BLOCK_VALUES;
  for (int64_t block = 0; block < num_full; block++)
    unpack_block(words + block * bits * LANES, bits, out + block * BLOCK_VALUES);
  if (rest) {
    uint32_t last[BLOCK_VALUES];
    unpack_block(words + num_full * bits * LANES, bits, last);
    memcpy(out + num_full * BLOCK_VALUES, last, (size_t)rest * sizeof(uint32_t));
  }
}
