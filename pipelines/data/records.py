"""Rows as records, for native code: all of a row that has a fixed size in one place, in memory that is used again.

A record: row_id (int64), where the values of each list begin (int64), how many they are (int32), dense, ids, labels, weights; its
length is a multiple of 8 bytes. A row of a sequence of 500 ids is then found in two places of memory instead of seven, and a batch
of 4096 is gathered in 0.7 times as long (measured): what costs are places, not bytes.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from torch import Tensor

from torchrec_models.schema import Schema

from .buffers import BufferPool
from .native import Native, address_of
from .order import Run, rows_of
from .rows import Rows, list_valued, single_valued
from .stores import Join
from .window_reader import WindowReader

_VALUES, _STARTS, _LENGTHS = 0, 1, 2  # kinds of parts in gather.c
_PACK_ROWS = 1 << 16  # of a split that is read as a whole, read at once: its parts of fixed size are not in memory twice
_RECORDS_IN_USE = 4  # one being made, one ready, up to two under a batch


class Records:
    """N rows.

    Attributes:
        memory: [N, bytes of a record] uint8.
        lists: per list, (values [n] int32, offsets [N + 1] int64, growing; the first one may be more than 0).
        places_address: of the places that gather.c wants: the records, dense and ids of each store, the values of each list.
    """

    def __init__(self, memory: Tensor, lists: tuple[tuple[Tensor, Tensor], ...], maker: "RecordMaker") -> None:
        self.memory = memory
        self.lists = lists
        self._maker = maker
        records, values = (memory.data_ptr(), maker.num_bytes, 0), [(values.data_ptr(), 0, 0) for values, _ in lists]
        self._places = np.array([records, *maker.stores, *values], np.int64)
        self.places_address = address_of(self._places)

    def ends(self, index: Tensor) -> tuple[np.ndarray, ...]:
        """Per list, [n + 1] int64: values of the first i rows of an index [n]."""
        found = tuple(np.empty(len(index) + 1, np.int64) for _ in self.lists)
        for (_, offsets), out in zip(self.lists, found):
            self._maker.native.ends(offsets.data_ptr(), index.data_ptr(), len(index), address_of(out))
        return found

    def only(self, row: int) -> "Records":
        """One of the rows, as padding (row_id -1)."""
        memory = self.memory[row : row + 1].clone()
        memory[0, :8] = 255
        return Records(memory, tuple((values, offsets[row : row + 2]) for values, offsets in self.lists), self._maker)


class RecordMaker:
    """Makes records of rows.

    Args:
        schema: of the rows (with stores: the stored schema).
        join: where rows refer to stores.

    Attributes:
        stores: dense and ids of each store, as gather.c wants places: address, bytes of a row, the byte of a record at which the
            number of the row is.
        starts, lengths: per list, the byte of a record at which where it begins, and its length, are.
        dense, ids, labels, weights: the bytes at which these begin.
        num_bytes: of a record.
    """

    def __init__(self, schema: Schema, join: Join, native: Native) -> None:
        num_lists, num_tasks = len(list_valued(schema)), len(schema.tasks)
        self.native = native
        self._sizes = tuple(4 * n for n in (len(schema.dense), len(single_valued(schema)), num_tasks, max(num_tasks, 1)))
        self.starts = [8 + 8 * at for at in range(num_lists)]
        self.lengths = [8 + 8 * num_lists + 4 * at for at in range(num_lists)]
        fixed = list(accumulate(self._sizes, initial=8 + 12 * num_lists))
        self.dense, self.ids, self.labels, self.weights, end = fixed
        self.num_bytes = -(-end // 8) * 8
        self.stores = [
            (part.data_ptr(), 4 * part.shape[1], self.ids + 4 * column)
            for store, column in zip(join.stores, join.references)
            for part in (store.dense, store.ids)
        ]
        self._pool = BufferPool(max_kept=_RECORDS_IN_USE)

    def of_rows(self, rows: Rows, row_id: Tensor) -> Records:
        """[N] rows and their row_id [N] int64."""
        memory = self._take(rows.num_rows)
        self._pack(memory, rows, row_id)
        return Records(memory, rows.lists, self)

    def of_runs(self, reader: WindowReader, runs: Sequence[Run]) -> Records:
        """The rows of runs that a reader reads, one run after the other.

        Raises:
            ValueError: as `WindowReader.read` does.
        """
        lists = reader.lists(runs)
        memory, row = self._take(sum(run.num_rows for run in runs)), 0
        for some in _in_parts(runs):
            dense, ids, labels, weights = reader.fixed(some)
            end = row + len(labels)
            parts = tuple((values, offsets[row : end + 1]) for values, offsets in lists)
            self._pack(memory[row:end], Rows(dense, ids, parts, labels, weights), rows_of(some))
            row = end
        return Records(memory, lists, self)

    def _take(self, num_rows: int) -> Tensor:
        return self._pool.take(num_rows * self.num_bytes).view(num_rows, self.num_bytes)

    def _pack(self, memory: Tensor, rows: Rows, row_id: Tensor) -> None:
        parts = [(_VALUES, row_id.data_ptr(), 0, 8)]
        for (_, offsets), start, length in zip(rows.lists, self.starts, self.lengths):
            parts += [(_STARTS, offsets.data_ptr(), start, 0), (_LENGTHS, offsets.data_ptr(), length, 0)]
        tensors, at = (rows.dense, rows.ids, rows.labels, rows.weights), (self.dense, self.ids, self.labels, self.weights)
        parts += [(_VALUES, tensor.data_ptr(), to, size) for tensor, to, size in zip(tensors, at, self._sizes) if size]
        table = np.array(parts, np.int64)
        self.native.pack(address_of(table), len(table), len(row_id), memory.data_ptr(), self.num_bytes)


def _in_parts(runs: Sequence[Run]) -> Iterator[Sequence[Run]]:
    """Runs of a window together, and a run of very many rows (a split that is kept) cut into some."""
    if len(runs) != 1:
        yield runs
        return
    first, num_rows = runs[0]
    for start in range(0, num_rows, _PACK_ROWS):
        yield [Run(first + start, min(_PACK_ROWS, num_rows - start))]
