"""One plain value at a time (text, int, float, bool, None), as a request brings them; values.py reads whole columns.

Arrow costs about a millisecond per row of twenty features; this costs microseconds. It decides only what is beyond doubt and raises
`Undecided` for everything else, errors included, so that every rule about odd values and every error text stays in values.py alone.
tests/serving/test_encoder.py holds both paths against each other. Runs in exported bundles too: numpy and pyarrow only.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from .values import Place, numbers, strings

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_DIGITS = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_NOWHERE = Place("", "")


class Undecided(Exception):
    """The vectorised path must read this row, or refuse it."""


class RowsByValue(dict[Any, int]):
    """Rows by plain value; those that are not there are found by `row_of`, and not kept unless it keeps them itself."""

    def __init__(self, row_of: Callable[[Any], int], rows: Iterable[tuple[Any, int]] = ()) -> None:
        super().__init__(rows)
        self._row_of = row_of

    def __missing__(self, value: Any) -> int:
        return self._row_of(value)


def plain_number(value: Any) -> int | float | None:
    """What `numbers` makes of a column of this one value: None where it is missing (None or NaN), and no -0.0."""
    kind = type(value)
    if kind is int:
        if _LOWEST <= value <= _HIGHEST:
            return value
        raise Undecided
    if kind is float:
        return value + 0.0 if value == value else None
    if value is None:
        return None
    if kind is bool:
        return int(value)
    if kind is not str:
        raise Undecided
    if _DIGITS.fullmatch(value):
        return int(value)
    try:
        number, missing = numbers(pa.array([value]), _NOWHERE)
    except ValueError:  # UnicodeEncodeError among them
        raise Undecided from None
    return None if missing[0] else number[0].item()


def plain_text(value: Any) -> str | None:
    """What `strings` makes of a column of this one value. Text is not checked to be UTF-8: see `check_text`."""
    kind = type(value)
    if kind is str:
        return value
    if value is None:
        return None
    if kind is int and _LOWEST <= value <= _HIGHEST:
        return str(value)
    if kind is not float and kind is not bool:
        raise Undecided
    return strings(pa.array([value]), _NOWHERE).to_pylist()[0]


def check_text(value: str) -> str:
    """`value`, which must have a UTF-8 form."""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Undecided from None
    return value


def plain_list(value: Any, *, as_text: bool) -> Sequence[Any]:
    """The values of a list whose meaning does not depend on one another: all integers, all floats, or all text.

    Args:
        as_text: whether they will be read as text; text read as numbers must be digits, else its neighbours decide how it is read.
    """
    if value is None:
        return ()
    if type(value) is not list:
        raise Undecided
    kinds = set(map(type, value))
    if kinds == {int}:
        if min(value) < _LOWEST or max(value) > _HIGHEST:
            raise Undecided
    elif kinds == {str}:
        if as_text:
            for one in value:
                check_text(one)
        elif not all(map(_DIGITS.fullmatch, value)):
            raise Undecided
    elif kinds and kinds != {float}:
        raise Undecided
    return value


def plain_pieces(value: Any, *, separator: str, as_text: bool) -> Sequence[str]:
    """The pieces of separated text, empty ones dropped."""
    if value is None:
        return ()
    if type(value) is not str:
        raise Undecided
    pieces = [piece for piece in check_text(value).split(separator) if piece]
    if not as_text and not all(map(_DIGITS.fullmatch, pieces)):
        raise Undecided
    return pieces
