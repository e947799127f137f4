/* Puts rows together as records, and copies the records of a batch to where a KeyedJaggedTensor wants them (see records.py).

   A record holds all that is known of a row but the values of its lists, of which it holds where they begin and how many they are:
   a row that lies anywhere in a window of tens of megabytes is then found in two places, not in one per array. */

#include <stdint.h>
#include <string.h>

enum { LINE_BYTES = 64 };

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows and lists are short pieces that lie anywhere: plain vectors copy them 1.15 times as fast as libc's memcpy (measured). */
typedef char Line __attribute__((vector_size(LINE_BYTES), aligned(1), may_alias));

static inline void copy(char *to, const char *from, int64_t num_bytes) {
  if (num_bytes < LINE_BYTES) {
    memcpy(to, from, (size_t)num_bytes);
    return;
  }
  const int64_t last = num_bytes - LINE_BYTES;
  for (int64_t at = 0; at < last; at += LINE_BYTES)
    *(Line *)(to + at) = *(const Line *)(from + at);
  *(Line *)(to + last) = *(const Line *)(from + last);
}

/* ---- pack ----

   A part is 4 integers: kind, in, at, num_bytes; it goes to byte `at` of each record.
     VALUES   in: [N] pieces of `num_bytes`.
     STARTS   in: [N + 1] int64, where each list begins: int64.
     LENGTHS  the same: int32. */

enum { VALUES = 0, STARTS = 1, LENGTHS = 2, PART_FIELDS = 4, PACK_ROWS = 128 };

static void pack_part(const int64_t *part, int64_t first, int64_t num_rows, char *to, int64_t record_bytes) {
  const char *in = (const char *)(intptr_t)part[1];
  const int64_t *offsets = (const int64_t *)in + first;
  const int64_t num_bytes = part[3];
  to += part[2];
  switch (part[0]) {
  case VALUES:
    in += first * num_bytes;
    if (num_bytes == 4)
      for (int64_t i = 0; i < num_rows; i++)
        memcpy(to + i * record_bytes, in + 4 * i, 4);
    else
      for (int64_t i = 0; i < num_rows; i++)
        copy(to + i * record_bytes, in + i * num_bytes, num_bytes);
    break;
  case STARTS:
    for (int64_t i = 0; i < num_rows; i++)
      memcpy(to + i * record_bytes, offsets + i, sizeof *offsets);
    break;
  case LENGTHS:
    for (int64_t i = 0; i < num_rows; i++) {
      const int32_t length = (int32_t)(offsets[i + 1] - offsets[i]);
      memcpy(to + i * record_bytes, &length, sizeof length);
    }
    break;
  }
}

/* records: [num_rows, record_bytes]; a few rows at a time, which stay in the processor's cache until they are complete. */
void pack(const int64_t *parts, int64_t num_parts, int64_t num_rows, char *records, int64_t record_bytes) {
  for (int64_t first = 0; first < num_rows; first += PACK_ROWS)
    for (const int64_t *part = parts; part < parts + num_parts * PART_FIELDS; part += PART_FIELDS)
      pack_part(part, first, least(PACK_ROWS, num_rows - first), records + first * record_bytes, record_bytes);
}

/* offsets: [N + 1] of lists; index: [num_rows]; ends: [num_rows + 1], values of the first i rows of the index. */
void ends(const int64_t *offsets, const int64_t *index, int64_t num_rows, int64_t *ends) {
  ends[0] = 0;
  for (int64_t i = 0; i < num_rows; i++)
    ends[i + 1] = ends[i] + offsets[index[i] + 1] - offsets[index[i]];
}

/* ---- gather ----

   A place is 3 integers: address, bytes from one row to the next, reference. Place 0 is the records. A row of another place is the
   one whose number (int32) is at byte `reference` of the record: a row of a store. Behind them come the values of each list.

   A move is 5 integers: kind, place, at, num_bytes, step. Its output begins at outs[batch, move], and is moved on.
     BYTES    `num_bytes` from byte `at` of the place's row, each row `step` bytes behind the one before.
     IDS      an int32 from byte `at` of the place's row.
     LISTS    the values of each list, one list after the other; the list begins at the int64 at byte `at` of the record, and has as
              many values as the int32 at byte `num_bytes` says.
     ONES     a one per row.
   index: int64, the rows to copy, in that order: those of one batch behind those of another. All but BYTES write int32, or int64 with the kind + 1. */

enum { BYTES = 0, IDS = 2, LISTS = 4, ONES = 6, WIDE = 1, PLACE_FIELDS = 3, MOVE_FIELDS = 5 };

/* Rows are asked for ahead, so that they come while others are copied: records and rows of stores by the chunk, lists by the row. */
enum { CHUNK = 32, AHEAD = 6, LINES = 8 };

static inline void fetch(const char *from, int64_t num_bytes) {
  for (int64_t at = 0; at < num_bytes && at < LINES * LINE_BYTES; at += LINE_BYTES)
    __builtin_prefetch(from + at);
}

static inline int32_t int_at(const char *from) {
  int32_t value;
  memcpy(&value, from, sizeof value);
  return value;
}

static inline int64_t long_at(const char *from) {
  int64_t value;
  memcpy(&value, from, sizeof value);
  return value;
}

static inline const char *row_of(const int64_t *place, int64_t row) {
  return (const char *)(intptr_t)place[0] + row * place[1];
}

