/* Values found again: each value becomes the number of the first value like it (see distinct.py). Runs without the GIL.

   An open-addressing table with linear probing. A slot's key tells most texts apart without looking at them: up to 7 bytes, with the
   length behind them in the top byte; of longer texts a hash, with 255 in the top byte, and the texts are compared. */

#include "separators.h"

#include <stdlib.h>
#include <string.h>

enum { SHORT_BYTES = 7, FIRST_SLOTS = 1 << 12, FULL = 255 };

typedef struct {
  uint64_t key;
  int64_t number; /* + 1; 0: the slot is free */
} Slot;

typedef struct {
  uint64_t key;
  int64_t start, end;
} Piece;

typedef struct {
  Slot *slots;
  int64_t num_slots, num_values, most_values;
  int shift;
  char *text;
  int64_t text_bytes, most_text_bytes;
  int64_t *starts; /* of each value in `text`; integers: the values themselves */
  Piece *pieces; /* scratch: those of a row */
  int64_t most_pieces;
} Distinct;

static int set_slots(Distinct *d, int64_t num_slots) {
  Slot *slots = calloc((size_t)num_slots, sizeof(Slot));
  if (!slots)
    return 0;
  int shift = 64;
  for (int64_t n = num_slots; n > 1; n >>= 1)
    shift--;
  for (int64_t i = 0; i < d->num_slots; i++) {
    if (!d->slots[i].number)
      continue;
    uint64_t at = (d->slots[i].key * 0x9E3779B97F4A7C15ULL) >> shift;
    while (slots[at].number)
      at = (at + 1) & (uint64_t)(num_slots - 1);
    slots[at] = d->slots[i];
  }
  free(d->slots);
  d->slots = slots, d->num_slots = num_slots, d->shift = shift;
  return 1;
}

Distinct *distinct_new(void) {
  Distinct *d = calloc(1, sizeof(Distinct));
  if (d && !set_slots(d, FIRST_SLOTS)) {
    free(d);
    return 0;
  }
  return d;
}

void distinct_free(Distinct *d) {
  free(d->slots), free(d->text), free(d->starts), free(d->pieces), free(d);
}

int64_t distinct_count(const Distinct *d) { return d->num_values; }

int64_t distinct_text_bytes(const Distinct *d) { return d->text_bytes; }

/* offsets: [num_values + 1]; text: [text_bytes] */
void distinct_texts(const Distinct *d, int64_t *offsets, char *text) {
  memcpy(offsets, d->starts, (size_t)d->num_values * sizeof(int64_t));
  offsets[d->num_values] = d->text_bytes;
  memcpy(text, d->text, (size_t)d->text_bytes);
}

void distinct_integers(const Distinct *d, int64_t *values) {
  memcpy(values, d->starts, (size_t)d->num_values * sizeof(int64_t));
}

static int reserve(void **at, int64_t *most, int64_t needed, size_t width) {
  if (needed <= *most)
    return 1;
  const int64_t more = needed > 2 * *most ? needed + 1024 : 2 * *most;
  void *grown = realloc(*at, (size_t)more * width);
  if (!grown)
    return 0;
  *at = grown, *most = more;
  return 1;
}

/* A new value at a free slot; -1 without memory. */
static int64_t add(Distinct *d, uint64_t slot, uint64_t key, int64_t start) {
  if (!reserve((void **)&d->starts, &d->most_values, d->num_values + 1, sizeof(int64_t)))
    return -1;
  d->starts[d->num_values] = start;
  d->slots[slot].key = key;
  d->slots[slot].number = ++d->num_values;
  const int64_t number = d->num_values - 1;
  if (2 * d->num_values > d->num_slots && !set_slots(d, 2 * d->num_slots))
    return -1;
  return number;
}

static int64_t add_text(Distinct *d, uint64_t slot, uint64_t key, const char *text, int64_t length) {
  if (!reserve((void **)&d->text, &d->most_text_bytes, d->text_bytes + length + 1, 1))
    return -1;
  const int64_t start = d->text_bytes;
  memcpy(d->text + start, text, (size_t)length);
  d->text_bytes += length;
  return add(d, slot, key, start);
}

