"""Where each feature's ids stand in the exported graph's `ids` input, and how encoded rows are put there.

Shapes in names: B rows, S slots, W stored floats per table row.

All tables of one width are stacked into one flat table whose row 0 is zero. A feature has `max_len` slots; a slot holds the
flat row of an id, or 0 where the row has no id there. An empty slot therefore adds nothing to a sum, and no mask is needed.
Runs in exported bundles: numpy only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np

from torchrec_models.schema import Feature, Schema, Side

Reduce = Literal["sum", "mean", "none"]


class EncodedIds(Protocol):
    """What is read of an `Encoded`: per feature, (values [n], offsets [N + 1]), or (values [N], None) for one id per row."""

    @property
    def num_rows(self) -> int: ...

    @property
    def ids(self) -> Mapping[str, tuple[np.ndarray, np.ndarray | None]]: ...


@dataclass(frozen=True)
class FeatureSlots:
    """The slots of one feature.

    Attributes:
        feature: its name.
        width: embedding width of its table; equal widths share a flat table and stand side by side.
        first_slot, num_slots: its columns of `ids`.
        first_row, num_rows: its table's rows of the flat table; id i is flat row `first_row + i`.
        reduce: how its vectors become one; "none" for a sequence.
        one_per_row: whether every row has exactly one id.
    """

    feature: str
    width: int
    first_slot: int
    num_slots: int
    first_row: int
    num_rows: int
    reduce: Reduce
    one_per_row: bool


@dataclass(frozen=True)
class SlotLayout:
    """The slots of all features, in the order of the graph's `ids` input."""

    slots: tuple[FeatureSlots, ...]

    @property
    def num_slots(self) -> int:
        return sum(s.num_slots for s in self.slots)

    @cached_property
    def _single_columns(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        singles = [s for s in self.slots if s.one_per_row]
        columns = np.array([s.first_slot for s in singles], np.int64)
        return [s.feature for s in singles], columns, np.array([s.first_row for s in singles], np.int64)

    def fill(self, encoded: EncodedIds) -> np.ndarray:
        """Flat table rows [N, S] int64, 0 in empty slots."""
        out_BS = np.zeros((encoded.num_rows, self.num_slots), np.int64)
        names, columns, first_rows = self._single_columns
        if names:
            out_BS[:, columns] = np.stack([encoded.ids[name][0] for name in names], axis=1) + first_rows
        for slot in self.slots:
            if slot.one_per_row:
                continue
            values, offsets = encoded.ids[slot.feature]
            assert offsets is not None, f"{slot.feature} was encoded without offsets"
            lengths = np.diff(offsets)
            assert not len(lengths) or lengths.max() <= slot.num_slots, f"{slot.feature} was encoded longer than max_len"
            position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
            out_BS[np.repeat(np.arange(encoded.num_rows), lengths), slot.first_slot + position] = values + slot.first_row
        return out_BS

    def to_list(self) -> list[dict[str, Any]]:
        return [asdict(s) for s in self.slots]

    @classmethod
    def from_list(cls, raw: Iterable[Mapping[str, Any]]) -> "SlotLayout":
        return cls(tuple(FeatureSlots(**s) for s in raw))

    @classmethod
    def from_schema(cls, schema: Schema, *, side: Side = "") -> "SlotLayout":
        """The layout for all features, or for one tower's.

        Widths in increasing order; within a width pooled features before sequences, and features of equal length and pooling
        side by side, so that the graph reduces them together.
        """
        chosen = [f for f in schema.features if f.table and (not side or f.side == side)]
        # a flat table holds only what these features read, in schema order
        first_rows: dict[str, int] = {}
        ends: dict[int, int] = {}
        read = {f.table for f in chosen}
        for table in schema.tables:
            if table.name in read:
                first_rows[table.name] = ends.get(table.dim, 1)
                ends[table.dim] = first_rows[table.name] + table.num_rows
        slots = [
            FeatureSlots(
                feature=f.name,
                width=schema.table(f.table).dim,
                first_slot=0,
                num_slots=f.max_len,
                first_row=first_rows[f.table],
                num_rows=schema.table(f.table).num_rows,
                reduce=_reduce(f),
                one_per_row=f.kind == "categorical" and f.max_len == 1,
            )
            for f in chosen
        ]
        slots.sort(key=lambda s: (s.width, s.reduce == "none", s.num_slots, s.reduce))
        placed, end = [], 0
        for slot in slots:
            placed.append(replace(slot, first_slot=end))
            end += slot.num_slots
        return cls(tuple(placed))


def _reduce(feature: Feature) -> Reduce:
    if feature.kind == "sequence":
        return "none"
    return feature.pooling if feature.max_len > 1 else "sum"
