/* The JSON (RFC 8259) of flat objects: texts, numbers, nulls, and lists of texts or of numbers. Each function returns 1 where it read
   what it is for, and 0 for anything else: what is not JSON, and what is left to a parser that knows everything. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ITEMS = 1 << 12, MOST_UNESCAPED = 1 << 14, MOST_DIGITS = 18 };

typedef enum { ABSENT, MISSING, TEXT, INTEGER, FLOAT, LIST } Kind;

typedef struct {
  Kind kind;
  const char *text; /* of texts; of integers their digits */
  int64_t length;   /* of `text`; of lists the number of items */
  int64_t integer;  /* of lists the first item */
  double number;    /* of floats */
} Value;

typedef struct {
  const char *at, *end;
  Value *items; /* [MOST_ITEMS], those of all lists */
  int64_t num_items;
  char *unescaped; /* [MOST_UNESCAPED], texts that had escapes */
  int64_t num_unescaped;
} Json;

static inline void skip_space(Json *r) {
  while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\r' || *r->at == '\t'))
    r->at++;
}

static inline int take(Json *r, char wanted) {
  if (r->at == r->end || *r->at != wanted)
    return 0;
  r->at++;
  return 1;
}

/* RFC 3629, table in section 4. */
static int is_utf8(const char *text, int64_t length) {
  const uint8_t *at = (const uint8_t *)text, *end = at + length;
  while (at < end) {
    const uint8_t first = *at++;
    if (first < 0x80)
      continue;
    const int more = first < 0xC2 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : 0;
    if (!more || end - at < more)
      return 0;
    const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (at[0] < low || at[0] > high)
      return 0;
    for (int i = 1; i < more; i++)
      if ((at[i] & 0xC0) != 0x80)
        return 0;
    at += more;
  }
  return 1;
}

static int take_hex(Json *r, uint32_t *code) {
  static const char digits[] = "0123456789abcdefABCDEF";
  *code = 0;
  for (int i = 0; i < 4; i++, r->at++) {
    const char *found = r->at < r->end && *r->at ? strchr(digits, *r->at) : 0;
    if (!found)
      return 0;
    const int64_t digit = found - digits;
    *code = *code << 4 | (uint32_t)(digit < 16 ? digit : digit - 6);
  }
  return 1;
}

