"""From an OpenRTB request to the raw columns that a model reads. Paths are checked and compiled once, when the server starts.

A path is `site.domain`, `imp.banner.w`, `user.data[*].segment[*].id` (a list), `user.data[0].name`, `device.ext.anything`. Its root
is a field of the request, or one of: `imp` (the impression being priced), `creative` and `campaign` (who would bid), `time`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from operator import attrgetter
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from msgspec import Struct

from ..config.errors import ConfigError, nearest
from .bid_config import BidConfig, CampaignConfig, CreativeConfig, TimeConfig
from .codec import Column
from .openrtb import BidRequest, Imp

Getter = Callable[[Any], Any]
Row = dict[str, Any]

CREATIVE_KEYS, CAMPAIGN_KEYS, TIME_KEYS = ("id", "w", "h"), ("id",), ("hour", "weekday")
_PART = re.compile(r"([A-Za-z_]\w*)((?:\[(?:\d+|\*)\])*)$")
_INDEX = re.compile(r"\[(\d+|\*)\]")


def plain_type(annotation: Any) -> Any:
    """The type without None and without bounds; of any sequence, the list that it is decoded to."""
    if get_origin(annotation) is Annotated:
        return plain_type(get_args(annotation)[0])
    if get_origin(annotation) is Sequence:
        return list[get_args(annotation)[0]]  # type: ignore[misc]
    if get_origin(annotation) in (Union, UnionType):
        return plain_type(next(a for a in get_args(annotation) if a is not type(None)))
    return annotation


@dataclass(frozen=True)
class Path:
    """A compiled path: `get(root)` is a value, a list where `many`, or None where anything on the way is missing.

    Attributes:
        steps: a name, an index, or None for every element.
    """

    text: str
    get: Getter
    many: bool
    steps: tuple[str | int | None, ...]


def compile_path(text: str, root: type[Struct]) -> Path:
    """Check a path below `root` against the standard's fields and compile it.

    Raises:
        ValueError: for a field that is not there, an index into what is no list, or a path that ends in an object.
    """
    kind: Any = root
    steps: list[str | int | None] = []  # a name, an index, or None for every element
    for part in text.split("."):
        match = _PART.match(part)
        if not match:
            raise ValueError(f"{part!r} is not a field; write it like user.data[0].segment[*].id")
        name, indices = match.groups()
        if kind is not Any:
            fields = get_type_hints(kind, include_extras=True)
            if name not in fields:
                known = ", ".join(fields)
                raise ValueError(f"{kind.__name__} has no field {name!r}{nearest(name, fields)}; those read here: {known}")
            kind = plain_type(fields[name])
            kind = Any if get_origin(kind) is dict else kind
        steps.append(name)
        for index in _INDEX.findall(indices):
            if kind is not Any and get_origin(kind) is not list:
                raise ValueError(f"{name!r} is no list; leave [{index}] out")
            kind = Any if kind is Any else plain_type(get_args(kind)[0])
            steps.append(None if index == "*" else int(index))
        if part != text.rpartition(".")[2] and get_origin(kind) is list:
            raise ValueError(f"{name!r} is a list; write {name}[*] or {name}[0]")
    if isinstance(kind, type) and issubclass(kind, Struct):
        raise ValueError(f"ends in an object; go on with one of {', '.join(get_type_hints(kind))}")
    many = None in steps or get_origin(kind) is list
    if get_origin(kind) is list and None in steps:
        raise ValueError("gives lists in a list; add [*] at the end")
    if many and None not in steps:
        return Path(text, _compile(steps), many, (*steps, None))
    return Path(text, _compile(steps), many, tuple(steps))


def _compile(steps: list[str | int | None], *, below_ext: bool = False) -> Getter:
    """Below `ext` anything can stand; everything else is a Struct, a list of the standard's type, or None."""
    if None in steps:
        at = steps.index(None)
        below = below_ext or "ext" in steps[:at]
        outer, inner = _compile(steps[:at], below_ext=below_ext), _compile(steps[at + 1 :], below_ext=below)
        is_nested = None in steps[at + 1 :]

        def flatten(root: Any) -> list[Any] | None:
            elements = outer(root)
            if not isinstance(elements, list):
                return None
            found = [v for element in elements if (v := inner(element)) is not None]
            return [v for one in found for v in one] if is_nested else found

        return flatten
    if all(isinstance(step, str) for step in steps):
        names = tuple(step for step in steps if isinstance(step, str))
        if names and "ext" not in names and not below_ext:
            return _attributes(names)

        def walk(value: Any) -> Any:
            for name in names:
                value = value.get(name) if type(value) is dict else getattr(value, name, None)
            return value

        return walk

    def walk_lists(value: Any) -> Any:
        for step in steps:
            if isinstance(step, int):
                value = value[step] if isinstance(value, list) and step < len(value) else None
            else:
                value = value.get(step) if type(value) is dict else getattr(value, step or "", None)
        return value

    return walk_lists


