/* A bid request (OpenRTB, as JSON) to the values of a row, and those to the graph's inputs (see bid_reader.py).

   The whole body is held against the standard's types, as msgspec does with the Structs of openrtb.py. Everything that is not beyond
   doubt is undecided: the functions return 0, and Python reads the request or words the error. */

#include "row_slots.h"

enum { MOST_DEPTH = 64, MOST_KEY = 1 << 12 };
enum { TIMESTAMP, ID, IMP_ID, BIDFLOOR, TMAX }; /* the values after the columns' */

/* ---------------------------------------------------------------- what bid_reader.py knows of a request and of a mapping */

enum { NODE_TEXT, NODE_INTEGER, NODE_NUMBER, NODE_SCALAR, NODE_OBJECT, NODE_LIST }; /* SCALAR: below ext; a list may stand there, too */
enum { NOT_IN_KEY, ITS_JSON, THAT_IT_IS_THERE };

typedef struct {
  int64_t type, is_optional; /* null may stand for it */
  int64_t column;            /* whose value it is, or whose list it belongs to; -1: nobody's */
  int64_t is_item, not_negative;
  const Table *names; /* OBJECT: of members to nodes from first_member on */
  int64_t first_member;
  uint64_t required;                                      /* a bit per member */
  int64_t item, is_single, first_column, num_columns; /* LIST: node of the items; columns whose lists are there from here on */
  int64_t in_key;
} Node;

typedef struct {
  int64_t column, from, separator; /* from >= 0: the value of that column; separator >= 0: its list as a text to be cut again */
} Derived;

typedef struct {
  Plan *rows;
  const Node *nodes;
  const Value *fixed; /* [num_columns + MORE_VALUES]: what the values are before a request is read */
  const int64_t *list_columns;
  const Derived *derived;
  const int64_t *own_columns; /* of the offer */
  int64_t num_list_columns, most_items, num_derived, num_own_columns;
  char *key; /* [MOST_KEY]: equal for requests on equal terms */
  /* of the request that was read */
  int64_t num_items, key_length; /* > MOST_KEY: too long */
  int64_t id_at, id_length, imp_id_at, imp_id_length; /* in the body; -1: it has escapes */
  int64_t has_bidfloor, has_tmax, tmax;
  double bidfloor;
} BidPlan;

/* Parses a value that does not come with a request; `json` must stay valid and end with a byte that is not read. */
int value_of(const char *json, int64_t length, Value *value) {
  Json reader = {json, json + length + 1, 0, 0, 0, 0};
  memset(value, 0, sizeof *value);
  return !memchr(json, '\\', (size_t)length) && read_one(&reader, value) && reader.at == json + length;
}

/* ---------------------------------------------------------------- a request */

static int read_node(BidPlan *plan, const Node *node);

static int take_word(Json *json, const char *word, int64_t length) {
  if (json->end - json->at < length || memcmp(json->at, word, (size_t)length))
    return 0;
  json->at += length;
  return 1;
}

static int take_name(Json *json, Value *name) {
  skip_space(json);
  if (!read_text(json, name))
    return 0;
  skip_space(json);
  if (!take(json, ':'))
    return 0;
  skip_space(json);
  return 1;
}

static int skip_value(Json *json, int depth) {
  Value ignored;
  const int is_object = json->at < json->end && *json->at == '{';
  if (!is_object && (json->at == json->end || *json->at != '['))
    return take_word(json, "true", 4) || take_word(json, "false", 5) || read_one(json, &ignored);
  const char last = is_object ? '}' : ']';
  json->at++;
  if (depth == MOST_DEPTH)
    return 0;
  skip_space(json);
  if (take(json, last))
    return 1;
  do {
    skip_space(json);
    if ((is_object && !take_name(json, &ignored)) || !skip_value(json, depth + 1))
      return 0;
    skip_space(json);
  } while (take(json, ','));
  return take(json, last);
}

static int read_members(BidPlan *plan, const Node *node) {
  Json *json = &plan->rows->json;
  uint64_t seen = 0;
  Value name;
  if (!take(json, '{'))
    return 0;
  skip_space(json);
  if (take(json, '}'))
    return !node->required;
  do {
    if (!take_name(json, &name))
      return 0;
    const int64_t member = node->names ? find(node->names, hash_of(name.text, name.length), name.text, name.length, -1) : -1;
    if (member < 0) {
      if (!skip_value(json, 0))
        return 0;
    } else {
      const uint64_t bit = 1ULL << member;
      if (seen & bit || !read_node(plan, plan->nodes + node->first_member + member))
        return 0;
      seen |= bit;
    }
    skip_space(json);
  } while (take(json, ','));
  return take(json, '}') && (seen & node->required) == node->required;
}

static int read_items(BidPlan *plan, const Node *node) {
  Json *json = &plan->rows->json;
  for (const int64_t *c = plan->list_columns + node->first_column; c < plan->list_columns + node->first_column + node->num_columns; c++)
    plan->rows->values[*c].kind = LIST; /* its items have a place of their own; see read_bid */
  if (!take(json, '['))
    return 0;
  skip_space(json);
  if (take(json, ']'))
    return !node->is_single;
  int64_t num = 0;
  do {
    skip_space(json);
    if (!read_node(plan, plan->nodes + node->item))
      return 0;
    num++;
    skip_space(json);
  } while (take(json, ','));
  return take(json, ']') && (!node->is_single || num == 1);
}

