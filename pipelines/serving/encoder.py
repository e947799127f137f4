"""Requests' rows straight to the graph's slots: what `RowCodec`, `Transforms.encode` and `SlotLayout.fill` do, one row at a time.

The rules are the transforms' own (`row_finder`, `list_finder`, `encode_value`); here they are only put side by side. Where one of
them is undecided, the vectorised path reads the row instead, or words the error. Shapes: S slots, D dense features.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ..data.plain_values import Undecided
from ..data.transforms import NumericTransform, Transforms
from .codec import Row, RowCodec
from .slots import SlotLayout


class RowEncoder:
    """Encodes rows for one graph.

    Args:
        transforms: of the features that the graph reads.
        layout: where their ids stand.
    """

    def __init__(self, transforms: Transforms, layout: SlotLayout) -> None:
        self._transforms = transforms
        self._layout = layout
        self._codec = RowCodec(transforms)
        self._columns = self._codec.columns.keys()
        self._numeric: list[tuple[str, Callable[[Any], float]]] = []
        self._single: list[tuple[str, int, int, dict[Any, int], Callable[[Any], int]]] = []
        self._many: list[tuple[str, int, int, Callable[[Any], list[int]]]] = []
        slots = {slot.feature: slot for slot in layout.slots}
        finders = {name: table.row_finder() for name, table in transforms.tables.items()}
        for name, feature in transforms.features.items():
            if isinstance(feature, NumericTransform):
                self._numeric.append((feature.column, feature.encode_value))
                continue
            slot = slots[name]
            if feature.many:
                rows_of = feature.list_finder(transforms.tables[feature.table])
                self._many.append((feature.column, slot.first_slot, slot.first_row, rows_of))
            else:
                known = transforms.tables[feature.table].known
                self._single.append((feature.column, slot.first_slot, slot.first_row, known, finders[feature.table]))
        self._aligned = [
            (feature.column, transforms.columns[feature.aligned_with])
            for feature in transforms.features.values()
            if not isinstance(feature, NumericTransform) and feature.aligned_with
        ]
        self.num_slots = layout.num_slots
        self.num_dense = len(self._numeric)

    def encode(self, rows: Sequence[Row], *, first_row: int = 0) -> tuple[list[int], list[float]]:
        """Flat table rows and numeric features of N rows, one row after another: N * S and N * D numbers.

        Args:
            first_row: 0-based number of the first row, for errors.

        Raises:
            ValueError: for unknown keys and for values that the model cannot take, with feature, column and row (1-based).
        """
        ids: list[int] = []
        dense: list[float] = []
        for index, row in enumerate(rows):
            try:
                self._encode_row(row, ids, dense)
            except Undecided:
                del ids[index * self.num_slots :], dense[index * self.num_dense :]
                more_ids, more_dense = self._encode_vectorised(rows[index:], first_row + index)
                return ids + more_ids, dense + more_dense
        return ids, dense

    def _encode_row(self, row: Row, ids: list[int], dense: list[float]) -> None:
        if type(row) is not dict or not row.keys() <= self._columns:
            raise Undecided
        get = row.get
        for column, other in self._aligned:
            one, two = get(column), get(other)
            if type(one) is not list or type(two) is not list or len(one) != len(two):
                raise Undecided
        out = [0] * self.num_slots
        for column, slot, first_row, known, row_of in self._single:
            value = get(column)
            try:
                out[slot] = first_row + known[value]
            except (KeyError, TypeError):  # TypeError: a list or an object
                out[slot] = first_row + row_of(value)
        for column, slot, first_row, rows_of in self._many:
            for found in rows_of(get(column)):
                out[slot] = first_row + found
                slot += 1
        ids += out
        for column, number_of in self._numeric:
            dense.append(number_of(get(column)))

    def _encode_vectorised(self, rows: Sequence[Row], first_row: int) -> tuple[list[int], list[float]]:
        table = self._codec.table(rows, first_row=first_row)
        encoded = self._transforms.encode(table, where=self._codec.where, first_row=first_row)
        return self._layout.fill(encoded).ravel().tolist(), encoded.dense.ravel().tolist()