def _attributes(names: tuple[str, ...]) -> Getter:
    """The same walk where every step is a field of a Struct; with one or two steps unrolled, since every request takes it."""
    if len(names) == 1:
        return attrgetter(names[0])
    first, rest = attrgetter(names[0]), _attributes(names[1:])

    def walk(value: Any) -> Any:
        value = first(value)
        return None if value is None else rest(value)

    return walk


# --- time -------------------------------------------------------------------------------------------------------------


class LocalTime:
    """Hour and weekday of a request in the local time that the model knows."""

    def __init__(self, config: TimeConfig) -> None:
        self.config = config
        self.path = compile_path(config.path, BidRequest) if config.path else None
        self.offset = timedelta(minutes=config.utc_offset_minutes)
        self.shift = 1 if config.first_weekday == "sunday" else 0

    def __call__(self, request: BidRequest, now: float) -> dict[str, int | None]:
        """{"hour": 0 .. 23, "weekday": 0 .. 6}; None where the request lacks the timestamp.

        Raises:
            ValueError: for a timestamp that is not of the configured format.
        """
        given = now if self.path is None else self.path.get(request)
        if given is None:
            return {"hour": None, "weekday": None}
        return self.of(given)

    def of(self, given: Any) -> dict[str, int | None]:
        """Likewise of a timestamp.

        Raises:
            ValueError: for one that is not of the configured format.
        """
        try:
            local = self._local(given)
        except (ValueError, TypeError, OverflowError, OSError):
            raise ValueError(
                f"{given!r:.80} is not a time of the format {self.config.format!r} - at `$.{self.config.path}`"
            ) from None
        return {"hour": local.hour, "weekday": (local.weekday() + self.shift) % 7}

    def _local(self, given: Any) -> datetime:
        if self.path is not None and self.config.format not in ("unix_seconds", "unix_milliseconds"):
            return datetime.strptime(given, self.config.format)
        seconds = float(given) / 1000 if self.path and self.config.format == "unix_milliseconds" else float(given)
        return datetime.fromtimestamp(seconds, timezone.utc) + self.offset


# --- the whole mapping ------------------------------------------------------------------------------------------------


def _joined(get: Getter, separator: str) -> Getter:
    """The getter with lists as the text that the column's feature cuts again."""

    def joined(root: Any) -> Any:
        value = get(root)
        return separator.join(map(str, value)) if isinstance(value, list) else value

    return joined


class Source(NamedTuple):
    """Where a column stands in a request: below the impression, or below the request; a `separator` makes one text of its list."""

    path: Path
    separator: str
    is_of_imp: bool


class OfferRow(Struct, gc=False):
    """What a row is about: an impression's place among the request's, and the values of the columns that say who bids on it."""

    imp: int
    values: tuple[Any, ...]


