"""Requests' rows straight to the graph's slots: what `RowCodec`, `Transforms.encode` and `SlotLayout.fill` do, one row at a time.

The rules are the transforms' own (`known`, `list_finder`, `encode_value`); here they are only put side by side. Where one of
them is undecided, the vectorised path reads the row instead, or words the error; it reads all rows where covisitation features are
computed. Shapes: S slots, D dense features.
"""

from collections.abc import Callable, Sequence
from operator import add, getitem, itemgetter
from typing import Any

import numpy as np

from ..data.plain_values import RowsByValue, Undecided
from ..data.transforms import NumericTransform, Transforms
from .codec import Row, RowCodec
from .messages import encode_json
from .row_reader import RowReader
from .slots import SlotLayout


class RowEncoder:
    """Encodes rows for one graph.

    Args:
        transforms: of the features that the graph reads.
        layout: where their ids stand.

    Attributes:
        reader: reads rows as JSON bytes; None where C cannot.
        num_slots, num_dense: S and D.
    """

    def __init__(self, transforms: Transforms, layout: SlotLayout) -> None:
        self._transforms = transforms
        self._layout = layout
        self._codec = RowCodec(transforms)
        self.reader = RowReader.of(transforms, layout)
        columns: list[str] = []
        self._parts: list[_Singles | _Many] = []
        for slot in layout.slots:
            feature = transforms.features[slot.feature]
            assert not isinstance(feature, NumericTransform)
            table = transforms.tables[feature.table]
            if feature.many:
                rows_of = feature.list_finder(table)
                self._parts.append(_Many(len(columns), rows_of, slot.first_row, slot.num_slots))
            else:
                last = self._parts[-1] if self._parts else None
                if not isinstance(last, _Singles):
                    last = _Singles(len(columns))
                    self._parts.append(last)
                last.append(table.known, slot.first_row)
            columns.append(feature.column)
        self._first_number = len(columns)
        self._numbers: list[Callable[[Any], float]] = []
        for feature in transforms.features.values():
            if isinstance(feature, NumericTransform):
                self._numbers.append(feature.encode_value)
                columns.append(feature.column)
        self._columns = tuple(columns)
        self._distinct = frozenset(columns)
        self._values = itemgetter(*columns) if len(columns) > 1 else lambda row: (row[columns[0]],)
        self._aligned = [
            (feature.column, transforms.columns[feature.aligned_with])
            for feature in transforms.features.values()
            if not isinstance(feature, NumericTransform) and feature.aligned_with
        ]
        self.num_slots = layout.num_slots
        self.num_dense = len(self._numbers)

    def encode(self, rows: Sequence[Row], *, first_row: int = 0, from_json: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Flat table rows [N, S] int64 and numeric features [N, D] float32 of N rows.

        Args:
            first_row: 0-based number of the first row, for errors.
            from_json: whether the rows hold nothing but what JSON can say, which C reads faster.

        Raises:
            ValueError: for unknown keys and for values that the model cannot take, with feature, column and row (1-based).
        """
        if self._transforms.states:
            return self._encode_vectorised(rows, first_row)
        ids_NS, dense_ND = np.empty((len(rows), self.num_slots), np.int64), np.empty((len(rows), self.num_dense), np.float32)
        ids_at, dense_at = ids_NS.ctypes.data, dense_ND.ctypes.data
        for index, row in enumerate(rows):
            if from_json and self._read(row, ids_at + index * ids_NS.strides[0], dense_at + index * dense_ND.strides[0]):
                continue
            ids: list[int] = []
            dense: list[float] = []
            try:
                self._encode_row(row, ids, dense)
            except (Undecided, TypeError):  # TypeError: a list or an object where a value is expected
                ids_NS[index:], dense_ND[index:] = self._encode_vectorised(rows[index:], first_row + index)
                break
            ids_NS[index], dense_ND[index] = ids, dense
        return ids_NS, dense_ND

    def _read(self, row: Row, ids: int, dense: int) -> bool:
        try:
            return self.reader is not None and self.reader.read(encode_json(row), ids, dense)
        except OverflowError:  # an integer of more than 64 bits
            return False

    def _encode_row(self, row: Row, ids: list[int], dense: list[float]) -> None:
        values = self._values_of(row)
        for column, other in self._aligned:
            one, two = row.get(column), row.get(other)
            if type(one) is not list or type(two) is not list or len(one) != len(two):
                raise Undecided
        for part in self._parts:
            part.encode(values, ids)
        for number_of, value in zip(self._numbers, values[self._first_number :]):
            dense.append(number_of(value))

    def _values_of(self, row: Row) -> tuple[Any, ...]:
        """One value per feature with ids, in the order of the slots, then one per numeric feature; None where the row has none."""
        if type(row) is not dict:
            raise Undecided
        if len(row) == len(self._distinct):
            try:
                return self._values(row)
            except KeyError:
                pass
        if not row.keys() <= self._distinct:
            raise Undecided
        return tuple(map(row.get, self._columns))

    def _encode_vectorised(self, rows: Sequence[Row], first_row: int) -> tuple[np.ndarray, np.ndarray]:
        table = self._codec.table(rows, first_row=first_row)
        encoded = self._transforms.encode(table, where=self._codec.where, first_row=first_row)
        return self._layout.fill(encoded), encoded.dense


class _Singles:
    """Features of one id each, side by side in the slots, the first of them at `position` in a row's values."""

    def __init__(self, position: int) -> None:
        self._values = slice(position, position)
        self._tables: list[RowsByValue] = []
        self._first_rows: list[int] = []

    def append(self, table: RowsByValue, first_row: int) -> None:
        self._values = slice(self._values.start, self._values.stop + 1)
        self._tables.append(table)
        self._first_rows.append(first_row)

    def encode(self, values: tuple[Any, ...], ids: list[int]) -> None:
        ids.extend(map(add, self._first_rows, map(getitem, self._tables, values[self._values])))


class _Many:
    """One feature of several ids, padded to `num_slots` with zeros."""

    def __init__(self, position: int, rows_of: Callable[[Any], list[int]], first_row: int, num_slots: int) -> None:
        self._position = position
        self._rows_of = rows_of
        self._add_first_row = first_row.__add__
        self._padding = [(0,) * (num_slots - n) for n in range(num_slots + 1)]

    def encode(self, values: tuple[Any, ...], ids: list[int]) -> None:
        rows = self._rows_of(values[self._position])
        ids.extend(map(self._add_first_row, rows))
        ids.extend(self._padding[len(rows)])
