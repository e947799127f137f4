"""The order of an epoch's rows: a function of the data, the seed and the epoch, never of the number of processes.

Rows are grouped in windows; an epoch is its windows one after the other, each permuted inside. A split that fits memory is one
window (a full permutation). A larger one is cut into blocks of consecutive rows; the blocks are permuted, each run of
`WINDOW_BLOCKS` is a window, and reading stays sequential within a block (a global permutation read from disk is 33 times slower).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .shards import SplitData

BLOCK_ROWS = 2048
WINDOW_BLOCKS = 16


@dataclass(frozen=True)
class Block:
    """Rows start .. stop - 1 of a shard; `first_row` is the position of `start` in the split."""

    shard: int
    start: int
    stop: int
    first_row: int


@dataclass(frozen=True)
class EpochOrder:
    """Where each position of an epoch is to be found.

    Attributes:
        windows: the blocks of each window.
        starts: [windows + 1] the position in the epoch at which each window begins, and the number of rows.
        seeds: (seed, epoch) of the permutation; None for the stored order.
    """

    windows: tuple[tuple[Block, ...], ...]
    seeds: tuple[int, int] | None

    @cached_property
    def starts(self) -> np.ndarray:
        sizes = [sum(block.stop - block.start for block in window) for window in self.windows]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def rows_of(self, window: int) -> Tensor:
        """The window's rows as positions in the split, in the order of its blocks."""
        return torch.cat([torch.arange(b.first_row, b.first_row + b.stop - b.start) for b in self.windows[window]])

    def permutation(self, window: int) -> Tensor | None:
        """[rows of the window] int64: the order in which they come; None for as they are."""
        if self.seeds is None:
            return None
        size = int(self.starts[window + 1] - self.starts[window])
        return torch.from_numpy(np.random.default_rng([*self.seeds, 1 + window]).permutation(size))


def epoch_order(split: SplitData, *, shuffle: bool, seed: int, epoch: int, whole: bool) -> EpochOrder:
    """The order of one epoch.

    Args:
        shuffle: False keeps the stored order.
        whole: one window of all rows (they are in memory) instead of windows of blocks.
    """
    seeds = (seed, epoch) if shuffle else None
    block_rows = split.num_rows if whole else BLOCK_ROWS
    blocks, first_row = [], 0
    for index, shard in enumerate(split.shards):
        for start in range(0, shard.num_rows, block_rows):
            stop = min(start + block_rows, shard.num_rows)
            blocks.append(Block(index, start, stop, first_row + start))
        first_row += shard.num_rows
    if whole:
        return EpochOrder((tuple(blocks),), seeds)
    if seeds is not None:
        blocks = [blocks[i] for i in np.random.default_rng([*seeds, 0]).permutation(len(blocks))]
    windows = tuple(tuple(blocks[i : i + WINDOW_BLOCKS]) for i in range(0, len(blocks), WINDOW_BLOCKS))
    return EpochOrder(windows, seeds)
