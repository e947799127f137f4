"""Says what is wrong with a config: the dotted path as the user wrote it, the value given, what is allowed, the nearest name.

pydantic stops looking inside a section whose name is misspelt. `check_structure` therefore mends what it can (a misspelt key, a
misspelt kind) in a copy and looks again, so that one run shows every mistake.
"""

import difflib
import json
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from .masking import masked

Location = tuple[str | int, ...]

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of `key: value` lines",
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}


class ConfigError(ValueError):
    """Every mistake of one config, as text lines."""

    def __init__(self, source: str, problems: list[str]) -> None:
        problems = [masked(p) for p in problems]
        self.problems = problems
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {p}" for p in problems))


def nearest_name(given: Any, allowed: Iterable[str]) -> str:
    """The allowed name that looks most like the given one, or ""."""
    return next(iter(difflib.get_close_matches(str(given), list(allowed), 1, cutoff=0.6)), "")


def nearest(given: Any, allowed: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or nothing."""
    name = nearest_name(given, allowed)
    return f"; did you mean {name!r}?" if name else ""


def short(value: Any) -> str:
    """A value as the user would write it, without passwords, cut to 80 characters."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else masked(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def check_structure(root: type[BaseModel], raw: Any, *, prefix: str = "") -> tuple[list[str], Any, set[str]]:
    """Compare plain data with a section class, keys and values, strictly (`"5"` is no number, `1` is not true).

    Args:
        prefix: what stands before every path, for example "model.".

    Returns:
        The problems; the data, misspelt keys and kinds mended, unknown keys left out; the keys of `root` that are still wrong.
    """
    raw = json.loads(json.dumps(raw, default=str))
    problems: dict[str, None] = {}
    written: dict[Location, str] = {}
    while True:
        errors = _errors(root, raw)
        mended: set[Location] = set()
        for error in errors:
            problem = _mend(root, raw, error, prefix, written, mended)
            if problem:
                problems[problem] = None
        rest = [e for e in errors if e["type"] not in _MENDED and _place(root, e)[1] not in mended]
        problems |= dict.fromkeys(_describe(root, rest, prefix, written))
        if not any(e["type"] in _MENDED and not e.get("hopeless") for e in errors):
            return list(problems), raw, {str(e["loc"][0]) for e in errors if e["loc"]}


def _errors(root: type[BaseModel], raw: Any) -> list[dict[str, Any]]:
    try:
        root.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        return [dict(e) for e in error.errors()]
    return []


# --- where ------------------------------------------------------------------------------------------------------------


def _alternatives(annotation: Any) -> list[Any]:
    """The arms of a union, None left out; anything else is its own only alternative."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    arms = [a for a in get_args(annotation) if a is not NoneType]
    return arms if len(arms) > 1 else _alternatives(arms[0])


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _kind_key(section: type[BaseModel]) -> tuple[str, str]:
    """The key that tells this alternative from the others, and its value: ("by", "hash")."""
    for name, field in section.model_fields.items():
        if field.is_required() and get_origin(field.annotation) is Literal:
            return name, get_args(field.annotation)[0]
    return "", ""


def _has_label(arm: Any, label: str | int) -> bool:
    """Whether pydantic puts `label` into the location of errors below this arm of a union."""
    if get_origin(arm) is Annotated:
        return any(isinstance(m, Tag) and m.tag == label for m in get_args(arm)[1:])
    if _is_section(arm):
        return label in (_kind_key(arm)[1], arm.__name__)
    return str(label).startswith("literal[") if get_origin(arm) is Literal else label == getattr(arm, "__name__", None)


def _walk(annotation: Any, location: Location) -> tuple[Any, Location]:
    """What may stand at a location, and the location without the labels of union arms, which no user wrote."""
    arms = _alternatives(annotation)
    if len(arms) > 1:
        if not location:
            return annotation, ()
        return _walk(next(a for a in arms if _has_label(a, location[0])), location[1:])
    only = arms[0]
    if not location:
        return only, ()
    below: Any = Any
    if _is_section(only):
        field = only.model_fields.get(str(location[0]))
        below = field.annotation if field else Any
    elif get_origin(only) in (list, tuple):
        below = get_args(only)[0]
    elif get_origin(only) is dict:
        below = get_args(only)[1]
    end, shown = _walk(below, location[1:])
    return end, (location[0], *shown)


def _place(root: type[BaseModel], error: dict[str, Any]) -> tuple[Any, Location]:
    return _walk(root, tuple(error["loc"]))


def _path(prefix: str, location: Location, written: dict[Location, str]) -> str:
    parts = [written.get(location[: i + 1], part) for i, part in enumerate(location)]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return prefix + text.removeprefix(".")


def _homes(root: type[BaseModel], key: str, path: str = "") -> Iterator[str]:
    """Dotted paths of the sections' keys with this name."""
    for name, field in root.model_fields.items():
        if name == key and path:
            yield f"{path}{name}"
        arms = _alternatives(field.annotation)
        if len(arms) == 1 and _is_section(arms[0]):
            yield from _homes(arms[0], key, f"{path}{name}.")


# --- mending ----------------------------------------------------------------------------------------------------------

_MENDED = ("extra_forbidden", "union_tag_invalid", "union_tag_not_found")


def _mend(
    root: type[BaseModel], raw: Any, error: dict[str, Any], prefix: str, written: dict[Location, str], mended: set[Location]
) -> str:
    """Mend one error in `raw` and say what it was; "" for errors that cannot be mended."""
    if error["type"] not in _MENDED:
        return ""
    end, location = _place(root, error)
    if error["type"] == "extra_forbidden":
        section, *_ = _walk(root, tuple(error["loc"])[:-1])
        holder, key = _at(raw, location[:-1]), str(location[-1])
        path, given, allowed = _path(prefix, location, written), holder.pop(key), list(section.model_fields)
        name = nearest_name(key, allowed)
        if name and name not in holder:
            holder[name] = given
            written[(*location[:-1], name)] = key
            mended.add((*location[:-1], name))
        homes = [] if name else list(_homes(root, key))
        hint = f"; did you mean {name!r}?" if name else f"; it belongs at {' or '.join(homes)}." if homes else "."
        return f"{path}: unknown key (given {short(given)}){hint} Allowed here: {', '.join(allowed)}"
    holder = _at(raw, location)
    kinds = dict(_kind_key(arm)[::-1] for arm in _alternatives(end))
    key = next(iter(kinds.values()))
    if error["type"] == "union_tag_invalid":
        given, name = holder[key], nearest_name(holder[key], kinds)
        path = _path(prefix, (*location, key), written)
        if name:
            holder[key] = name
        error["hopeless"] = not name
        return f"{path}: given {short(given)}; allowed: {', '.join(kinds)}{nearest(given, kinds)}"
    name = nearest_name(key, holder)
    if name:
        path = _path(prefix, (*location, name), written)
        holder[key] = holder.pop(name)
        written[(*location, key)] = name
        return f"{path}: unknown key (given {short(holder[key])}); did you mean {key!r}?"
    error["hopeless"] = True
    return f"{_path(prefix, (*location, key), written)}: required, and not given; allowed: {', '.join(kinds)}"


def _at(raw: Any, location: Location) -> Any:
    for part in location:
        raw = raw[part]
    return raw


# --- describing -------------------------------------------------------------------------------------------------------


def _describe(root: type[BaseModel], errors: list[dict[str, Any]], prefix: str, written: dict[Location, str]) -> Iterator[str]:
    """One sentence per place; the arms of a union such as `float | Literal` are told in one."""
    places: dict[Location, list[tuple[dict[str, Any], Any]]] = {}
    for error in errors:
        end, location = _place(root, error)
        places.setdefault(location, []).append((error, end))
    for location, found in places.items():
        path, first = _path(prefix, location, written), found[0][0]
        given = first["input"]
        if first["type"] == "missing" and isinstance(location[-1], int):
            pair, _ = _walk(root, tuple(first["loc"])[:-1])
            yield f"{_path(prefix, location[:-1], written)}: given {short(given)}; must be a list of {len(get_args(pair))}"
            continue
        if first["type"] == "missing":
            yield f"{path}: required, and not given"
            continue
        names = [str(name) for error, end in found if error["type"] == "literal_error" for name in get_args(end)]
        wanted = [_expected(error) for error, _ in found if error["type"] != "literal_error"]
        if "a number" in wanted and "a whole number" in wanted:
            wanted.remove("a whole number")
        hint = nearest(given, names) or _hint({e["type"] for e, _ in found}, given, found[0][1])
        if names and not wanted:
            yield f"{path}: given {short(given)}; allowed: {', '.join(names)}{hint}"
        else:
            wanted += [f"one of: {', '.join(names)}"] if names else []
            yield f"{path}: given {short(given)}; must be {' or '.join(dict.fromkeys(wanted))}{hint}"


def _expected(error: dict[str, Any]) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "too_short" and error["ctx"]["field_type"] == "Dictionary":
        return "a section that is not empty"
    limits = {k: f"{v:g}" if isinstance(v, float) else v for k, v in error.get("ctx", {}).items()}
    return _EXPECTED.get(error["type"], error["msg"]).format(**limits)


def _hint(types: set[str], given: Any, end: Any) -> str:
    """The way to write a value that has the right content and the wrong form."""
    if types & {"int_type", "int_from_float"} and isinstance(given, float) and given.is_integer():
        return f"; write {int(given)}"
    if "string_type" in types and isinstance(given, int | float):
        return "; write it in quotes"
    if types & {"int_type", "float_type"} and isinstance(given, str) and given.replace(".", "", 1).isdigit():
        return "; leave the quotes out"
    if types & {"list_type", "tuple_type"} and isinstance(given, str | int | float):
        return f"; write [{given}]"
    arms = _alternatives(end)
    if "dict_type" in types and isinstance(given, str) and all(map(_is_section, arms)):
        kinds = [_kind_key(arm) for arm in arms]
        near = nearest_name(given, [value for _, value in kinds])
        return f"; write {{{kinds[0][0]}: {near}}}" if near else ""
    return ""
