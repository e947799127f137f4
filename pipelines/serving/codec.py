"""Rows as a program gives them (dicts of plain values) to the Arrow table that the transforms read.

What a column accepts follows from the fitted transforms alone, and is what they accept in a Parquet column; each value is read
by itself, so a row's answer never depends on the rows beside it. Runs in exported bundles: numpy and pyarrow only.
"""

import decimal
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..data.ids import Hash, Vocabulary
from ..data.transforms import NumericTransform, Transforms
from ..data.values import Kind, Place, numbers, of_feature, shown, strings

Row = Mapping[str, Any]
_TEXT = (str, bytes)
_SINGLE = (*_TEXT, int, float, decimal.Decimal, np.generic)
_LIST = (list, tuple, np.ndarray)


@dataclass(frozen=True)
class Column:
    """One raw column.

    Attributes:
        name: its name.
        feature: the feature that reads it (the first of several).
        kind: what single values become when a batch mixes text and numbers.
        expects: "one" value, a "list" of values, or "text" to be cut at a separator.
    """

    name: str
    feature: str
    kind: Kind
    expects: str


class RowCodec:
    """Reads rows for fitted transforms.

    Args:
        where: what errors call the rows.
    """

    def __init__(self, transforms: Transforms, *, where: str = "rows") -> None:
        self.where = where
        self.columns: dict[str, Column] = {}
        for name, feature in transforms.features.items():
            if name in transforms.states:
                for column, state_kind in transforms.states[name].kinds.items():
                    self._read(column, name, state_kind, "one")
                continue
            kind: Kind = "number"
            expects = "one"
            if not isinstance(feature, NumericTransform):
                table = transforms.tables[feature.table]
                kind = table.kind if isinstance(table, (Vocabulary, Hash)) else "number"
                expects = "text" if feature.separator else "list" if feature.many else "one"
            self._read(feature.column, name, kind, expects)

    def _read(self, column: str, feature: str, kind: Kind, expects: str) -> None:
        known = self.columns.get(column)
        if known is None or kind == "string":  # text keeps every value as it was given
            self.columns[column] = Column(column, known.feature if known else feature, kind, expects)

    def table(self, rows: Sequence[Row], *, first_row: int = 0) -> pa.Table:
        """N rows as columns. A key that a row lacks is a missing value.

        Args:
            first_row: 0-based number of the first row, for errors.

        Raises:
            ValueError: for unknown keys and for values of a wrong type, with row and feature.
        """
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise ValueError(f"{self.where}: data row {first_row + index + 1}: a dict is expected, got {shown(row)}")
            if not row.keys() <= self.columns.keys():
                self._refuse_unknown(row, first_row + index)
        return pa.table(
            {name: self._array(column, [row.get(name) for row in rows], first_row) for name, column in self.columns.items()}
        )

    def _refuse_unknown(self, row: Row, index: int) -> None:
        unknown = next(key for key in row if key not in self.columns)
        close = difflib.get_close_matches(str(unknown), self.columns, 1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        known = ", ".join(self.columns)
        raise ValueError(f"{self.where}: data row {index + 1}: unknown key {unknown!r}{hint} The model reads: {known}")

    def _array(self, column: Column, values: list[Any], first_row: int) -> pa.Array:
        place = Place(self.where, column.name, first_row)
        try:
            if column.expects != "list":
                return _single_values(values, column, place)
            _check_types(values, _LIST, "a list", place)
            lists = [[] if v is None else list(v) for v in values]
            offsets = np.concatenate([[0], np.cumsum([len(v) for v in lists], dtype=np.int64)])
            flat = _single_values([v for one in lists for v in one], column, place.with_offsets(offsets))
            return pa.LargeListArray.from_arrays(pa.array(offsets), flat)
        except ValueError as error:
            raise of_feature(error, column.feature) from None


def _check_types(values: list[Any], allowed: tuple[type, ...], what: str, place: Place) -> None:
    for found in set(map(type, values)):
        if found is not type(None) and not issubclass(found, allowed):
            index = next(i for i, v in enumerate(values) if type(v) is found)
            raise place.error(index, f"{what} is expected, got {shown(values[index])} ({found.__name__})")


def _single_values(values: list[Any], column: Column, place: Place) -> pa.Array:
    if column.expects == "text":
        _check_types(values, _TEXT, "separated text", place)
    else:
        _check_types(values, _SINGLE, "a single text or number", place)
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        return _one_by_one(values, column.kind, place)


def _one_by_one(values: list[Any], kind: Kind, place: Place) -> pa.Array:
    """Values of mixed types: all as text, or all as numbers."""
    out: list[Any] = []
    for index, value in enumerate(values):
        try:
            one = pa.array([value])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
            raise place.error(index, f"{shown(value)} cannot be read: {error}") from None
        if kind == "string":
            out.append(strings(one, Place("", "")).to_pylist()[0])
            continue
        try:
            number, missing = numbers(one, Place("", ""))
        except ValueError:
            raise place.error(index, f"{shown(value)} is not a number that fits 64 bits") from None
        out.append(None if missing[0] else number[0].item())
    try:
        return pa.array(out)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise place.error(0, f"the column mixes fractions with integers beyond 2^53; give the latter as text ({error})") from None
