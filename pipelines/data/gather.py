"""Batches out of windows of rows: with stock operators, or with one call of native code. Both give the same bits.

B rows of the batch, D dense features, K keys, J jobs, T tasks.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_models.batch import Batch
from torchrec_models.schema import Schema

from .buffers import ALIGNMENT_BYTES, BufferPool
from .native import Gather
from .rows import BatchBuilder, Rows, key_plans
from .stores import OWN, Join

_BATCHES_IN_USE = 12  # read ahead, in a training pipeline, in the hands of the model
# A job of gather.c: its kinds (+ 1 widens to int64) and its fields.
_ROWS, _COLUMN, _LISTS, _LENGTHS, _ONES = 0, 2, 4, 6, 8
_OUT, _INDEX, _NUM_ROWS = 1, 4, 5


class OpenWindow:
    """Rows in memory, and the order in which they are used.

    Args:
        rows: [N] rows.
        row_id: [N] int64, their positions in the split.
        index: [n] int64, which of the rows, in the order of use.
    """

    def __init__(self, rows: Rows, row_id: Tensor, index: Tensor) -> None:
        self.rows = rows
        self.row_id = row_id
        self.index = index
        self.jobs: np.ndarray | None = None  # what NativeGather knows of this window

    @cached_property
    def ends(self) -> tuple[np.ndarray, ...]:
        """Per list, [n + 1] int64: values of the first i rows in the order of use."""
        index = self.index.numpy()
        return tuple(np.concatenate([[0], np.cumsum(lengths.numpy()[index], dtype=np.int64)]) for lengths in self.rows.lengths)

    def last_again(self, row: int, count: int) -> "OpenWindow":
        """`count` times the row used at `row`, as padding (row_id -1)."""
        only = self.index[row : row + 1]
        return OpenWindow(self.rows.take(only), torch.full((1,), -1), torch.zeros(count, dtype=torch.int64))


class Segment(NamedTuple):
    """The rows used at start .. stop - 1 of a window."""

    window: OpenWindow
    start: int
    stop: int


class BatchGather(Protocol):
    def __call__(self, segments: Sequence[Segment]) -> Batch:
        """A batch of the segments' rows, one segment after the other; at least one row."""


class StockGather:
    """With operators of torch and fbgemm. Page-locked memory costs a second copy here."""

    def __init__(self, schema: Schema, join: Join, *, id_dtype: torch.dtype, pin_memory: bool) -> None:
        self._build = BatchBuilder(schema, id_dtype=id_dtype)
        self._join = join
        self._pin_memory = pin_memory

    def __call__(self, segments: Sequence[Segment]) -> Batch:
        indices = [s.window.index[s.start : s.stop] for s in segments]
        rows = Rows.cat([s.window.rows.take(index) for s, index in zip(segments, indices)])
        row_id = torch.cat([s.window.row_id[index] for s, index in zip(segments, indices)])
        batch = self._build(self._join(rows), row_id)
        return batch.pin_memory() if self._pin_memory else batch