class RowMapping:
    """Fills the raw columns of a model.

    Args:
        config: bid.yaml.
        columns: what the model reads, `RowCodec.columns`.
        separators: of the columns that are cut at one, by column.

    Attributes:
        time: what `time.hour` and `time.weekday` are.
        sources: of the columns that stand in a request, by column.
        of_time, of_offer: what fills the other columns: a key of `time`; a root and its key.
        constants: what fills the rest.

    Raises:
        ConfigError: with every column that is unknown, not filled, or filled from a path that does not fit.
    """

    def __init__(self, config: BidConfig, columns: Mapping[str, Column], separators: Mapping[str, str]) -> None:
        problems: list[str] = []
        self._of_request: list[tuple[str, Getter]] = []
        self._of_imp: list[tuple[str, Getter]] = []
        self.sources: dict[str, Source] = {}
        self.of_offer: dict[str, tuple[str, str]] = {}
        self.of_time: dict[str, str] = {}
        self.constants = {**config.constants, **dict.fromkeys(config.left_missing)}
        try:
            self.time = LocalTime(config.time)
        except ValueError as error:
            problems.append(f"time.path: {error}")
        given = {**{n: f"columns.{n}" for n in config.columns}, **{n: f"constants.{n}" for n in config.constants}}
        given |= dict.fromkeys(config.left_missing, "left_missing")
        for name, where in given.items():
            if name not in columns:
                hint = nearest(name, columns)
                problems.append(f"{where}: the model has no column {name!r}{hint}; it reads: {', '.join(columns)}")
        for name, text in config.columns.items():
            if name in columns:
                try:
                    self._add(columns[name], text, separators.get(name, ""))
                except ValueError as error:
                    problems.append(f"columns.{name}: {text!r}: {error}")
        unfilled = [name for name in columns if name not in given]
        if unfilled:
            names = ", ".join(unfilled)
            problems.append(f"columns: the model also reads {names}; give a path, a constant, or name them in left_missing")
        if problems:
            raise ConfigError("bid config", problems)

    def _add(self, column: Column, text: str, separator: str) -> None:
        root, _, rest = text.partition(".")
        roots = {"creative": CREATIVE_KEYS, "campaign": CAMPAIGN_KEYS, "time": TIME_KEYS}
        if root in roots:
            if rest not in roots[root]:
                raise ValueError(f"{root} has: {', '.join(roots[root])}{nearest(rest, roots[root])}")
            if column.expects == "list":
                raise ValueError("gives one value, and the column takes lists")
            if root == "time":
                self.of_time[column.name] = rest
            else:
                self.of_offer[column.name] = (root, rest)
            return
        if root.startswith("imp["):
            raise ValueError("write imp without an index; it is the impression that is being priced, whichever of several")
        path = compile_path(rest, Imp) if root == "imp" else compile_path(text, BidRequest)
        if path.many and column.expects == "one":
            raise ValueError("gives a list, and the column takes one value; give an index in place of [*]")
        if not path.many and column.expects == "list" and ".ext." not in f".{text}":
            raise ValueError("gives one value, and the column takes lists")
        is_joined = column.expects == "text" and path.many
        get = _joined(path.get, separator) if is_joined else path.get
        (self._of_imp if root == "imp" else self._of_request).append((column.name, get))
        self.sources[column.name] = Source(path, separator if is_joined else "", root == "imp")

    def offer_values(self, campaign: CampaignConfig, creative: CreativeConfig) -> tuple[Any, ...]:
        """The values of the columns `of_offer`: what tells the rows of two creatives for one impression apart."""
        roots: dict[str, Any] = {"campaign": campaign, "creative": creative}
        return tuple(getattr(roots[root], key) for root, key in self.of_offer.values())

    def place_of(self, column: str, imp: int | None) -> str:
        """Where a column's value stands: `$.imp[0].banner.w` in the request, `constants.size` in bid.yaml; empty for no column.

        Args:
            imp: the impression's place among the request's; None for any of them.
        """
        if column in self.sources:
            source = self.sources[column]
            return f"$.imp[{'*' if imp is None else imp}].{source.path.text}" if source.is_of_imp else f"$.{source.path.text}"
        if column in self.of_time:
            return f"$.{self.time.config.path}" if self.time.path else f"time.{self.of_time[column]}"
        if column in self.of_offer:
            return ".".join(self.of_offer[column])
        if column in self.constants:
            return f"left_missing: {column}" if self.constants[column] is None else f"constants.{column}"
        return ""

    def rows(self, request: BidRequest, offered: Iterable[OfferRow], now: float) -> list[Row]:
        """The rows to score.

        Raises:
            ValueError: for a timestamp that is none.
        """
        shared = dict(self.constants)
        for column, get in self._of_request:
            shared[column] = get(request)
        if self.of_time:
            time = self.time(request, now)
            for column, key in self.of_time.items():
                shared[column] = time[key]
        found = []
        for offer in offered:
            row = shared | {column: get(request.imp[offer.imp]) for column, get in self._of_imp}
            found.append(row | dict(zip(self.of_offer, offer.values)))
        return found