static uint64_t hash_text(const char *text, int64_t length) {
  uint64_t hash = 0x243F6A8885A308D3ULL ^ (uint64_t)length;
  for (; length >= 8; text += 8, length -= 8) {
    uint64_t word;
    memcpy(&word, text, 8);
    hash = (hash ^ word) * 0xBF58476D1CE4E5B9ULL;
    hash ^= hash >> 29;
  }
  uint64_t word = 0;
  memcpy(&word, text, (size_t)length);
  hash = (hash ^ word) * 0x94D049BB133111EBULL;
  return (hash ^ (hash >> 32)) | (uint64_t)FULL << 56;
}

static int is_text(const Distinct *d, int64_t number, const char *text, int64_t length) {
  const int64_t start = d->starts[number], end = number + 1 < d->num_values ? d->starts[number + 1] : d->text_bytes;
  return end - start == length && !memcmp(d->text + start, text, (size_t)length);
}

/* `all`: where the memory that `text` lies in ends, beyond which nothing may be read. */
static inline uint64_t short_key(const char *text, int64_t length, const char *all) {
  uint64_t word = 0;
  if (text + 8 <= all)
    memcpy(&word, text, 8);
  else
    memcpy(&word, text, (size_t)length);
  return (word & ((1ULL << (8 * length)) - 1)) | (uint64_t)(length + 1) << 56;
}

static inline uint64_t key_of(const char *text, int64_t length, const char *all) {
  return length > SHORT_BYTES ? hash_text(text, length) : short_key(text, length, all);
}

static inline uint64_t slot_of(const Distinct *d, uint64_t key) { return (key * 0x9E3779B97F4A7C15ULL) >> d->shift; }

/* The slot of a text, or the free one where it belongs. */
static inline uint64_t find(const Distinct *d, uint64_t key, const char *text, int64_t length) {
  const uint64_t last = (uint64_t)(d->num_slots - 1);
  uint64_t at = slot_of(d, key);
  while (d->slots[at].number && !(d->slots[at].key == key && (length <= SHORT_BYTES || is_text(d, d->slots[at].number - 1, text, length))))
    at = (at + 1) & last;
  return at;
}

static inline int64_t number_of(Distinct *d, uint64_t key, const char *text, int64_t length) {
  const uint64_t at = find(d, key, text, length);
  return d->slots[at].number ? d->slots[at].number - 1 : add_text(d, at, key, text, length);
}

/* Separated text: numbers of each row's pieces, empty ones dropped, at most `max_len` from the end that `keep_last` says.

   data, offsets: of N texts (Arrow; 64-bit offsets if `wide`); data_bytes: what may be read of `data`.
   validity: bits from bit `first_bit` on, or 0. A null row has no pieces.
   numbers: room for half the bytes of all rows, and one per row; out_offsets: [num_rows + 1].
   Returns the number of pieces; -1 without memory. */
int64_t distinct_split(Distinct *d, const char *data, int64_t data_bytes, const void *offsets, int wide, const uint8_t *validity,
                       int64_t first_bit, int64_t num_rows, char separator, int64_t max_len, int keep_last, int32_t *numbers,
                       int64_t *out_offsets) {
  const char *all = data + data_bytes;
  int64_t total = 0;
  out_offsets[0] = 0;
  for (int64_t row = 0; row < num_rows; row++) {
    const int64_t first = offset(offsets, wide, row), length = offset(offsets, wide, row + 1) - first;
    const char *text = data + first;
    int64_t num_pieces = 0;
    if (!is_null(validity, first_bit + row) && length) {
      if (!reserve((void **)&d->pieces, &d->most_pieces, length / 2 + 2, sizeof(Piece)))
        return -1;
      Piece *piece = d->pieces;
      int64_t start = 0;
      for (int64_t block = 0; block < length && (keep_last || piece - d->pieces < max_len); block += BLOCK) {
        const int64_t rest = length - block;
        uint64_t bits = rest >= BLOCK ? separators(text + block, separator) : separators_of_rest(text + block, rest, separator);
        for (; bits; bits &= bits - 1) {
          piece->start = start, piece->end = block + __builtin_ctzll(bits);
          start = piece->end + 1;
          piece += piece->end > piece->start;
        }
      }
      piece->start = start, piece->end = length;
      num_pieces = piece - d->pieces + (length > start);
    }
    const int64_t kept = num_pieces < max_len ? num_pieces : max_len;
    Piece *pieces = d->pieces + (keep_last ? num_pieces - kept : 0);
    /* slots lie anywhere in megabytes: all of a row are asked for before the first is looked at */
    for (int64_t i = 0; i < kept; i++) {
      pieces[i].key = key_of(text + pieces[i].start, pieces[i].end - pieces[i].start, all);
      __builtin_prefetch(d->slots + slot_of(d, pieces[i].key));
    }
    for (int64_t i = 0; i < kept; i++) {
      const int64_t number = number_of(d, pieces[i].key, text + pieces[i].start, pieces[i].end - pieces[i].start);
      if (number < 0)
        return -1;
      numbers[total++] = (int32_t)number;
    }
    out_offsets[row + 1] = total;
  }
  return total;
}

