"""Runs of rows read from the shards into memory that is used again.

Read, not mapped: page faults cost 3 times a read (measured), and memory past the RAM would be worse.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .buffers import BufferPool
from .order import Run
from .rows import Rows, list_valued
from .shards import NPY_HEADER_BYTES, SplitData, array_files

_MOST_OPEN_FILES = 128
_WINDOWS_IN_USE = 4  # one being read, one ready, up to two under a batch


class _Files:
    """Open files, the least recently used closed first."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read_into(self, target: Tensor, path: Path, offset_bytes: int) -> None:
        """Fills `target`. Raises ValueError if the file ends early."""
        left = target.flatten().view(torch.uint8).numpy().data
        descriptor = self._descriptor(path)
        while left:
            count = os.preadv(descriptor, [left], offset_bytes)
            if not count:
                raise ValueError(f"{path}: ended early; it was altered after it was prepared. Prepare again with --force")
            left, offset_bytes = left[count:], offset_bytes + count

    def _descriptor(self, path: Path) -> int:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            self._open[path] = os.open(path, os.O_RDONLY)
            if len(self._open) > _MOST_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        return self._open[path]

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
        self._files = _Files()
        self._pool = pool or window_pool(split)

    def close(self) -> None:
        """Closes the files; memory that was read stays valid."""
        self._files.close()

    def read(self, runs: Sequence[Run]) -> Rows:
        """The rows of the runs, one run after the other.

        Raises:
            ValueError: if a file ends early, or if offsets in it cannot be right.
        """
        pieces = [piece for run in runs for piece in self._pieces(run)]
        num_rows = sum(stop - start for _, start, stop in pieces)
        dense, ids, labels, weights = (
            self._fixed(f"{name}.npy", pieces, num_rows) for name in ("dense", "ids", "labels", "weights")
        )
        lists = tuple(self._list(f"list_{i:03d}", pieces, num_rows) for i in range(self._num_lists))
        return Rows(dense, ids, lists, labels, weights)

    def _pieces(self, run: Run) -> list[tuple[int, int, int]]:
        """(shard, first row, behind the last row) of what a run covers of each shard."""
        pieces = []
        first, stop = run.first_row, run.first_row + run.num_rows
        while first < stop:
            shard = int(self._ends.searchsorted(first, side="right"))
            begin = int(self._ends[shard]) - self._split.shards[shard].num_rows
            end = min(stop, int(self._ends[shard]))
            pieces.append((shard, first - begin, end - begin))
            first = end
        return pieces

    def _path(self, shard: int, name: str) -> Path:
        return self._split.shards[shard].folder / name

    def _empty(self, dtype: np.dtype, *shape: int) -> Tensor:
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        return self._pool.take(num_bytes).view(_TORCH[dtype]).view(shape)

    def _fixed(self, name: str, pieces: Sequence[tuple[int, int, int]], num_rows: int) -> Tensor:
        dtype, columns = self._arrays[name]
        assert columns is not None
        out, row = self._empty(dtype, num_rows, columns), 0
        for shard, start, stop in pieces if columns else ():
            size = stop - start
            self._files.read_into(
                out[row : row + size], self._path(shard, name), NPY_HEADER_BYTES + start * columns * dtype.itemsize
            )
            row += size
        return out

    def _list(self, name: str, pieces: Sequence[tuple[int, int, int]], num_rows: int) -> tuple[Tensor, Tensor]:
        dtype, offset_dtype = np.dtype("<i4"), np.dtype("<i8")
        offsets = self._empty(offset_dtype, num_rows + 1)
        offsets[0] = 0
        row, firsts = 0, []
        for shard, start, stop in pieces:
            path = self._path(shard, f"{name}.offsets.npy")
            stored = torch.empty(stop - start + 1, dtype=torch.int64)
            self._files.read_into(stored, path, NPY_HEADER_BYTES + start * offset_dtype.itemsize)
            if bool((stored[1:] < stored[:-1]).any()) or int(stored[0]) < 0:
                raise ValueError(f"{path}: altered after it was prepared (offsets fall). Prepare again with --force")
            torch.add(stored[1:], int(offsets[row]) - int(stored[0]), out=offsets[row + 1 : row + 1 + stop - start])
            firsts.append(int(stored[0]))
            row += stop - start
        values = self._empty(dtype, int(offsets[-1]))
        ends = np.cumsum([0, *(stop - start for _, start, stop in pieces)])
        for (shard, _, _), first, (begin, end) in zip(pieces, firsts, pairwise(ends.tolist())):
            part = values[int(offsets[begin]) : int(offsets[end])]
            self._files.read_into(part, self._path(shard, f"{name}.values.npy"), NPY_HEADER_BYTES + first * dtype.itemsize)
        return values, offsets


_TORCH = {np.dtype("<f4"): torch.float32, np.dtype("<i4"): torch.int32, np.dtype("<i8"): torch.int64}