static int keep(BidPlan *plan, const Node *node, const Value *found) {
  Value *value = plan->rows->values + node->column;
  if (!node->is_item) {
    *value = *found;
    return 1;
  }
  if (found->kind == MISSING)
    return 1;
  if (value->length == plan->most_items)
    return 0;
  plan->rows->json.items[value->integer + value->length++] = *found;
  return 1;
}

static void add_to_key(BidPlan *plan, const Node *node, const char *json, int64_t length) {
  const uint32_t head[2] = {(uint32_t)(node - plan->nodes), (uint32_t)length};
  char *out = plan->key + plan->key_length;
  plan->key_length += (int64_t)sizeof head + length;
  if (plan->key_length > MOST_KEY) {
    plan->key_length = MOST_KEY + 1; /* and more of it every time */
    return;
  }
  memcpy(out, head, sizeof head);
  memcpy(out + sizeof head, json, (size_t)length);
}

static int read_value(BidPlan *plan, const Node *node);

static int read_node(BidPlan *plan, const Node *node) {
  const char *start = plan->rows->json.at;
  if (!read_value(plan, node))
    return 0;
  if (node->in_key && (node->in_key == ITS_JSON || *start != 'n'))
    add_to_key(plan, node, start, node->in_key == ITS_JSON ? plan->rows->json.at - start : 0);
  return 1;
}

static int read_value(BidPlan *plan, const Node *node) {
  Json *json = &plan->rows->json;
  if (node->type == NODE_OBJECT || node->type == NODE_LIST) {
    if (json->at < json->end && *json->at == 'n')
      return node->is_optional && take_word(json, "null", 4);
    return node->type == NODE_OBJECT ? read_members(plan, node) : read_items(plan, node);
  }
  Value value;
  if (node->type == NODE_SCALAR && take(json, '[')) {
    if (!read_list(json, &value))
      return 0;
  } else if (!read_one(json, &value))
    return 0;
  if (value.kind == MISSING) {
    if (!node->is_optional)
      return 0;
  } else if (node->type == NODE_NUMBER) {
    if (value.kind == INTEGER)
      value.kind = FLOAT, value.number = (double)value.integer;
    if (value.kind != FLOAT || (node->not_negative && value.number < 0))
      return 0;
  } else if (value.kind != (node->type == NODE_TEXT ? TEXT : INTEGER) && node->type != NODE_SCALAR)
    return 0;
  return node->column < 0 || keep(plan, node, &value);
}

/* The list as one text. */
static int join(Plan *rows, Value *value, char separator) {
  if (value->kind != LIST)
    return 1;
  Json *json = &rows->json;
  char *start = json->unescaped + json->num_unescaped, *out = start;
  const char *const last = json->unescaped + MOST_UNESCAPED;
  const Value *items = json->items + value->integer;
  for (int64_t i = 0; i < value->length; i++) {
    if ((items[i].kind != TEXT && items[i].kind != INTEGER) || last - out <= items[i].length)
      return 0;
    if (i)
      *out++ = separator;
    memcpy(out, items[i].text, (size_t)items[i].length);
    out += items[i].length;
  }
  json->num_unescaped += out - start;
  *value = (Value){TEXT, start, out - start, 0, 0};
  return 1;
}

static void place_of(const Value *text, const char *body, int64_t length, int64_t *at, int64_t *text_length) {
  const int is_in_body = text->text >= body && text->text <= body + length;
  *at = is_in_body ? text->text - body : -1;
  *text_length = text->length;
}

static void take_own(BidPlan *plan, const char *body, int64_t length) {
  const Value *own = plan->rows->values + plan->rows->num_columns;
  place_of(own + ID, body, length, &plan->id_at, &plan->id_length);
  place_of(own + IMP_ID, body, length, &plan->imp_id_at, &plan->imp_id_length);
  plan->has_bidfloor = own[BIDFLOOR].kind == FLOAT, plan->bidfloor = own[BIDFLOOR].number;
  plan->has_tmax = own[TMAX].kind == INTEGER, plan->tmax = own[TMAX].integer;
}

/* A request of one impression. */
int read_bid(BidPlan *plan, const char *body, int64_t length) {
  Plan *rows = plan->rows;
  Json *json = &rows->json;
  json->at = body, json->end = body + length;
  json->num_items = plan->num_list_columns * plan->most_items, json->num_unescaped = 0;
  memcpy(rows->values, plan->fixed, (size_t)(rows->num_columns + MORE_VALUES) * sizeof(Value));
  plan->key_length = 0;
  skip_space(json);
  if (!read_node(plan, plan->nodes))
    return 0;
  skip_space(json);
  if (json->at != json->end)
    return 0;
  for (const Derived *d = plan->derived; d < plan->derived + plan->num_derived; d++) {
    Value *value = rows->values + d->column;
    if (d->from >= 0)
      *value = rows->values[d->from];
    if (d->separator >= 0 && !join(rows, value, (char)d->separator))
      return 0;
  }
  plan->num_items = json->num_items;
  take_own(plan, body, length);
  return 1;
}

/* The row of one offer on the request that was read last; `own` are its values of own_columns. */
int encode_bid(BidPlan *plan, const Value *own, int64_t *ids, float *dense) {
  for (int64_t i = 0; i < plan->num_own_columns; i++)
    plan->rows->values[plan->own_columns[i]] = own[i];
  plan->rows->json.num_items = plan->num_items;
  return encode_values(plan->rows, ids, dense);
}