/* What follows a backslash, as UTF-8 of up to 4 bytes: how many, 0 for none. A surrogate needs its partner. */
static int take_escape(Json *r, char *out) {
  static const char names[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
  if (!take(r, 'u')) {
    const char *found = r->at < r->end && *r->at ? strchr(names, *r->at) : 0;
    if (!found)
      return 0;
    r->at++;
    *out = meanings[found - names];
    return 1;
  }
  uint32_t code, partner;
  if (!take_hex(r, &code))
    return 0;
  if (code >= 0xD800 && code <= 0xDFFF) {
    if (code >= 0xDC00 || !take(r, '\\') || !take(r, 'u') || !take_hex(r, &partner) || partner < 0xDC00 || partner > 0xDFFF)
      return 0;
    code = 0x10000 + ((code - 0xD800) << 10) + (partner - 0xDC00);
  }
  const int num = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (int i = num - 1; i > 0; i--, code >>= 6)
    out[i] = (char)(0x80 | (code & 0x3F));
  out[0] = (char)(num == 1 ? code : (0xF00 >> num & 0xFF) | code);
  return num;
}

/* A text with escapes, from its first one on: what is before it begins at `start`. */
static int unescape(Json *r, const char *start, Value *value) {
  char *out = r->unescaped + r->num_unescaped;
  const char *const last = r->unescaped + MOST_UNESCAPED - 4;
  value->text = out;
  if (r->at - start > last - out)
    return 0;
  memcpy(out, start, (size_t)(r->at - start));
  out += r->at - start;
  while (!take(r, '"')) {
    if (r->at == r->end || out > last || (uint8_t)*r->at < 0x20)
      return 0;
    const int num = take(r, '\\') ? take_escape(r, out) : (*out = *r->at++, 1);
    if (!num)
      return 0;
    out += num;
  }
  value->length = out - value->text;
  r->num_unescaped += value->length;
  return is_utf8(value->text, value->length);
}

/* Whether 8 bytes are ASCII, and none is a quote, a backslash or a control character. (The lowest that is cannot be hidden by a borrow,
   and without one there are no borrows.) */
static inline int is_plain8(const char *at) {
  const uint64_t ones = 0x0101010101010101ULL, high = 0x8080808080808080ULL;
  uint64_t word;
  memcpy(&word, at, 8);
  const uint64_t quotes = word ^ ones * '"', backslashes = word ^ ones * '\\';
  return !((word | (word - ones * 0x20) | (quotes - ones) | (backslashes - ones)) & high);
}

static inline int read_text(Json *r, Value *value) {
  if (!take(r, '"'))
    return 0;
  const char *start = r->at, *at = start, *const end = r->end;
  uint8_t bits = 0;
  while (end - at >= 8 && is_plain8(at))
    at += 8;
  for (; at < end && *at != '"' && *at != '\\'; at++) {
    if ((uint8_t)*at < 0x20)
      return 0;
    bits |= (uint8_t)*at;
  }
  r->at = at;
  value->kind = TEXT;
  if (r->at < r->end && *r->at == '\\')
    return unescape(r, start, value);
  value->text = start, value->length = r->at - start;
  return take(r, '"') && (bits < 0x80 || is_utf8(start, value->length));
}

static inline int64_t skip_digits(Json *r) {
  const char *start = r->at;
  while (r->at < r->end && *r->at >= '0' && *r->at <= '9')
    r->at++;
  return r->at - start;
}

/* At most MOST_DIGITS decimal digits, with or without a minus before them. */
static inline int64_t to_integer(const char *text, int64_t length) {
  const int negative = *text == '-';
  int64_t out = 0;
  for (int64_t i = negative; i < length; i++)
    out = 10 * out + (text[i] - '0');
  return negative ? -out : out;
}

static int read_number(Json *r, Value *value) {
  const char *start = r->at;
  const int negative = take(r, '-');
  const int is_zero = r->at < r->end && *r->at == '0';
  const int64_t num_digits = skip_digits(r);
  if (!num_digits || (is_zero && num_digits > 1))
    return 0;
  value->kind = INTEGER;
  if (take(r, '.')) {
    value->kind = FLOAT;
    if (!skip_digits(r))
      return 0;
  }
  if (take(r, 'e') || take(r, 'E')) {
    value->kind = FLOAT;
    if (!take(r, '+'))
      take(r, '-');
    if (!skip_digits(r))
      return 0;
  }
  if (value->kind == INTEGER) {
    if (num_digits > MOST_DIGITS || (negative && is_zero))
      return 0;
    value->text = start, value->length = r->at - start;
    value->integer = to_integer(start, value->length);
    return 1;
  }
  if (r->at == r->end) /* strtod stops at what comes next */
    return 0;
  char *end;
  value->number = strtod(start, &end) + 0.0; /* no -0.0 */
  return end == r->at && isfinite(value->number);
}

static inline int read_one(Json *r, Value *value) {
  if (r->at < r->end && *r->at == '"')
    return read_text(r, value);
  if (r->end - r->at < 4 || memcmp(r->at, "null", 4))
    return read_number(r, value);
  r->at += 4;
  value->kind = MISSING;
  return 1;
}

/* Texts, integers or floats, all of a kind. */
static int read_list(Json *r, Value *value) {
  const Value *first = r->items + r->num_items;
  value->kind = LIST, value->integer = r->num_items, value->length = 0;
  skip_space(r);
  if (take(r, ']'))
    return 1;
  do {
    Value *item = r->items + r->num_items;
    skip_space(r);
    if (r->num_items == MOST_ITEMS || !read_one(r, item) || item->kind == MISSING || item->kind != first->kind)
      return 0;
    r->num_items++, value->length++;
    skip_space(r);
  } while (take(r, ','));
  return take(r, ']');
}
