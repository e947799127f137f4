/* How many ids a feature's slots held, and how many of them were unknown (see metrics.py). */

#include <stdint.h>

typedef struct {
  int64_t num_slots;
  const int64_t *unknown_rows; /* [num_slots] */
  int64_t *known, *unknown;    /* [num_slots], added to */
} Counts;

void count_ids(const Counts *counts, const int64_t *ids, int64_t num_rows) {
  for (const int64_t *row = ids; row < ids + num_rows * counts->num_slots; row += counts->num_slots)
    for (int64_t s = 0; s < counts->num_slots; s++) {
      counts->known[s] += row[s] != 0;
      counts->unknown[s] += row[s] == counts->unknown_rows[s];
    }
}
