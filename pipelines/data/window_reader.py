"""Runs of rows read from the shards into memory that is used again.

Read, not mapped: page faults cost 3 times a read (measured), and memory past the RAM would be worse.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .buffers import BufferPool
from .order import Run
from .rows import Rows, list_valued
from .shards import NPY_HEADER_BYTES, SplitData, array_files

_MOST_OPEN_FILES = 128
_WINDOWS_IN_USE = 4  # one being read, one ready, up to two under a batch


class _Piece(NamedTuple):
    """Rows start .. stop - 1 of a shard."""

    shard: int
    start: int
    stop: int


class _Files:
    """Open files of a split, the least recently used closed first."""

    def __init__(self, split: SplitData) -> None:
        self._split = split
        self._open: OrderedDict[tuple[int, str], int] = OrderedDict()

    def path(self, shard: int, name: str) -> Path:
        return self._split.shards[shard].folder / name

    def read_into(self, target: memoryview, shard: int, name: str, offset_bytes: int) -> None:
        """Fills `target`, which is of bytes. Raises ValueError if the file ends early."""
        descriptor = self._descriptor(shard, name)
        while target:
            count = os.preadv(descriptor, [target], offset_bytes)
            if not count:
                where = self.path(shard, name)
                raise ValueError(f"{where}: ended early; it was altered after it was prepared. Prepare again with --force")
            target, offset_bytes = target[count:], offset_bytes + count

    def _descriptor(self, shard: int, name: str) -> int:
        found = self._open.get((shard, name))
        if found is None:
            found = self._open[shard, name] = os.open(self.path(shard, name), os.O_RDONLY)
            if len(self._open) > _MOST_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end((shard, name))
        return found

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def window_pool(split: SplitData) -> BufferPool:
    """Memory for windows of a split, for one reader after the other: the first use of fresh memory costs more than reading."""
    return BufferPool(max_kept=_WINDOWS_IN_USE * (4 + 2 * len(list_valued(split.stored_schema))))


class WindowReader:
    """Reads `Rows` of a split, as they are in the shards. Memory is used again when nothing refers to what was read any more.

    Args:
        pool: of `window_pool`; default: one of its own.
    """

    def __init__(self, split: SplitData, pool: BufferPool | None = None) -> None:
        self._split = split
        self._arrays = array_files(split.stored_schema)
        self._num_lists = len(list_valued(split.stored_schema))
        self._ends = np.cumsum([shard.num_rows for shard in split.shards])
        self._files = _Files(split)
        self._pool = pool or window_pool(split)

    def close(self) -> None:
        """Closes the files; memory that was read stays valid."""
        self._files.close()

    def read(self, runs: Sequence[Run]) -> Rows:
        """The rows of the runs, one run after the other.

        Raises:
            ValueError: if a file ends early, or if offsets in it cannot be right.
        """
        dense, ids, labels, weights = self.fixed(runs)
        return Rows(dense, ids, self.lists(runs), labels, weights)

    def fixed(self, runs: Sequence[Run]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Only dense, ids, labels and weights of the runs' rows. Raises ValueError if a file ends early."""
        pieces, num_rows = self._pieces(runs), sum(run.num_rows for run in runs)
        dense, ids, labels, weights = (
            self._fixed(f"{name}.npy", pieces, num_rows) for name in ("dense", "ids", "labels", "weights")
        )
        return dense, ids, labels, weights

    def lists(self, runs: Sequence[Run]) -> tuple[tuple[Tensor, Tensor], ...]:
        """Only the lists of the runs' rows. Raises ValueError as `read` does."""
        pieces, num_rows = self._pieces(runs), sum(run.num_rows for run in runs)
        return tuple(self._list(f"list_{i:03d}", pieces, num_rows) for i in range(self._num_lists))

    def _pieces(self, runs: Sequence[Run]) -> list[_Piece]:
        return [piece for run in runs for piece in self._pieces_of(run)]

    def _pieces_of(self, run: Run) -> list[_Piece]:
        """What a run covers of each shard."""
        pieces = []
        first, stop = run.first_row, run.first_row + run.num_rows
        while first < stop:
            shard = int(self._ends.searchsorted(first, side="right"))
            begin = int(self._ends[shard]) - self._split.shards[shard].num_rows
            end = min(stop, int(self._ends[shard]))
            pieces.append(_Piece(shard, first - begin, end - begin))
            first = end
        return pieces

    def _take(self, dtype: torch.dtype, num_values: int) -> tuple[Tensor, memoryview]:
        memory = self._pool.take(num_values * dtype.itemsize)
        return memory.view(dtype), memory.numpy().data

    def _fixed(self, name: str, pieces: Sequence[_Piece], num_rows: int) -> Tensor:
        dtype, columns = self._arrays[name]
        assert columns is not None
        (out, target), row_bytes, at = self._take(_TORCH[dtype], num_rows * columns), columns * dtype.itemsize, 0
        for shard, start, stop in pieces if columns else ():
            end = at + (stop - start) * row_bytes
            self._files.read_into(target[at:end], shard, name, NPY_HEADER_BYTES + start * row_bytes)
            at = end
        return out.view(num_rows, columns)

    def _list(self, name: str, pieces: Sequence[_Piece], num_rows: int) -> tuple[Tensor, Tensor]:
        offsets, _ = self._take(torch.int64, num_rows + 1)
        ends, row, total, parts = offsets.numpy(), 0, 0, []
        ends[0] = 0
        for shard, start, stop in pieces:
            stored = np.empty(stop - start + 1, np.int64)
            file = f"{name}.offsets.npy"
            self._files.read_into(stored.view(np.uint8).data, shard, file, NPY_HEADER_BYTES + start * stored.itemsize)
            first, size = int(stored[0]), int(stored[-1]) - int(stored[0])
            if first < 0 or (stored[1:] < stored[:-1]).any():
                path = self._files.path(shard, file)
                raise ValueError(f"{path}: altered after it was prepared (offsets fall). Prepare again with --force")
            np.add(stored[1:], total - first, out=ends[row + 1 : row + 1 + stop - start])
            parts.append((shard, first, total, total + size))
            row, total = row + stop - start, total + size
        values, target = self._take(torch.int32, total)
        for shard, first, begin, end in parts:
            self._files.read_into(target[4 * begin : 4 * end], shard, f"{name}.values.npy", NPY_HEADER_BYTES + 4 * first)
        return values, offsets


_TORCH = {np.dtype("<f4"): torch.float32, np.dtype("<i4"): torch.int32, np.dtype("<i8"): torch.int64}
