/* Raw number columns through simple steps into the columns of a row-major float32 matrix (see dense.py). Runs without the GIL.

   A job is 9 integers: kind, values, validity, first_bit, steps, num_steps, out, row_floats, failed. Addresses are those of arrays.
     kind      0: float64, 1: float32, 2: int64, 3: int32.
     values    [num_rows]; validity: Arrow's bits from bit `first_bit` on, or 0.
     steps     [num_steps] of {kind, a, b}, float64: see `Step`.
     out       the column's place in the first row; `row_floats` to the next row.
     failed    int32, set to 1 where a result is not finite.
   The arithmetic is numpy's, operation by operation (-ffp-contract=off). */

#include <math.h>
#include <stdint.h>

enum { FILL, CLIP, SCALE, IS_MISSING, JOB_FIELDS = 9, BLOCK = 128 };

typedef struct {
  double kind, a, b; /* FILL: a for NaN; CLIP: to a .. b, NaN for no bound; SCALE: (x - a) / b; IS_MISSING: 1 for NaN, else 0 */
} Step;

static void read_block(const int64_t *job, int64_t start, int64_t num, double *x) {
  const void *values = (const void *)(intptr_t)job[1];
  switch (job[0]) {
  case 0:
    for (int64_t i = 0; i < num; i++)
      x[i] = ((const double *)values)[start + i] + 0.0; /* no -0.0 */
    break;
  case 1:
    for (int64_t i = 0; i < num; i++)
      x[i] = (double)((const float *)values)[start + i] + 0.0;
    break;
  case 2:
    for (int64_t i = 0; i < num; i++)
      x[i] = (double)((const int64_t *)values)[start + i];
    break;
  default:
    for (int64_t i = 0; i < num; i++)
      x[i] = (double)((const int32_t *)values)[start + i];
  }
  const uint8_t *validity = (const uint8_t *)(intptr_t)job[2];
  if (validity)
    for (int64_t i = 0; i < num; i++) {
      const int64_t bit = job[3] + start + i;
      x[i] = validity[bit >> 3] >> (bit & 7) & 1 ? x[i] : NAN;
    }
}

static void apply(const Step *step, int64_t num, double *x) {
  const double a = step->a, b = step->b;
  switch ((int)step->kind) {
  case FILL:
    for (int64_t i = 0; i < num; i++)
      x[i] = x[i] != x[i] ? a : x[i];
    break;
  case CLIP:
    for (int64_t i = 0; i < num; i++) {
      x[i] = x[i] < a ? a : x[i];
      x[i] = x[i] > b ? b : x[i];
    }
    break;
  case SCALE:
    for (int64_t i = 0; i < num; i++)
      x[i] = (x[i] - a) / b;
    break;
  default:
    for (int64_t i = 0; i < num; i++)
      x[i] = x[i] != x[i];
  }
}

void dense_columns(const int64_t *jobs, int64_t num_jobs, int64_t num_rows) {
  double x[BLOCK];
  for (int64_t start = 0; start < num_rows; start += BLOCK) { /* the rows of a block stay in the cache */
    const int64_t num = num_rows - start < BLOCK ? num_rows - start : BLOCK;
    for (const int64_t *job = jobs; job < jobs + num_jobs * JOB_FIELDS; job += JOB_FIELDS) {
      read_block(job, start, num, x);
      const Step *steps = (const Step *)(intptr_t)job[4];
      for (int64_t s = 0; s < job[5]; s++)
        apply(steps + s, num, x);
      float *out = (float *)(intptr_t)job[6] + start * job[7];
      int finite = 1;
      for (int64_t i = 0; i < num; i++) {
        const float y = (float)x[i];
        finite &= y - y == 0;
        out[i * job[7]] = y;
      }
      if (!finite)
        *(int32_t *)(intptr_t)job[8] = 1;
    }
  }
}