static void fetch_records(const int64_t *places, const int64_t *index, int64_t first, int64_t stop) {
  for (int64_t i = first; i < stop; i++)
    fetch(row_of(places, index[i]), places[1]);
}

static void fetch_stores(const int64_t *places, int64_t num_places, const int64_t *index, int64_t first, int64_t stop) {
  for (const int64_t *place = places + PLACE_FIELDS; place < places + num_places * PLACE_FIELDS; place += PLACE_FIELDS)
    for (int64_t i = first; i < stop; i++)
      fetch(row_of(place, int_at(row_of(places, index[i]) + place[2])), place[1]);
}

static inline void copy_bytes(char *out, int64_t step, const char *const *rows, int64_t at, int64_t num_rows, int64_t num_bytes) {
  for (int64_t i = 0; i < num_rows; i++)
    copy(out + i * step, rows[i] + at, num_bytes);
}

/* Of rows `first` to `first + num_rows` of the index, of which there are `num_all`. Returns where the next list goes. */
static inline char *copy_lists(char *out, const int64_t *move, const int64_t *places, const int64_t *index, int64_t first,
                               int64_t num_rows, int64_t num_all, int is_wide) {
  const int32_t *values = (const int32_t *)(intptr_t)places[move[1] * PLACE_FIELDS];
  for (int64_t i = first; i < first + num_rows; i++) {
    if (i + AHEAD < num_all) {
      const char *later = row_of(places, index[i + AHEAD]);
      fetch((const char *)(values + long_at(later + move[2])), int_at(later + move[3]) * (int64_t)sizeof *values);
    }
    const char *record = row_of(places, index[i]);
    const int32_t *from = values + long_at(record + move[2]);
    const int64_t length = int_at(record + move[3]);
    if (is_wide) {
      for (int64_t j = 0; j < length; j++)
        ((int64_t *)out)[j] = from[j];
      out += length * (int64_t)sizeof(int64_t);
    } else {
      copy(out, (const char *)from, length * (int64_t)sizeof *values);
      out += length * (int64_t)sizeof *values;
    }
  }
  return out;
}

static inline char *put(char *out, int64_t value, int is_wide) {
  if (is_wide)
    *(int64_t *)out = value;
  else
    *(int32_t *)out = (int32_t)value;
  return out + (is_wide ? sizeof(int64_t) : sizeof(int32_t));
}

/* Of an index with `num_all` rows from `index` on, the first `num_rows`: a batch, or a part of one. */
static void gather_batch(const int64_t *places, int64_t num_places, const int64_t *moves, int64_t num_moves, const int64_t *index,
                         int64_t num_rows, int64_t num_all, int64_t *outs) {
  const char *rows[num_places][CHUNK];
  fetch_records(places, index, 0, least(2 * CHUNK, num_all));
  fetch_stores(places, num_places, index, 0, least(CHUNK, num_all));
  for (int64_t first = 0; first < num_rows; first += CHUNK) {
    const int64_t n = least(CHUNK, num_rows - first);
    fetch_records(places, index, first + 2 * CHUNK, least(first + 3 * CHUNK, num_all));
    fetch_stores(places, num_places, index, first + CHUNK, least(first + 2 * CHUNK, num_all));
    for (int64_t i = 0; i < n; i++)
      rows[0][i] = row_of(places, index[first + i]);
    for (int64_t p = 1; p < num_places; p++)
      for (int64_t i = 0; i < n; i++)
        rows[p][i] = row_of(places + p * PLACE_FIELDS, int_at(rows[0][i] + places[p * PLACE_FIELDS + 2]));
    for (int64_t m = 0; m < num_moves; m++) {
      const int64_t *move = moves + m * MOVE_FIELDS, at = move[2], num_bytes = move[3], step = move[4];
      const int is_wide = move[0] & WIDE;
      char *out = (char *)(intptr_t)outs[m];
      switch (move[0]) {
      case BYTES: /* the sizes of a label, a weight, a row number are known when this is compiled */
        if (num_bytes == 4)
          copy_bytes(out, step, rows[move[1]], at, n, 4);
        else if (num_bytes == 8)
          copy_bytes(out, step, rows[move[1]], at, n, 8);
        else
          copy_bytes(out, step, rows[move[1]], at, n, num_bytes);
        out += n * step;
        break;
      case IDS:
      case IDS | WIDE:
        for (int64_t i = 0; i < n; i++)
          out = put(out, int_at(rows[move[1]][i] + at), is_wide);
        break;
      case LISTS:
      case LISTS | WIDE:
        out = copy_lists(out, move, places, index, first, n, num_all, is_wide);
        break;
      case ONES:
      case ONES | WIDE:
        for (int64_t i = 0; i < n; i++)
          out = put(out, 1, is_wide);
        break;
      }
      outs[m] = (int64_t)(intptr_t)out;
    }
  }
}

/* outs: [num_batches, num_moves]; index: [num_batches, num_rows]. */
void gather(const int64_t *places, int64_t num_places, const int64_t *moves, int64_t num_moves, const int64_t *index,
            int64_t num_batches, int64_t num_rows, int64_t *outs) {
  for (int64_t batch = 0; batch < num_batches; batch++)
    gather_batch(places, num_places, moves, num_moves, index + batch * num_rows, num_rows, (num_batches - batch) * num_rows,
                 outs + batch * num_moves);
}
