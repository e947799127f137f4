/* A request's row, as JSON, straight to the graph's inputs (see row_reader.py).

   Everything that is not beyond doubt is undecided: read_row returns 0, and Python reads the row or words the error. What is decided
   here, Python decides likewise. */

#include "row_slots.h"

void plan_free(Plan *plan) {
  free(plan->values), free(plan->lookups), free(plan->json.items), free(plan->json.unescaped), free(plan);
}

/* [num_columns + MORE_VALUES] */
Value *plan_values(Plan *plan) { return plan->values; }

void hash_keyed(uint64_t seed, Blake2b *out) { *out = blake2b_keyed(seed); }

/* What is pointed to must outlive the plan; 0 without memory. */
Plan *plan_new(
    const Table *columns, int64_t num_columns, const Ids *ids, int64_t num_ids, const Number *numbers, int64_t num_numbers,
    const int64_t *aligned, int64_t num_aligned, int64_t num_slots, double *raw
) {
  Plan *plan = calloc(1, sizeof(Plan));
  if (!plan)
    return 0;
  *plan = (Plan){
      .columns = columns, .ids = ids, .numbers = numbers, .aligned = aligned, .raw = raw, .num_columns = num_columns,
      .num_ids = num_ids, .num_numbers = num_numbers, .num_aligned = num_aligned, .num_slots = num_slots,
  };
  plan->values = calloc((size_t)num_columns + MORE_VALUES, sizeof(Value));
  plan->lookups = calloc((size_t)num_slots + 1, sizeof(Lookup));
  plan->json.items = calloc(MOST_ITEMS, sizeof(Value));
  plan->json.unescaped = malloc(MOST_UNESCAPED);
  if (plan->values && plan->lookups && plan->json.items && plan->json.unescaped)
    return plan;
  plan_free(plan);
  return 0;
}

static int read_member(Plan *plan) {
  Json *json = &plan->json;
  Value key;
  skip_space(json);
  if (!read_text(json, &key))
    return 0;
  const int64_t column = find(plan->columns, hash_of(key.text, key.length), key.text, key.length, -1);
  if (column < 0 || plan->values[column].kind != ABSENT)
    return 0;
  skip_space(json);
  if (!take(json, ':'))
    return 0;
  skip_space(json);
  Value *value = plan->values + column;
  if (!(take(json, '[') ? read_list(json, value) : read_one(json, value)))
    return 0;
  skip_space(json);
  return 1;
}

static int read_object(Plan *plan) {
  Json *json = &plan->json;
  memset(plan->values, 0, (size_t)plan->num_columns * sizeof(Value));
  skip_space(json);
  if (!take(json, '{'))
    return 0;
  skip_space(json);
  if (!take(json, '}')) {
    do {
      if (!read_member(plan))
        return 0;
    } while (take(json, ','));
    if (!take(json, '}'))
      return 0;
  }
  skip_space(json);
  return json->at == json->end;
}

/* ids: [num_slots]; dense: [num_numbers]. Both may hold anything where the row is undecided. */
int read_row(Plan *plan, const char *json, int64_t length, int64_t *ids, float *dense) {
  plan->json.at = json, plan->json.end = json + length;
  plan->json.num_items = plan->json.num_unescaped = 0;
  return read_object(plan) && encode_values(plan, ids, dense);
}
