"""The order of an epoch's rows: a function of the data, the seed and the epoch, never of the number of processes.

A split of at most `WHOLE_BYTES` is permuted as a whole. A larger one is cut into blocks of `BLOCK_ROWS` consecutive rows (a global
permutation read from disk is 33 times slower). The permuted blocks, one after the other, are cut into `NUM_LANES` lanes of equal
length, and the epoch deals from them in turn: position p is row p // NUM_LANES of lane p % NUM_LANES. Stretches of BLOCK_ROWS rows
of a lane are permuted inside. So a batch holds equally many rows of 16 places of the split, which change every 2048 rows.

A rank takes every world_size-th position, and so reads its own lanes only: with 2, 4, 8 or 16 ranks no row is read twice. With W
ranks in general, W / gcd(W, NUM_LANES) of them share a lane.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 2048
NUM_LANES = 16
WINDOW_ROWS = BLOCK_ROWS * NUM_LANES  # of a window in the stored order
WHOLE_BYTES = 1 << 30


class Run(NamedTuple):
    """Consecutive rows of a split."""

    first_row: int
    num_rows: int


def rows_of(runs: Sequence[Run]) -> Tensor:
    """Positions in the split of the runs' rows, one run after the other."""
    return torch.cat([torch.arange(run.first_row, run.first_row + run.num_rows) for run in runs])


class Window(NamedTuple):
    """Rows to read, and in which order a rank uses them.

    Attributes:
        runs: what to read, one after the other.
        where: [rows used] int64, where in what was read each of them lies.
    """

    runs: tuple[Run, ...]
    where: Tensor


