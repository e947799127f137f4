/* BLAKE2b (RFC 7693) with a digest of 8 bytes, keyed with 8 bytes: hashes of texts, as hashlib gives them to `Hash` in ../data/ids.py. */

#include <stdint.h>
#include <string.h>

enum { BLAKE2B_BLOCK = 128 };

typedef struct {
  uint64_t h[8];
} Blake2b;

static const uint64_t BLAKE2B_IV[8] = {
    0x6A09E667F3BCC908ULL, 0xBB67AE8584CAA73BULL, 0x3C6EF372FE94F82BULL, 0xA54FF53A5F1D36F1ULL,
    0x510E527FADE682D1ULL, 0x9B05688C2B3E6C1FULL, 0x1F83D9ABFB41BD6BULL, 0x5BE0CD19137E2179ULL,
};

/* RFC 7693, 2.7; rounds 10 and 11 are 0 and 1 again */
static const uint8_t BLAKE2B_SIGMA[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static inline uint64_t rotated(uint64_t x, int bits) { return x >> bits | x << (64 - bits); }

static inline void blake2b_mix(uint64_t *a, uint64_t *b, uint64_t *c, uint64_t *d, uint64_t x, uint64_t y) {
  *a += *b + x, *d = rotated(*d ^ *a, 32), *c += *d, *b = rotated(*b ^ *c, 24);
  *a += *b + y, *d = rotated(*d ^ *a, 16), *c += *d, *b = rotated(*b ^ *c, 63);
}

/* `block`: the next 128 bytes; `num_bytes`: of everything up to its end. Little-endian machines only, as Arrow's buffers. */
static void blake2b_block(Blake2b *state, const void *block, uint64_t num_bytes, int is_last) {
  uint64_t m[16], v[16];
  memcpy(m, block, sizeof m);
  memcpy(v, state->h, sizeof state->h);
  memcpy(v + 8, BLAKE2B_IV, sizeof BLAKE2B_IV);
  v[12] ^= num_bytes;
  v[14] = is_last ? ~v[14] : v[14];
  for (int round = 0; round < 12; round++) {
    const uint8_t *s = BLAKE2B_SIGMA[round % 10];
    for (int i = 0; i < 4; i++)
      blake2b_mix(v + i, v + 4 + i, v + 8 + i, v + 12 + i, m[s[2 * i]], m[s[2 * i + 1]]);
    for (int i = 0; i < 4; i++)
      blake2b_mix(v + i, v + 4 + (i + 1) % 4, v + 8 + (i + 2) % 4, v + 12 + (i + 3) % 4, m[s[8 + 2 * i]], m[s[9 + 2 * i]]);
  }
  for (int i = 0; i < 8; i++)
    state->h[i] ^= v[i] ^ v[i + 8];
}

static Blake2b blake2b_begun(void) {
  Blake2b state;
  memcpy(state.h, BLAKE2B_IV, sizeof BLAKE2B_IV);
  state.h[0] ^= 0x01010000 ^ 8 << 8 ^ 8; /* no tree, a key of 8 bytes, a digest of 8 bytes */
  return state;
}

/* What hashes with this key begin with: the key is a block of its own. Not for an empty message. */
static Blake2b blake2b_keyed(uint64_t key) {
  Blake2b state = blake2b_begun();
  const uint64_t block[BLAKE2B_BLOCK / 8] = {key};
  blake2b_block(&state, block, BLAKE2B_BLOCK, 0);
  return state;
}

static uint64_t blake2b_of(uint64_t key, Blake2b state, const char *text, int64_t length) {
  uint64_t num_bytes = BLAKE2B_BLOCK;
  char block[BLAKE2B_BLOCK] = {0};
  if (!length) { /* the key's block is the last one */
    state = blake2b_begun();
    memcpy(block, &key, sizeof key);
    blake2b_block(&state, block, num_bytes, 1);
    return state.h[0];
  }
  for (; length > BLAKE2B_BLOCK; text += BLAKE2B_BLOCK, length -= BLAKE2B_BLOCK)
    blake2b_block(&state, text, num_bytes += BLAKE2B_BLOCK, 0);
  memcpy(block, text, (size_t)length);
  blake2b_block(&state, block, num_bytes + (uint64_t)length, 1);
  return state.h[0];
}