class NativeGather:
    """With gather.c: every value is copied once, from its window or store to where the batch wants it, in one block per batch.

    The block holds dense, labels, weights, row_id, the lengths of both KeyedJaggedTensors, their values, and row numbers in stores.
    These are gathered first, and are then the index of what comes out of a store.
    """

    def __init__(self, schema: Schema, join: Join, gather: Gather, *, id_dtype: torch.dtype, pin_memory: bool) -> None:
        num_tasks = len(schema.tasks)
        self._gather = gather
        self._join = join
        self._plans = key_plans(schema)
        self._keys = [key for _, plan in self._plans for key in plan]  # (is single, column or list) of all keys
        self._columns = (len(schema.dense), num_tasks, max(num_tasks, 1))
        self._id_dtype, self._item = id_dtype, id_dtype.itemsize
        self._pool = BufferPool(max_kept=_BATCHES_IN_USE, pin_memory=pin_memory)
        # bytes per row of each job's output; the values of a list have no such number
        of_keys = [self._item if is_single else 0 for is_single, _ in self._keys]
        dense_bytes, *others_bytes = (4 * columns for columns in self._columns)
        of_stores = [8] * len(join.references) + [dense_bytes] * len(join.dense)
        self._row_bytes = np.array([*of_stores, *others_bytes, 8, *of_keys, *(self._item for _ in self._keys)], np.int64)
        # the place of each job's input: its index is of rows there
        places = [OWN] * len(join.references) + [run.place for run in join.dense] + [OWN] * 3
        places += [join.singles[at][0] if is_single else OWN for is_single, at in self._keys] + [OWN] * len(self._keys)
        self._places = np.array(places, np.int64)
        first = len(join.references) + len(join.dense) + 3
        self._list_jobs = [(first + key, at) for key, (is_single, at) in enumerate(self._keys) if not is_single]

    def __call__(self, segments: Sequence[Segment]) -> Batch:
        num_rows = sum(s.stop - s.start for s in segments)
        copied = [0] * len(segments[0].window.rows.lists)  # values of each list, so far
        totals = [sum(int(s.window.ends[at][s.stop] - s.window.ends[at][s.start]) for s in segments) for at in range(len(copied))]
        # where in the block each job's output begins: labels, dense, ..., values of each key, lengths of each key
        fixed = [_aligned(num_rows * columns * 4) for columns in self._columns] + [_aligned(num_rows * 8)]
        num_lengths = [len(plan) * num_rows for _, plan in self._plans]
        sizes = [[num_rows if is_single else totals[at] for is_single, at in plan] for _, plan in self._plans]
        parts = [*fixed, *(_aligned(n * self._item) for n in num_lengths), *(_aligned(sum(s) * self._item) for s in sizes)]
        *starts, end = accumulate(parts, initial=0)
        memory = self._pool.take(end + 8 * num_rows * len(self._join.references))
        address = memory.data_ptr()
        numbers = [end + 8 * num_rows * place for place in range(len(self._join.references))]
        values, lengths = [], []
        for kjt in range(2):
            values += [starts[6 + kjt] + self._item * before for before in accumulate(sizes[kjt][:-1], initial=0)][
                : len(sizes[kjt])
            ]
            lengths += [starts[4 + kjt] + self._item * num_rows * key for key in range(len(sizes[kjt]))]
        dense_runs = [starts[0] + 4 * run.to for run in self._join.dense]
        outs = np.array([*numbers, *dense_runs, *starts[1:4], *values, *lengths], np.int64) + address
        of_place = self._places * (8 * num_rows) + (address + end)
        row = 0
        for s in segments:
            jobs = self._jobs(s.window).copy()
            jobs[:, _OUT] = outs + row * self._row_bytes
            jobs[:, _INDEX] += np.where(self._places == OWN, 8 * s.start, of_place + 8 * row)
            jobs[:, _NUM_ROWS] = s.stop - s.start
            for job, at in self._list_jobs:
                jobs[job, _OUT] += self._item * copied[at]
                copied[at] += int(s.window.ends[at][s.stop] - s.window.ends[at][s.start])
            row += s.stop - s.start
            self._gather(jobs.__array_interface__["data"][0], len(jobs))
        floats, ids = memory.view(torch.float32), memory.view(self._id_dtype)
        dense, labels, weights = (
            floats.as_strided((num_rows, columns), (columns, 1), start // 4) for columns, start in zip(self._columns, starts)
        )
        row_id = memory.view(torch.int64).as_strided((num_rows,), (1,), starts[3] // 8)
        sparse, sequence = (
            KeyedJaggedTensor(
                keys=self._plans[kjt][0],
                values=ids.as_strided((sum(sizes[kjt]),), (1,), starts[6 + kjt] // self._item),
                lengths=ids.as_strided((num_lengths[kjt],), (1,), starts[4 + kjt] // self._item),
                stride=num_rows,
            )
            for kjt in range(2)
        )
        return Batch(dense, sparse, sequence, labels, weights, row_id)

    def _jobs(self, window: OpenWindow) -> np.ndarray:
        """[J, 8] int64: all that does not change from batch to batch."""
        if window.jobs is None:
            rows, index, wide = window.rows, window.index.data_ptr(), int(self._id_dtype == torch.int64)
            dense = [rows.dense, *(store.dense for store in self._join.stores)]  # of place -1, 0, 1, ...
            ids = [rows.ids, *(store.ids for store in self._join.stores)]
            indices = [index, *(0 for _ in self._join.stores)]  # those of stores are of each batch
            columns, jobs = rows.ids.shape[1], []
            for column in self._join.references:
                jobs.append((_COLUMN + 1, 0, rows.ids.data_ptr(), 0, index, 0, columns, column))
            for run in self._join.dense:
                part = dense[run.place + 1]
                start, stride = part.data_ptr() + 4 * run.start, 4 * part.shape[1]
                jobs.append((_ROWS, 0, start, stride, indices[run.place + 1], 0, 4 * run.num_columns, 4 * self._columns[0]))
            for source, num_bytes in zip((rows.labels, rows.weights, window.row_id), self._row_bytes[len(jobs) :].tolist()):
                jobs.append((_ROWS, 0, source.data_ptr(), num_bytes, index, 0, num_bytes, num_bytes))
            for is_single, at in self._keys:
                if is_single:
                    place, column = self._join.singles[at]
                    part = ids[place + 1]
                    jobs.append((_COLUMN + wide, 0, part.data_ptr(), 0, indices[place + 1], 0, part.shape[1], column))
                else:
                    values, offsets = rows.lists[at]
                    jobs.append((_LISTS + wide, 0, values.data_ptr(), offsets.data_ptr(), index, 0, 0, 0))
            for is_single, at in self._keys:
                offsets_at = 0 if is_single else rows.lists[at][1].data_ptr()
                jobs.append(((_ONES if is_single else _LENGTHS) + wide, 0, 0, offsets_at, index, 0, 0, 0))
            window.jobs = np.array(jobs, np.int64)
        return window.jobs


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