@dataclass(frozen=True)
class Deal:
    """How the rows of an epoch are dealt to batches, and those of a batch to the ranks; counts only.

    Args:
        num_rows: of the epoch, over all ranks.
        batch_size: rows per step over all ranks; world_size divides it.
        pad: the last batch gives every rank its part of all rows, some fewer than others; else equally many to each.
    """

    num_rows: int
    batch_size: int
    rank: int
    world_size: int
    pad: bool

    @property
    def rows_per_step(self) -> int:
        """Of this rank."""
        return self.batch_size // self.world_size

    def total(self, batch: int) -> int:
        """Rows of a batch, over all ranks."""
        return min(self.batch_size, self.num_rows - batch * self.batch_size)

    def share(self, batch: int) -> int:
        """Rows of a batch on each rank, padding included."""
        total = self.total(batch)
        return -(-total // self.world_size) if self.pad else total // self.world_size


class EpochOrder(ABC):
    """One rank's rows of an epoch. They are numbered 0, 1, ... as the rank uses them; batch i begins at i * rows_per_step."""

    def __init__(self, deal: Deal) -> None:
        self.deal = deal

    @abstractmethod
    def num_real(self, batch: int) -> int:
        """Rows of a batch on this rank, without padding."""

    @abstractmethod
    def window_of(self, row: int) -> int:
        """The window in which a rank's row lies."""

    @abstractmethod
    def first_of(self, window: int) -> int:
        """The rank's first row in a window."""

    @abstractmethod
    def window(self, window: int) -> Window:
        """What to read for a window."""


class Stored(EpochOrder):
    """As stored. Rank r takes the r-th slice of each batch, and a window is the slices of some batches."""

    def __init__(self, deal: Deal, *, batches_per_window: int) -> None:
        super().__init__(deal)
        self.batches_per_window = batches_per_window

    def num_real(self, batch: int) -> int:
        share = self.deal.share(batch)
        return max(0, min(share, self.deal.total(batch) - self.deal.rank * share))

    def window_of(self, row: int) -> int:
        return row // (self.batches_per_window * self.deal.rows_per_step)

    def first_of(self, window: int) -> int:
        return window * self.batches_per_window * self.deal.rows_per_step

    def window(self, window: int) -> Window:
        first_batch = window * self.batches_per_window
        last_batch = min(first_batch + self.batches_per_window, -(-self.deal.num_rows // self.deal.batch_size))
        runs = []
        for batch in range(first_batch, last_batch):
            start = batch * self.deal.batch_size + self.deal.rank * self.deal.share(batch)
            runs.append(Run(start, self.num_real(batch)))
        return Window(tuple(runs), torch.arange(sum(run.num_rows for run in runs)))


class _Shuffled(EpochOrder):
    """Rank r takes positions r, r + world_size, ... of the epoch."""

    def __init__(self, deal: Deal, *, seed: int, epoch: int) -> None:
        super().__init__(deal)
        self.seeds = (seed, epoch)

    def num_real(self, batch: int) -> int:
        mine = -(-max(0, self.deal.total(batch) - self.deal.rank) // self.deal.world_size)
        return min(self.deal.share(batch), mine)


class Permuted(_Shuffled):
    """A permutation of all rows: one window, everything.

    Args:
        split_rows: rows of the split.
        sample: the rows that the epoch uses, growing; None: all.
    """

    def __init__(self, deal: Deal, *, seed: int, epoch: int, split_rows: int, sample: np.ndarray | None = None) -> None:
        super().__init__(deal, seed=seed, epoch=epoch)
        self._split_rows = split_rows
        self._sample = sample

    def window_of(self, row: int) -> int:
        return 0

    def first_of(self, window: int) -> int:
        assert window == 0, window
        return 0

    def window(self, window: int) -> Window:
        order = np.random.default_rng([*self.seeds, 1]).permutation(self.deal.num_rows)
        mine = np.ascontiguousarray(order[self.deal.rank :: self.deal.world_size])
        return Window((Run(0, self._split_rows),), torch.from_numpy(mine if self._sample is None else self._sample[mine]))


class Lanes(_Shuffled):
    """Permuted blocks, dealt from lanes (see the top of this file). A window is BLOCK_ROWS rows of each of the rank's lanes.

    Args:
        shard_rows: rows of each shard; blocks do not cross shards.
        sample: the rows that the epoch uses, growing; None: all. Lanes are then of these rows, and stretches shorter, so that about
            as much is read for a window as without.
    """

    def __init__(self, deal: Deal, *, seed: int, epoch: int, shard_rows: Sequence[int], sample: np.ndarray | None = None) -> None:
        super().__init__(deal, seed=seed, epoch=epoch)
        starts, sizes, first = [], [], 0
        for rows in shard_rows:
            inside = np.arange(0, rows, BLOCK_ROWS)
            starts.append(first + inside)
            sizes.append(np.minimum(BLOCK_ROWS, rows - inside))
            first += rows
        order = np.random.default_rng([seed, epoch, 0]).permutation(sum(len(s) for s in starts))
        blocks, num_used = np.concatenate(starts), np.concatenate(sizes)
        self._stretch = BLOCK_ROWS
        self._sample = sample
        if sample is not None:
            self._stretch = max(1, BLOCK_ROWS * len(sample) // first)
            blocks = np.searchsorted(sample, blocks)  # of each block, its first row in the sample
            num_used = np.diff(np.append(blocks, len(sample)))
        self._blocks = blocks[order]  # first row of each in the split, or in the sample
        self._starts = np.concatenate([[0], np.cumsum(num_used[order])])  # and where it begins in the permuted rows
        self._lane_rows = deal.num_rows // NUM_LANES
        self._last = max(0, -(-self._lane_rows // self._stretch) - 1)
        step = gcd(deal.world_size, NUM_LANES)
        self._lanes = range(deal.rank % step, NUM_LANES, step)

    def window_of(self, row: int) -> int:
        position = self.deal.rank + row * self.deal.world_size
        return min(position // (self._stretch * NUM_LANES), self._last)

    def first_of(self, window: int) -> int:
        position = window * self._stretch * NUM_LANES
        return -(-max(0, position - self.deal.rank) // self.deal.world_size)

    def window(self, window: int) -> Window:
        begin = window * self._stretch
        size = min(self._stretch, self._lane_rows - begin)
        runs: list[Run] = []
        read = 0
        where_LR = np.zeros((NUM_LANES, size), np.int64)  # of each lane's rows in what is read; lanes of other ranks stay 0
        for lane in self._lanes:
            found, inside = self._runs(lane * self._lane_rows + begin, size)
            random = np.random.default_rng([*self.seeds, 1 + window, lane])
            where_LR[lane] = read + inside[random.permutation(size)]
            runs, read = runs + found, read + sum(run.num_rows for run in found)
        where = where_LR.T.flatten()
        if window == self._last:  # the last N % NUM_LANES rows do not fill a turn
            dealt = NUM_LANES * self._lane_rows
            found, inside = self._runs(dealt, self.deal.num_rows - dealt)
            runs, where = runs + found, np.concatenate([where, read + inside])
        first_mine = (self.deal.rank - begin * NUM_LANES) % self.deal.world_size
        return Window(tuple(runs), torch.from_numpy(np.ascontiguousarray(where[first_mine :: self.deal.world_size])))

    def _runs(self, start: int, num_rows: int) -> tuple[list[Run], np.ndarray]:
        """What to read for rows start .. start + num_rows - 1 of the permuted blocks, and [num_rows] where in it they lie."""
        runs, inside, read = [], [np.zeros(0, np.int64)], 0
        block = int(self._starts.searchsorted(start, side="right")) - 1
        while num_rows:
            skipped = start - int(self._starts[block])
            size = min(num_rows, int(self._starts[block + 1]) - start)
            first = int(self._blocks[block]) + skipped
            rows = np.arange(first, first + size) if self._sample is None else self._sample[first : first + size]
            if size:
                runs.append(Run(int(rows[0]), int(rows[-1] - rows[0]) + 1))
                inside.append(read + rows - rows[0])
                read += runs[-1].num_rows
            start, num_rows, block = start + size, num_rows - size, block + 1
        return runs, np.concatenate(inside)
