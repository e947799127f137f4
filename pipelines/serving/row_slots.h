/* A row's values, one per column, to the graph's inputs: the second half of row_reader.c and of bid_reader.c. Functions return 0 where
   they are undecided. A plan's scratch memory serves one call at a time: callers hold the GIL.

   Lookups of all columns are under way (prefetch) before the first is waited for. */

#include "blake2b.h"
#include "flat_json.h"
#include "lookup.h"

static const double MOST_EXACT = 9007199254740992.0; /* 2^53 */

/* ---------------------------------------------------------------- plans: what row_reader.py knows of a graph */

enum { BY_TEXT, HASHED_TEXT, BY_INTEGER, BY_FLOAT, HASHED_NUMBER, BUCKETS, IDENTITY }; /* how values become rows of the feature's table */
enum { ONE, MANY, SEPARATED };
enum { MORE_VALUES = 5 }; /* than columns, for whoever needs them: bid_reader.c */
enum { FILL, CLIP, SCALE, IS_MISSING }; /* as in ../data/dense.c */

typedef struct {
  int64_t column, kind, form, separator, first_slot, num_slots, keeps_last;
  int64_t first_row; /* of the feature's table in the graph's; added to every row */
  int64_t null_row;  /* -1: a missing value is refused */
  int64_t size;      /* HASHED_*: buckets; BUCKETS: boundaries; IDENTITY: rows */
  uint64_t seed;     /* HASHED_NUMBER: the mixed one */
  Blake2b keyed;     /* HASHED_TEXT: with the seed */
  const Table *table;
  const double *boundaries;
} Ids;

typedef struct {
  double kind, a, b;
} Step;

typedef struct {
  int64_t column, num_steps; /* -1: see Plan.raw */
  const Step *steps;
} Number;

typedef struct {
  const Table *table;
  const char *key;
  int64_t length, first_row, *slot;
  uint64_t hash;
} Lookup;

typedef struct {
  const Table *columns; /* key -> column */
  const Ids *ids;
  const Number *numbers;
  const int64_t *aligned; /* pairs of columns whose lists are equally long */
  double *raw;            /* [num_numbers]: the numbers before their steps, NaN where missing; whoever asks takes steps that are not for C */
  int64_t num_columns, num_ids, num_numbers, num_aligned, num_slots;
  /* scratch */
  Json json;
  Value *values;   /* [num_columns + MORE_VALUES] */
  Lookup *lookups; /* [num_slots] */
  int64_t num_lookups;
} Plan;

/* ---------------------------------------------------------------- values to ids and numbers: 0 where undecided */

static inline int reads_text(const Ids *f) { return f->kind == BY_TEXT || f->kind == HASHED_TEXT; }

/* Whole floats are integers, and so are texts of an optional minus and digits. */
static inline int as_integer(Value *value) {
  if (value->kind == INTEGER)
    return 1;
  if (value->kind == FLOAT) {
    value->integer = fabs(value->number) <= MOST_EXACT ? (int64_t)value->number : 0;
    return (double)value->integer == value->number;
  }
  const int64_t sign = value->length && *value->text == '-', num_digits = value->length - sign;
  if (num_digits < 1 || num_digits > MOST_DIGITS)
    return 0;
  for (int64_t i = sign; i < value->length; i++)
    if (value->text[i] < '0' || value->text[i] > '9')
      return 0;
  value->integer = to_integer(value->text, value->length);
  return 1;
}

static inline int as_float(Value *value) {
  if (value->kind == FLOAT)
    return 1;
  if (!as_integer(value))
    return 0;
  value->number = (double)value->integer;
  return 1;
}

