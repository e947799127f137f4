"""Batches out of windows of rows: with stock operators, or with one call of native code. Both give the same bits.

B rows of the batch, D dense features, K keys, T tasks.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_models.batch import Batch
from torchrec_models.schema import Schema

from .buffers import ALIGNMENT_BYTES, BufferPool
from .native import Native, address_of
from .order import Run, rows_of
from .records import RecordMaker
from .rows import BatchBuilder, Rows, key_plans
from .stores import OWN, Join, stored_schema
from .window_reader import WindowReader

_BATCHES_IN_USE = 12  # read ahead, in a training pipeline, in the hands of the model
_BYTES, _IDS, _LISTS, _ONES = 0, 2, 4, 6  # kinds of moves in gather.c; + 1: to int64


class Held(Protocol):
    """N rows in memory, with their row_id: `StockRows` for one gather, `Records` for the other."""

    def ends(self, index: Tensor) -> tuple[np.ndarray, ...]:
        """What a gather wants to know of an index [n], once."""

    def only(self, row: int) -> "Held":
        """One of the rows, as padding (row_id -1)."""


class OpenWindow:
    """Rows in memory, and the order in which they are used.

    Args:
        held: [N] rows.
        index: [n] int64, which of them, in the order of use.
    """

    def __init__(self, held: Any, index: Tensor) -> None:
        self.held = held
        self.index = index
        self.index_address = index.data_ptr()
        self.ends: tuple[np.ndarray, ...] = held.ends(index)

    def last_again(self, row: int, count: int) -> "OpenWindow":
        """`count` times the row used at `row`, as padding."""
        return OpenWindow(self.held.only(int(self.index[row])), torch.zeros(count, dtype=torch.int64))


class Segment(NamedTuple):
    """The rows used at start .. stop - 1 of a window."""

    window: OpenWindow
    start: int
    stop: int


class BatchGather(Protocol):
    def of_rows(self, rows: Rows, row_id: Tensor) -> Held:
        """Rows of the stored schema, with row_id [N] int64, as this gather wants to have them in windows."""

    def of_runs(self, reader: WindowReader, runs: Sequence[Run]) -> Held:
        """The same of rows that are to be read. Raises ValueError as `WindowReader.read` does."""

    def __call__(self, segments: Sequence[Segment]) -> Batch:
        """A batch of the segments' rows, one segment after the other; at least one row."""


class StockRows:
    """Rows as they are read."""

    def __init__(self, rows: Rows, row_id: Tensor) -> None:
        self.rows = rows
        self.row_id = row_id

    def ends(self, index: Tensor) -> tuple[np.ndarray, ...]:
        return ()

    def only(self, row: int) -> "StockRows":
        return StockRows(self.rows.take(torch.tensor([row])), torch.full((1,), -1))


class StockGather:
    """With operators of torch and fbgemm. Page-locked memory costs a second copy here."""

    def __init__(self, schema: Schema, join: Join, *, id_dtype: torch.dtype, pin_memory: bool) -> None:
        self._build = BatchBuilder(schema, id_dtype=id_dtype)
        self._join = join
        self._pin_memory = pin_memory

    def of_rows(self, rows: Rows, row_id: Tensor) -> StockRows:
        return StockRows(rows, row_id)

    def of_runs(self, reader: WindowReader, runs: Sequence[Run]) -> StockRows:
        return StockRows(reader.read(runs), rows_of(runs))

    def __call__(self, segments: Sequence[Segment]) -> Batch:
        indices = [s.window.index[s.start : s.stop] for s in segments]
        rows = Rows.cat([s.window.held.rows.take(index) for s, index in zip(segments, indices)])
        row_id = torch.cat([s.window.held.row_id[index] for s, index in zip(segments, indices)])
        batch = self._build(self._join(rows), row_id)
        return batch.pin_memory() if self._pin_memory else batch


class _Layout(NamedTuple):
    """Of batches of some number of rows: where in the block what begins, in bytes. The values of a KeyedJaggedTensor that has lists
    are not counted in; they come last, from `end` on.

    Attributes:
        row_id, lengths, columns, values: where they begin; lengths and values of both KeyedJaggedTensors, columns of dense, labels
            and weights.
        outs: where each move of gather.c begins.
        num_values: of both KeyedJaggedTensors.
    """

    row_id: int
    lengths: tuple[int, ...]
    columns: tuple[int, ...]
    values: tuple[int, ...]
    end: int
    outs: np.ndarray
    num_values: tuple[int, ...]