/* Numbers of N texts; of nulls, -1. Returns 0; -1 without memory. */
int64_t distinct_of_texts(Distinct *d, const char *data, int64_t data_bytes, const void *offsets, int wide, const uint8_t *validity,
                          int64_t first_bit, int64_t num_values, int32_t *numbers) {
  for (int64_t i = 0; i < num_values; i++) {
    const int64_t first = offset(offsets, wide, i), length = offset(offsets, wide, i + 1) - first;
    if (is_null(validity, first_bit + i)) {
      numbers[i] = -1;
      continue;
    }
    const int64_t number = number_of(d, key_of(data + first, length, data + data_bytes), data + first, length);
    if (number < 0)
      return -1;
    numbers[i] = (int32_t)number;
  }
  return 0;
}

/* Numbers of N integers; of nulls, -1. Returns 0; -1 without memory. */
int64_t distinct_of_integers(Distinct *d, const int64_t *values, const uint8_t *validity, int64_t first_bit, int64_t num_values,
                             int32_t *numbers) {
  for (int64_t i = 0; i < num_values; i++) {
    if (is_null(validity, first_bit + i)) {
      numbers[i] = -1;
      continue;
    }
    const uint64_t key = (uint64_t)values[i], last = (uint64_t)(d->num_slots - 1);
    uint64_t at = slot_of(d, key);
    while (d->slots[at].number && d->slots[at].key != key)
      at = (at + 1) & last;
    const int64_t number = d->slots[at].number ? d->slots[at].number - 1 : add(d, at, key, values[i]);
    if (number < 0)
      return -1;
    numbers[i] = (int32_t)number;
  }
  return 0;
}

/* rows[i] = number of text i + `first_row`, 0 where the table lacks it. Only reads the table: threads may share it. */
void find_texts(const Distinct *d, const char *data, int64_t data_bytes, const void *offsets, int wide, int64_t num_values,
                int32_t first_row, int32_t *rows) {
  for (int64_t i = 0; i < num_values; i++) {
    const int64_t first = offset(offsets, wide, i), length = offset(offsets, wide, i + 1) - first;
    const uint64_t at = find(d, key_of(data + first, length, data + data_bytes), data + first, length);
    rows[i] = d->slots[at].number ? (int32_t)(d->slots[at].number - 1) + first_row : 0;
  }
}

void find_integers(const Distinct *d, const int64_t *values, int64_t num_values, int32_t first_row, int32_t *rows) {
  const uint64_t last = (uint64_t)(d->num_slots - 1);
  for (int64_t i = 0; i < num_values; i++) {
    uint64_t at = slot_of(d, (uint64_t)values[i]);
    while (d->slots[at].number && d->slots[at].key != (uint64_t)values[i])
      at = (at + 1) & last;
    rows[i] = d->slots[at].number ? (int32_t)(d->slots[at].number - 1) + first_row : 0;
  }
}

/* counts[number] += 1 for each of `numbers` that is not -1. */
void count_numbers(const int32_t *numbers, int64_t num_values, int64_t *counts) {
  for (int64_t i = 0; i < num_values; i++)
    if (numbers[i] >= 0)
      counts[numbers[i]]++;
}

/* totals[numbers[i]] += counts[i] */
void add_counts(const int32_t *numbers, int64_t num_values, const int64_t *counts, int64_t *totals) {
  for (int64_t i = 0; i < num_values; i++)
    totals[numbers[i]] += counts[i];
}

/* out[i] = of_number[numbers[i]], and `of_null` for -1. `out` may be `numbers`. */
void look_up(const int32_t *numbers, int64_t num_values, const int32_t *of_number, int32_t of_null, int32_t *out) {
  for (int64_t i = 0; i < num_values; i++)
    out[i] = numbers[i] < 0 ? of_null : of_number[numbers[i]];
}
