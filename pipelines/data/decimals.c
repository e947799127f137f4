/* Separated text whose pieces are small whole numbers, straight to numbers (see decimals.py). Runs without the GIL. */

#include "separators.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_DIGITS = 6, NO_MEMORY = -1, NOT_DECIMAL = -2 };

typedef struct {
  uint64_t *words;         /* where pieces end, a bit per byte and one behind the last */
  int64_t num_words, room; /* `room`: of `words`; of the others, 64 times that */
  uint64_t *tails;         /* of each piece, the 8 bytes before its end, the last one highest */
  uint64_t *lengths;
} Row;

static int reserve(Row *row, int64_t num_words) {
  if (num_words <= row->room)
    return 1;
  const int64_t room = 2 * num_words, most_pieces = room * BLOCK / 2 + BLOCK;
  free(row->words);
  row->words = malloc((size_t)(room + 2 * most_pieces) * sizeof(uint64_t));
  row->room = row->words ? room : 0;
  row->tails = row->words + room, row->lengths = row->tails + most_pieces;
  return row->words != 0;
}

/* Fills `words`. Returns the number of pieces that are not empty. */
static int64_t find_separators(Row *row, const char *text, int64_t length, const char *all, char separator) {
  int64_t num_pieces = 0;
  uint64_t before = 1; /* whether a separator, or nothing, stands before the word */
  for (int64_t i = 0; i < row->num_words; i++) {
    const char *block = text + i * BLOCK;
    const int64_t rest = length - i * BLOCK;
    uint64_t bits;
    if (rest >= BLOCK)
      bits = separators(block, separator);
    else {
      bits = block + BLOCK <= all ? separators(block, separator) : separators_of_rest(block, rest, separator);
      bits = (bits & ((1ULL << rest) - 1)) | 1ULL << rest;
    }
    num_pieces += __builtin_popcountll(bits & ~(bits << 1 | before));
    before = bits >> 63;
    row->words[i] = bits;
  }
  return num_pieces;
}

/* Fills `tails` and `lengths` with the pieces behind the first `skipped` ones. */
static void find_pieces(const Row *row, const char *text, const char *data, int64_t skipped, int64_t num_pieces) {
  int64_t word = 0, start = 0, found = 0;
  uint64_t left = row->words[0];
  for (uint64_t before = 1; skipped; left = row->words[++word]) {
    uint64_t ends = left & ~(left << 1 | before);
    const int64_t count = __builtin_popcountll(ends);
    if (count < skipped) {
      before = left >> 63;
      skipped -= count;
      continue;
    }
    while (--skipped)
      ends &= ends - 1;
    const int last = __builtin_ctzll(ends);
    start = word * BLOCK + last + 1;
    left &= last == BLOCK - 1 ? 0 : ~0ULL << (last + 1);
    break;
  }
  for (;;) {
    for (; left; left &= left - 1) {
      const int64_t end = word * BLOCK + __builtin_ctzll(left);
      uint64_t tail = 0;
      if (text + end - 8 >= data)
        memcpy(&tail, text + end - 8, 8);
      else
        memcpy((char *)&tail + 8 - (end < 8 ? end : 8), text + (end < 8 ? 0 : end - 8), (size_t)(end < 8 ? end : 8));
      row->tails[found] = tail;
      row->lengths[found] = (uint64_t)(end - start);
      found += end > start;
      start = end + 1;
    }
    if (found >= num_pieces || ++word == row->num_words)
      return;
    left = row->words[word];
  }
}

/* values[i] of each piece. Returns whether all are whole numbers as they are written in decimal, without zeros before them. */
static int read_pieces(const uint64_t *restrict tails, const uint64_t *restrict lengths, int64_t num_pieces, int32_t *restrict values) {
  const uint64_t bytes = 0x000000FF000000FFULL;
  uint64_t odd = 0;
  for (int64_t i = 0; i < num_pieces; i++) {
    const uint64_t shift = (64 - 8 * lengths[i]) & 63; /* what stands before the piece goes */
    const uint64_t digits = (tails[i] ^ 0x3030303030303030ULL) >> shift << shift;
    odd |= (((digits & 0x7F7F7F7F7F7F7F7FULL) + 0x7676767676767676ULL) | digits) & 0x8080808080808080ULL; /* a byte above 9 */
    odd |= (uint64_t)(lengths[i] > MOST_DIGITS) | ((uint64_t)!(digits >> shift & 255) & (lengths[i] > 1));
    const uint64_t pairs = digits * 10 + (digits >> 8);
    values[i] =
        (int32_t)(((pairs & bytes) * (100 + (1000000ULL << 32)) + (pairs >> 16 & bytes) * (1 + (10000ULL << 32))) >> 32);
  }
  return !odd;
}

/* Separated text: values of each row's pieces, empty ones dropped, at most `max_len` from the end that `keep_last` says.

   data, offsets: of N texts (Arrow; 64-bit offsets if `wide`); data_bytes: what may be read of `data`.
   validity: bits from bit `first_bit` on, or 0. A null row has no pieces.
   values: room for half the bytes of all rows, and one per row; out_offsets: [num_rows + 1].
   Returns the number of pieces, NOT_DECIMAL where one is not a whole number of up to 6 digits, NO_MEMORY. */
int64_t split_decimals(const char *data, int64_t data_bytes, const void *offsets, int wide, const uint8_t *validity, int64_t first_bit,
                       int64_t num_rows, char separator, int64_t max_len, int keep_last, int32_t *values, int64_t *out_offsets) {
  Row row = {0};
  int64_t total = 0;
  out_offsets[0] = 0;
  for (int64_t i = 0; i < num_rows; i++) {
    const int64_t first = offset(offsets, wide, i), length = offset(offsets, wide, i + 1) - first;
    if (!is_null(validity, first_bit + i) && length) {
      row.num_words = length / BLOCK + 1;
      if (!reserve(&row, row.num_words)) {
        total = NO_MEMORY;
        break;
      }
      const int64_t num_pieces = find_separators(&row, data + first, length, data + data_bytes, separator);
      const int64_t kept = num_pieces < max_len ? num_pieces : max_len;
      find_pieces(&row, data + first, data, keep_last ? num_pieces - kept : 0, kept);
      if (!read_pieces(row.tails, row.lengths, kept, values + total)) {
        total = NOT_DECIMAL;
        break;
      }
      total += kept;
    }
    out_offsets[i + 1] = total;
  }
  free(row.words);
  return total;
}
