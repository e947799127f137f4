"""Reads and writes a config's text: YAML with 1.2 numbers and booleans, no key twice, column patterns, `key=value` overrides."""

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

MAX_NAMES = 100_000  # of one pattern; more is a slip of the keyboard


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars: `1e-3` is a float, `on`, `yes` and dates are text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9][0-9_]*$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace("_", ""))


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:float", _float)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)


def read_yaml(text: str, problems: list[str]) -> Any:
    """The text as dicts (keys are text, always), lists and scalars; appends what is wrong to `problems`."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _plain(loader, node, "", problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problems.append(f"not YAML{place}: {' '.join(filter(None, (error.context, error.problem)))}")
    except yaml.YAMLError as error:
        problems.append(f"not YAML: {str(error).splitlines()[0]}")
    return None


def _plain(loader: _Loader, node: yaml.Node, path: str, problems: list[str]) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, child, f"{path}[{i}]", problems) for i, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    out: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(f"{path or 'top level'}: the key in line {line} must be text")
            continue
        key = key_node.value
        here = f"{path}.{key}".removeprefix(".")
        if key in out:
            places = f"lines {lines[key]} and {line}" if line > lines[key] else f"line {line}"
            problems.append(f"{here}: given twice, in {places}")
        out[key], lines[key] = _plain(loader, value_node, here, problems), line
    return out


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 or YAML 1.1 would read as something else."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def write_yaml(content: Mapping[str, Any]) -> str:
    """A resolved config as text that `read_yaml` gives back unchanged."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


# --- column patterns --------------------------------------------------------------------------------------------------

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand(name: str) -> list[str]:
    """`C{1..3}` -> C1, C2, C3; `C{01..10}` keeps the zeros; any other name stands for itself.

    Raises:
        ValueError: a pattern that counts down or is not written like that.
    """
    match = _RANGE.search(name)
    if not match:
        if "{" in name or "}" in name:
            raise ValueError("not a column pattern; write one like C{1..26}")
        return [name]
    first, last = match.groups()
    if not 0 <= int(last) - int(first) < MAX_NAMES:
        raise ValueError(f"the pattern {match[0]} must count up, to at most {MAX_NAMES:,} names")
    width = len(first) if first.startswith("0") else 0
    tails = expand(name[match.end() :])
    return [f"{name[: match.start()]}{i:0{width}d}{tail}" for i in range(int(first), int(last) + 1) for tail in tails]


def expand_keys(section: dict[str, Any], path: str, written: dict[str, str], problems: list[str]) -> dict[str, Any]:
    """The section with every pattern key replaced by its names; `written` is told which key each name came from.

    A `column` that is a pattern of as many names gives each name its own.
    """
    out: dict[str, Any] = {}
    for key, value in section.items():
        try:
            names = expand(key)
            values = _expand_column(value, len(names)) if len(names) > 1 else [value]
        except ValueError as error:
            problems.append(f"{path}.{key}: {error}")
            continue
        for name, one in zip(names, values):
            if name in out:
                problems.append(f"{path}.{key}: {name!r} is given by {path}.{written[name]} already")
            out[name], written[name] = one, key
    return out


def _expand_column(value: Any, num_names: int) -> list[Any]:
    column = value.get("column") if isinstance(value, dict) else None
    if not isinstance(column, str) or not _RANGE.search(column):
        return [value] * num_names
    columns = expand(column)
    if len(columns) != num_names:
        raise ValueError(f"column {column!r} stands for {len(columns):,} names and the key for {num_names:,}; give as many")
    return [{**value, "column": one} for one in columns]


def expand_items(items: list[Any], path: str, problems: list[str]) -> list[Any]:
    """The list with every pattern in it replaced by its names."""
    out: list[Any] = []
    for i, item in enumerate(items):
        try:
            out += expand(item) if isinstance(item, str) else [item]
        except ValueError as error:
            problems.append(f"{path}[{i}]: {item!r}: {error}")
    return out


# --- overrides --------------------------------------------------------------------------------------------------------

_DOT = re.compile(r"\.(?![^{]*\})")  # not those of a pattern


def apply_overrides(raw: dict[str, Any], overrides: Iterable[str], problems: list[str]) -> None:
    """Set `dotted.path=value` in `raw`. The value is YAML; nothing after `=` is empty text."""
    seen: dict[str, str] = {}
    for text in overrides:
        path, equals, value_text = text.partition("=")
        parts = _DOT.split(path.strip())
        if not equals or not all(parts):
            problems.append(f"override {text!r}: write dotted.path=value, for example train.batch_size=1024")
            continue
        if path in seen:
            problems.append(f"override {text!r}: {path} is overridden twice, by {seen[path]!r} before")
        seen[path] = text
        wrong: list[str] = []
        value = read_yaml(value_text, wrong) if value_text else ""
        if wrong:
            problems += [f"override {text!r}: {w}" for w in wrong]
            continue
        try:
            _set(raw, parts, value)
        except ValueError as error:
            problems.append(f"override {text!r}: {error}")


def _set(node: dict[str, Any], parts: list[str], value: Any, done: str = "") -> None:
    part, *rest = parts
    if part not in node and _RANGE.search(part):
        for name in expand(part):
            _set(node, [name, *rest], copy.deepcopy(value), done)
        return
    _single_out(node, part)
    if not rest:
        node[part] = value
        return
    if node.get(part) is None:
        node[part] = {}
    below, done = node[part], f"{done}.{part}".removeprefix(".")
    if not isinstance(below, dict):
        raise ValueError(f"{done} is a list; give all of it" if isinstance(below, list) else f"{done} is {below!r}, not a section")
    _set(below, rest, value, done)


def _single_out(section: dict[str, Any], name: str) -> None:
    """Where a pattern key stands for `name` among others, write its names out, so that one of them can differ."""
    for key in [k for k in section if _RANGE.search(k) and k != name]:
        try:
            names = expand(key)
        except ValueError:
            continue  # reported where patterns are expanded
        if name in names:
            items = list(section.items())
            section.clear()
            for other, value in items:
                for each in names if other == key else [other]:
                    section[each] = copy.deepcopy(value)
            return