/* Steele, Lea, Flood, OOPSLA 2014, figure 16; as `_mix` in ../data/ids.py. */
static inline uint64_t splitmix64(uint64_t z) {
  z += 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

static int64_t num_at_most(const double *boundaries, int64_t num, double number) {
  int64_t low = 0;
  while (low < num) {
    const int64_t middle = low + (num - low) / 2;
    if (boundaries[middle] <= number)
      low = middle + 1;
    else
      num = middle;
  }
  return low;
}

static inline int look_up(Plan *plan, const Ids *f, const char *key, int64_t length, int64_t *slot) {
  const uint64_t hash = hash_of(key, length);
  __builtin_prefetch(f->table->entries + (hash & f->table->last));
  plan->lookups[plan->num_lookups++] = (Lookup){f->table, key, length, f->first_row, slot, hash};
  return 1;
}

/* One value into one slot: now, or by a lookup that is begun. */
static inline int encode_one(Plan *plan, const Ids *f, Value *value, int64_t *slot) {
  switch (f->kind) {
  case BY_TEXT:
    return value->kind != FLOAT && look_up(plan, f, value->text, value->length, slot);
  case HASHED_TEXT:
    if (value->kind == FLOAT)
      return 0;
    *slot = f->first_row + 1 + (int64_t)(blake2b_of(f->seed, f->keyed, value->text, value->length) % (uint64_t)f->size);
    return 1;
  case BY_INTEGER:
    return as_integer(value) && look_up(plan, f, (const char *)&value->integer, 8, slot);
  case BY_FLOAT:
    return as_float(value) && look_up(plan, f, (const char *)&value->number, 8, slot);
  case HASHED_NUMBER:
    if (!as_integer(value))
      return 0;
    *slot = f->first_row + 1 + (int64_t)(splitmix64((uint64_t)value->integer ^ f->seed) % (uint64_t)f->size);
    return 1;
  case BUCKETS:
    if (!as_float(value))
      return 0;
    *slot = f->first_row + 1 + num_at_most(f->boundaries, f->size, value->number);
    return 1;
  default:
    if (!as_integer(value) || value->integer < 0 || value->integer >= f->size)
      return 0;
    *slot = f->first_row + value->integer;
    return 1;
  }
}

static int encode_list(Plan *plan, const Ids *f, Value *items, int64_t num, int64_t *slots) {
  const int64_t kept = num < f->num_slots ? num : f->num_slots;
  if (f->keeps_last)
    items += num - kept;
  for (int64_t i = 0; i < kept; i++)
    if (!encode_one(plan, f, items + i, slots + i))
      return 0;
  memset(slots + kept, 0, (size_t)(f->num_slots - kept) * sizeof *slots);
  return 1;
}

/* Pieces become items; empty ones do not count. */
static int cut(Plan *plan, const Ids *f, const Value *value, int64_t *num) {
  const char *at = value->text, *end = at + value->length;
  for (*num = 0; at < end; at++) {
    const char *stop = memchr(at, (int)f->separator, (size_t)(end - at));
    stop = stop ? stop : end;
    if (stop > at) {
      if (plan->json.num_items + *num == MOST_ITEMS)
        return 0;
      Value *item = plan->json.items + plan->json.num_items + (*num)++;
      *item = (Value){TEXT, at, stop - at, 0, 0};
      if (!reads_text(f) && !as_integer(item)) /* also one that is not kept */
        return 0;
    }
    at = stop;
  }
  return 1;
}

static int encode_ids(Plan *plan, const Ids *f, Value *value, int64_t *slots) {
  const int missing = value->kind == ABSENT || value->kind == MISSING;
  if (f->form == ONE) {
    if (!missing)
      return value->kind != LIST && encode_one(plan, f, value, slots);
    *slots = f->first_row + f->null_row;
    return f->null_row >= 0;
  }
  if (missing)
    return encode_list(plan, f, 0, 0, slots);
  if (f->form == SEPARATED) {
    int64_t num;
    Value *pieces = plan->json.items + plan->json.num_items;
    if (value->kind != TEXT || !cut(plan, f, value, &num))
      return 0;
    plan->json.num_items += num;
    return encode_list(plan, f, pieces, num, slots);
  }
  if (value->kind != LIST)
    return 0;
  Value *items = plan->json.items + value->integer;
  for (int64_t i = 0; i < value->length && !reads_text(f); i++)
    if (items[i].kind == TEXT && !as_integer(items + i)) /* also one that is not kept */
      return 0;
  return encode_list(plan, f, items, value->length, slots);
}

static int encode_number(const Number *f, Value *value, double *raw, float *out) {
  double x = NAN;
  if (value->kind != ABSENT && value->kind != MISSING) {
    if (value->kind == LIST || !as_float(value))
      return 0;
    x = value->number;
  }
  *raw = x;
  if (f->num_steps < 0)
    return 1;
  for (const Step *step = f->steps; step < f->steps + f->num_steps; step++)
    switch ((int)step->kind) {
    case FILL:
      x = x != x ? step->a : x;
      break;
    case CLIP:
      x = x < step->a ? step->a : x;
      x = x > step->b ? step->b : x;
      break;
    case SCALE:
      x = (x - step->a) / step->b;
      break;
    default:
      x = x != x;
    }
  *out = (float)x;
  return isfinite(*out);
}

/* The plan's values to ids [num_slots] and dense [num_numbers], which may hold anything where the row is undecided. */
static int encode_values(Plan *plan, int64_t *ids, float *dense) {
  plan->num_lookups = 0;
  for (const int64_t *pair = plan->aligned; pair < plan->aligned + 2 * plan->num_aligned; pair += 2) {
    const Value *one = plan->values + pair[0], *two = plan->values + pair[1];
    if (one->kind != LIST || two->kind != LIST || one->length != two->length)
      return 0;
  }
  for (const Ids *f = plan->ids; f < plan->ids + plan->num_ids; f++)
    if (!encode_ids(plan, f, plan->values + f->column, ids + f->first_slot))
      return 0;
  for (int64_t i = 0; i < plan->num_numbers; i++)
    if (!encode_number(plan->numbers + i, plan->values + plan->numbers[i].column, plan->raw + i, dense + i))
      return 0;
  for (const Lookup *l = plan->lookups; l < plan->lookups + plan->num_lookups; l++)
    *l->slot = l->first_row + find(l->table, l->hash, l->key, l->length, 0);
  return 1;
}
