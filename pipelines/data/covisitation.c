/* Counts of items that the same user saw together, read and updated in the order of time (see covisitation.py).

   Rows of one time are all scored before any of them is counted. A user remembers the `window` different items seen last, the newest
   at the end. Counts are kept as multiples of exp2((time - origin) / half_life): an old count loses half by the newer ones' growth, and
   common factors cancel in cosine and lift. A pair is as old as the middle of its two events: with w of an event, it counts
   sqrt(w w'), so cosine is that of the items' vectors of sqrt(w). */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { COSINE, LIFT, LOG, NONE };
enum { DONE = 0, TOO_MANY_PAIRS = 1, NO_MEMORY = 2 };

#define LARGEST_EXPONENT 500.0 /* of exp2, before everything is scaled back */

typedef struct {
  uint64_t key; /* smaller item << 32 | larger item, never 0; 0: free */
  double count;
} Slot;

typedef struct {
  /* rows in the order of time; user and item are -1 where missing */
  int64_t num_rows;
  const int32_t *user, *item;
  const double *time;
  const uint8_t *is_event;
  /* settings */
  int64_t window, normalise, max_pairs;
  double max_age, half_life; /* INFINITY: none */
  /* state, zero at first */
  int32_t *recent_item;  /* [users, window] */
  double *recent_time;   /* [users, window] */
  int32_t *num_recent;   /* [users] */
  double *item_count;    /* [items] */
  int64_t num_items;
  double total, origin;
  /* what is found of each row: sum and largest of the similarities to remembered items, and how many items these are */
  float *sum, *largest;
  int32_t *num_compared;
  /* pairs */
  Slot *slots;
  int64_t num_slots, num_pairs;
} Log;

static inline uint64_t key_of(int32_t a, int32_t b) {
  return a < b ? (uint64_t)a << 32 | (uint32_t)b : (uint64_t)b << 32 | (uint32_t)a;
}

static inline int64_t place_of(const Log *log, uint64_t key) {
  uint64_t z = key * 0x9E3779B97F4A7C15u;
  z ^= z >> 32;
  int64_t at = (int64_t)(z & (uint64_t)(log->num_slots - 1));
  while (log->slots[at].key && log->slots[at].key != key)
    at = (at + 1) & (log->num_slots - 1);
  return at;
}

static int grow(Log *log) {
  Log larger = *log;
  larger.num_slots = log->num_slots ? 2 * log->num_slots : 1 << 16;
  larger.slots = calloc((size_t)larger.num_slots, sizeof(Slot));
  if (!larger.slots)
    return NO_MEMORY;
  for (int64_t i = 0; i < log->num_slots; i++)
    if (log->slots[i].key)
      larger.slots[place_of(&larger, log->slots[i].key)] = log->slots[i];
  free(log->slots);
  log->slots = larger.slots;
  log->num_slots = larger.num_slots;
  return DONE;
}

static inline double growth(const Log *log, double time) {
  return isinf(log->half_life) ? 1.0 : exp2((time - log->origin) / log->half_life);
}

static void scale_back(Log *log, double time) {
  const double factor = exp2((log->origin - time) / log->half_life);
  for (int64_t i = 0; i < log->num_slots; i++)
    log->slots[i].count *= factor;
  for (int64_t i = 0; i < log->num_items; i++)
    log->item_count[i] *= factor;
  log->total *= factor;
  log->origin = time;
}

static double similarity(const Log *log, int32_t a, int32_t b, double now) {
  const double pair = log->slots[place_of(log, key_of(a, b))].count;
  if (pair == 0)
    return 0;
  switch (log->normalise) {
  case COSINE: /* an item whose count is 0 was last seen hundreds of half-lives ago */
    return log->item_count[a] * log->item_count[b] > 0 ? pair / sqrt(log->item_count[a] * log->item_count[b]) : 0;
  case LIFT:
    return log->item_count[a] * log->item_count[b] > 0 ? pair / log->item_count[a] * (log->total / log->item_count[b]) : 0;
  case LOG:
    return log1p(pair / now);
  default:
    return pair / now;
  }
}

static void score(const Log *log, int64_t row) {
  const int32_t user = log->user[row], item = log->item[row];
  double sum = 0, largest = 0;
  int32_t compared = 0;
  if (user >= 0 && item >= 0) {
    const double time = log->time[row], now = growth(log, time);
    const int32_t *items = log->recent_item + user * log->window;
    const double *times = log->recent_time + user * log->window;
    for (int32_t k = 0; k < log->num_recent[user]; k++) {
      if (items[k] == item || time - times[k] > log->max_age)
        continue;
      const double found = similarity(log, item, items[k], now);
      sum += found;
      largest = found > largest ? found : largest;
      compared++;
    }
  }
  log->sum[row] = (float)sum;
  log->largest[row] = (float)largest;
  log->num_compared[row] = compared;
}

static int count(Log *log, int64_t row) {
  const int32_t user = log->user[row], item = log->item[row];
  if (user < 0 || item < 0 || !log->is_event[row])
    return DONE;
  const double time = log->time[row], weight = growth(log, time);
  int32_t *items = log->recent_item + user * log->window;
  double *times = log->recent_time + user * log->window;
  int32_t num_recent = log->num_recent[user], kept = 0;
  for (int32_t k = 0; k < num_recent; k++) {
    if (items[k] == item)
      continue;
    if (time - times[k] <= log->max_age) {
      if (5 * (log->num_pairs + 1) > 3 * log->num_slots) {
        const int failed = grow(log);
        if (failed)
          return failed;
      }
      Slot *slot = log->slots + place_of(log, key_of(item, items[k]));
      if (!slot->key) {
        if (log->num_pairs == log->max_pairs)
          return TOO_MANY_PAIRS;
        slot->key = key_of(item, items[k]);
        log->num_pairs++;
      }
      slot->count += growth(log, (time + times[k]) / 2);
    }
    items[kept] = items[k], times[kept] = times[k], kept++;
  }
  if (kept == log->window) {
    memmove(items, items + 1, (size_t)(kept - 1) * sizeof *items);
    memmove(times, times + 1, (size_t)(kept - 1) * sizeof *times);
    kept--;
  }
  items[kept] = item, times[kept] = time;
  log->num_recent[user] = kept + 1;
  log->item_count[item] += weight;
  log->total += weight;
  return DONE;
}

int covisitation_run(Log *log) {
  int failed = grow(log);
  log->origin = log->num_rows ? log->time[0] : 0;
  for (int64_t start = 0, end = 0; start < log->num_rows && !failed; start = end) {
    while (end < log->num_rows && log->time[end] == log->time[start])
      end++;
    if ((log->time[start] - log->origin) / log->half_life > LARGEST_EXPONENT)
      scale_back(log, log->time[start]);
    for (int64_t row = start; row < end; row++)
      score(log, row);
    for (int64_t row = start; row < end && !failed; row++)
      failed = count(log, row);
  }
  return failed;
}

void covisitation_pairs(const Log *log, uint64_t *keys, double *counts) {
  for (int64_t i = 0, found = 0; i < log->num_slots; i++)
    if (log->slots[i].key) {
      keys[found] = log->slots[i].key;
      counts[found++] = log->slots[i].count;
    }
}

void covisitation_free(Log *log) {
  free(log->slots);
  log->slots = NULL;
}