class NativeGather:
    """With gather.c: every value is copied once, from its record, list or store to where a batch wants it: one block."""

    def __init__(self, schema: Schema, join: Join, native: Native, *, id_dtype: torch.dtype, pin_memory: bool) -> None:
        num_tasks = len(schema.tasks)
        self._native = native
        self._join = join
        self._maker = RecordMaker(stored_schema(schema, {store.name: store.features for store in join.stores}), join, native)
        self.of_rows, self.of_runs = self._maker.of_rows, self._maker.of_runs
        plans = key_plans(schema)
        self._names = tuple(names for names, _ in plans)
        self._keys = tuple(keys for _, keys in plans)
        self._columns = (len(schema.dense), num_tasks, max(num_tasks, 1))
        self._id_dtype, self._item = id_dtype, id_dtype.itemsize
        self._pool = BufferPool(max_kept=_BATCHES_IN_USE, pin_memory=pin_memory)
        self._moves = np.array(self._moves_of(join), np.int64)
        self._moves_address = address_of(self._moves)
        self._num_places = 1 + 2 * len(join.stores)
        self._layouts: dict[int, _Layout] = {}
        # of each KeyedJaggedTensor with lists: which one, its first move of values, and per key the list, or None
        self._with_lists: list[tuple[int, int, list[int | None]]] = []
        first = len(self._moves) - sum(map(len, self._keys))
        for kjt, keys in enumerate(self._keys):
            if not all(is_single for is_single, _ in keys):
                self._with_lists.append((kjt, first, [None if is_single else at for is_single, at in keys]))
            first += len(keys)

    def _moves_of(self, join: Join) -> list[tuple[int, int, int, int, int]]:
        """For gather.c: row_id, dense, labels, weights, the lengths of each key, the values of each key."""
        maker, singles, wide = self._maker, join.singles, int(self._id_dtype == torch.int64)
        moves = [(_BYTES, 0, 0, 8, 8)]
        for run in join.dense:
            place, first = (0, maker.dense) if run.place == OWN else (1 + 2 * run.place, 0)
            moves.append((_BYTES, place, first + 4 * run.start, 4 * run.num_columns, 4 * self._columns[0]))
        for first, columns in ((maker.labels, self._columns[1]), (maker.weights, self._columns[2])):
            moves.append((_BYTES, 0, first, 4 * columns, 4 * columns))
        every_key = [key for keys in self._keys for key in keys]
        for is_single, at in every_key:
            moves.append((_ONES + wide, 0, 0, 0, 0) if is_single else (_IDS + wide, 0, maker.lengths[at], 0, 0))
        for is_single, at in every_key:
            if is_single:
                place, first = (0, maker.ids) if singles[at][0] == OWN else (2 + 2 * singles[at][0], 0)
                moves.append((_IDS + wide, place, first + 4 * singles[at][1], 0, 0))
            else:
                moves.append((_LISTS + wide, 1 + 2 * len(join.stores) + at, maker.starts[at], maker.lengths[at], 0))
        return moves

    def _layout(self, num_rows: int) -> _Layout:
        row = self._item * num_rows
        has_lists = {kjt for kjt, _, _ in self._with_lists}
        num_values = tuple(0 if kjt in has_lists else num_rows * len(keys) for kjt, keys in enumerate(self._keys))
        parts = [8 * num_rows, *(row * len(keys) for keys in self._keys), *(4 * num_rows * n for n in self._columns)]
        row_id, *starts, end = accumulate(map(_aligned, [*parts, *(self._item * n for n in num_values)]), initial=0)
        lengths, columns, values = starts[:2], starts[2:5], starts[5:]
        outs = [row_id, *(columns[0] + 4 * run.to for run in self._join.dense), *columns[1:]]
        for of_kjts in (lengths, values):
            outs += [start + row * key for start, keys in zip(of_kjts, self._keys) for key in range(len(keys))]
        return _Layout(row_id, tuple(lengths), tuple(columns), tuple(values), end, np.array(outs, np.int64), num_values)

    def __call__(self, segments: Sequence[Segment]) -> Batch:
        num_rows = sum([stop - start for _, start, stop in segments])
        layout = self._layouts.get(num_rows)
        if layout is None:
            layout = self._layouts[num_rows] = self._layout(num_rows)
        values, num_values, end, outs = list(layout.values), list(layout.num_values), layout.end, layout.outs.copy()
        for kjt, move, lists in self._with_lists:
            values[kjt] = end
            for key, at in enumerate(lists, move):
                outs[key] = end + self._item * num_values[kjt]
                num_values[kjt] += num_rows if at is None else _num_values(segments, at)
            end += _aligned(self._item * num_values[kjt])
        memory = self._pool.take(end)
        outs += memory.data_ptr()
        address = address_of(outs)
        for window, start, stop in segments:  # gather.c moves `outs` on: a segment comes behind the one before
            self._native.gather(
                window.held.places_address,
                self._num_places,
                self._moves_address,
                len(self._moves),
                window.index_address + 8 * start,
                stop - start,
                address,
            )
        floats, ids = memory.view(torch.float32), memory.view(self._id_dtype)
        dense, labels, weights = [
            floats.as_strided((num_rows, n), (n, 1), start // 4) for n, start in zip(self._columns, layout.columns)
        ]
        row_id = memory.view(torch.int64).as_strided((num_rows,), (1,), layout.row_id // 8)
        sparse, sequence = [
            KeyedJaggedTensor(
                names,
                ids.as_strided((num_ids,), (1,), start // self._item),
                lengths=ids.as_strided((len(names) * num_rows,), (1,), of_lengths // self._item),
                stride=num_rows,
            )
            for names, num_ids, start, of_lengths in zip(self._names, num_values, values, layout.lengths)
        ]
        return Batch(dense, sparse, sequence, labels, weights, row_id)


def _num_values(segments: Sequence[Segment], of_list: int) -> int:
    return sum([int(window.ends[of_list][stop]) - int(window.ends[of_list][start]) for window, start, stop in segments])


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
