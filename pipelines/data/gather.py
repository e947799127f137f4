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

from .buffers import BufferPool
from .native import Native, address_of
from .order import Run, rows_of
from .records import RecordMaker
from .reused_arrays import ALIGNMENT_BYTES
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

    def several(self, segment: Segment, *, num_batches: int) -> list[Batch]:
        """A segment's rows cut into batches of equally many."""


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

    def several(self, segment: Segment, *, num_batches: int) -> list[Batch]:
        window, start, stop = segment
        size = (stop - start) // num_batches
        return [self([Segment(window, first, first + size)]) for first in range(start, stop, size)]


class _Layout(NamedTuple):
    """Of a block of K batches of B rows each. Its parts: row_id; dense, labels, weights; lengths of both KeyedJaggedTensors; ids of
    those that have no lists. In each part, one batch comes after the other. Ids of those that have lists come last, from `end` on.

    Attributes:
        starts, steps: of each part, where it begins and how far apart two batches are, in bytes.
        sizes: of lengths and ids, batch by batch: how many, and what follows unused.
        outs: [K, moves], where each move of gather.c begins.
    """

    starts: list[int]
    steps: list[int]
    sizes: list[int]
    end: int
    outs: np.ndarray


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
        self._layouts: dict[tuple[int, int], _Layout] = {}
        # of each KeyedJaggedTensor with lists: its first move of values, and per key the list, or None
        self._with_lists: list[tuple[int, list[int | None]]] = []
        # and of each KeyedJaggedTensor its place in `_Layout.sizes`, those that have lists behind the others
        self._ids_at: list[int] = []
        first = len(self._moves) - sum(map(len, self._keys))
        for kjt, keys in enumerate(self._keys):
            has_lists = not all(is_single for is_single, _ in keys)
            self._ids_at.append(4 + len(self._with_lists) if has_lists else 2 + kjt)
            if has_lists:
                self._with_lists.append((first, [None if is_single else at for is_single, at in keys]))
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

    def _layout(self, num_batches: int, num_rows: int) -> _Layout:
        row = self._item * num_rows
        of_keys = [row * len(keys) for keys in self._keys]
        of_ids = [0 if at >= 4 else num_bytes for num_bytes, at in zip(of_keys, self._ids_at)]
        parts = [8 * num_rows, *(4 * num_rows * n for n in self._columns), *of_keys, *of_ids]
        steps = [_aligned(part) for part in parts]
        *starts, end = accumulate((num_batches * step for step in steps), initial=0)
        sizes = [n // self._item for part, step in zip(parts[4:], steps[4:]) for n in num_batches * [part, step - part]]
        places = [(0, 0), *((1, 4 * run.to) for run in self._join.dense), (2, 0), (3, 0)]
        places += [(part, row * key) for part, keys in enumerate(2 * self._keys, 4) for key in range(len(keys))]
        outs = [[starts[part] + batch * steps[part] + at for part, at in places] for batch in range(num_batches)]
        return _Layout(starts, steps, sizes, end, np.array(outs, np.int64))

    def __call__(self, segments: Sequence[Segment]) -> Batch:
        return self._batches(segments, 1, sum([stop - start for _, start, stop in segments]))[0]

    def several(self, segment: Segment, *, num_batches: int) -> list[Batch]:
        return self._batches([segment], num_batches, (segment.stop - segment.start) // num_batches)

    def _batches(self, segments: Sequence[Segment], num_batches: int, num_rows: int) -> list[Batch]:
        layout = self._layouts.get((num_batches, num_rows))
        if layout is None:
            layout = self._layouts[num_batches, num_rows] = self._layout(num_batches, num_rows)
        sizes, end, outs = layout.sizes.copy(), layout.end, layout.outs.copy()
        for move, lists in self._with_lists:
            num_values = [num_batches * [num_rows] if at is None else _num_values(segments, at, num_batches) for at in lists]
            for batch in range(num_batches):
                start = end
                for key, of_key in enumerate(num_values, move):
                    outs[batch, key] = end
                    end += self._item * of_key[batch]
                used, end = end - start, start + _aligned(end - start)
                sizes += [used // self._item, (end - start - used) // self._item]
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
                num_batches,
                (stop - start) // num_batches,
                address,
            )
        return self._views(memory, layout, sizes, num_batches, num_rows)

    def _views(self, memory: Tensor, layout: _Layout, sizes: list[int], num_batches: int, num_rows: int) -> list[Batch]:
        """The batches in a block; few calls of torch for all of them, as each takes microseconds and the interpreter."""
        floats, longs, num = memory.view(torch.float32), memory.view(torch.int64), num_batches
        row_ids = longs.as_strided((num, num_rows), (layout.steps[0] // 8, 1), 0).unbind()
        dense, labels, weights = [
            floats.as_strided((num, num_rows, n), (layout.steps[part] // 4, n, 1), layout.starts[part] // 4).unbind()
            for part, n in enumerate(self._columns, 1)
        ]
        ids = memory.view(self._id_dtype)[layout.starts[4] // self._item :].split_with_sizes(sizes)[::2]
        sparse, sequence = [
            [
                KeyedJaggedTensor(names, values, lengths=lengths, stride=num_rows)
                for lengths, values in zip(ids[kjt * num : (kjt + 1) * num], ids[at * num : (at + 1) * num])
            ]
            for kjt, (names, at) in enumerate(zip(self._names, self._ids_at))
        ]
        return [Batch(*of_batch) for of_batch in zip(dense, sparse, sequence, labels, weights, row_ids)]


def _num_values(segments: Sequence[Segment], of_list: int, num_batches: int) -> list[int]:
    """Of a list in each batch; several batches have one segment."""
    if num_batches == 1:
        return [sum([int(window.ends[of_list][stop]) - int(window.ends[of_list][start]) for window, start, stop in segments])]
    window, start, stop = segments[0]
    return np.diff(window.ends[of_list][start : stop + 1 : (stop - start) // num_batches]).tolist()


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
