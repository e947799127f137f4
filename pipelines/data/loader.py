"""From shards to batches: a seeded order that does not depend on the number of processes, equal batch counts on every rank."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from torchrec_models.batch import Batch
from torchrec_models.schema import Schema

from .order import EpochOrder, epoch_order
from .read_ahead import read_ahead
from .rows import BatchBuilder, Rows
from .shards import Cache, SplitData

if TYPE_CHECKING:
    from .transforms import Encoded

LastBatch = Literal["keep", "drop"]


def to_batch(
    schema: Schema,
    encoded: "Encoded",
    *,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    row_id: Tensor | None = None,
) -> Batch:
    """A batch of encoded rows that never were in a cache (predict, serving).

    Args:
        labels: [N, T] float32; default 0.
        weights: [N, max(T, 1)] float32; default 1.
        row_id: [N] int64; default 0 .. N - 1.
    """
    rows = Rows.from_encoded(schema, encoded, labels=labels, weights=weights)
    return BatchBuilder(schema)(rows, torch.arange(rows.num_rows) if row_id is None else row_id)


class Loader:
    """Batches of one split, for one rank.

    Global batch i of an epoch is rows [i * batch_size, (i + 1) * batch_size) of the epoch's order, and rank r takes its r-th
    equal slice. The order depends on (seed, epoch) only, so the same rows meet in the same step on any number of ranks.

    A split of at most `memory_limit_bytes` is read once, verified and kept, and its shuffle is a full permutation. A larger
    one is streamed in windows of 16 blocks of 2048 rows: blocks are permuted over the split, rows within a window. Every rank
    reads every window then (its rows of each batch are spread over it).

    Args:
        cache: a finished cache.
        split: "train", "valid" or "test".
        batch_size: rows per step over all ranks.
        rank, world_size: of this process.
        shuffle: another order each epoch; False: the stored order.
        seed: of the shuffle, >= 0.
        last_batch: what happens to the last N % batch_size rows. "keep" gives each rank floor(n / world_size) of them (so
            at most world_size - 1 rows of an epoch are left out); "drop" leaves them all out.
        pad: for evaluation: every row exactly once over all ranks. Ranks that lack a row of the last batch repeat one, with
            row_id -1 and weight 0. Needs `last_batch="keep"`.
        pin_memory: page-locked tensors, for fast copies to a GPU; done in the reading thread.
        memory_limit_bytes: what a split may take in this process to be kept.
        read_ahead_batches: batches made ahead of their use, in a thread.

    Attributes:
        num_rows: of the split, over all ranks.
        num_batches: per epoch; the same on every rank.

    Raises:
        ValueError: if the split does not exist or gives no batch, if batch_size cannot be divided by world_size, or if a
            file of a kept split was altered.
    """

    def __init__(
        self,
        cache: Cache,
        split: str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        last_batch: LastBatch = "keep",
        pad: bool = False,
        pin_memory: bool = False,
        memory_limit_bytes: int = 2 << 30,
        read_ahead_batches: int = 4,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            fits = max(batch_size // world_size, 1) * world_size
            raise ValueError(
                f"batch_size {batch_size} (rows per step over all ranks) cannot be divided among {world_size} ranks; try {fits}"
            )
        if pad and last_batch == "drop":
            raise ValueError('pad=True keeps every row and last_batch="drop" leaves some out; choose one')
        assert 0 <= rank < world_size, (rank, world_size)
        self._split = cache.split(split)
        self.schema = cache.schema
        self._build = BatchBuilder(cache.schema)
        self._rank, self._world_size = rank, world_size
        self._batch_size, self._pad = batch_size, pad
        self._shuffle, self._seed = shuffle, seed
        self._pin_memory = pin_memory
        self._read_ahead_batches = read_ahead_batches
        self._in_memory = self._split.num_bytes <= memory_limit_bytes
        self._kept: Rows | None = None
        self.num_rows = self._split.num_rows
        self.num_batches, rest = divmod(self.num_rows, batch_size)
        if last_batch == "keep" and (rest if pad else rest // world_size):
            self.num_batches += 1
        if self.num_batches == 0:
            need = (
                f"{world_size} rows, one per rank" if last_batch == "keep" else f"batch_size {batch_size} rows (last_batch: drop)"
            )
            raise ValueError(
                f"split {split!r} of {cache.folder} has {self.num_rows} rows and gives no batch; it needs at least {need}"
            )

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `start_batch` on; skipping reads nothing and changes nothing in the batches after it.

        A thread reads ahead; an exception in it is raised here. Close the iterator, or drop it, to stop early.
        """
        return read_ahead(
            lambda: self._batches(epoch, start_batch), depth=self._read_ahead_batches, name=f"loader-{self._split.name}"
        )

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        order = epoch_order(self._split, shuffle=self._shuffle, seed=self._seed, epoch=epoch, whole=self._in_memory)
        reader = _OrderedReader(self._split, order, self._keep() if self._in_memory else None)
        for index in range(start_batch, self.num_batches):
            first = index * self._batch_size
            total = min(self._batch_size, self.num_rows - first)
            share = -(-total // self._world_size) if self._pad else total // self._world_size
            start = first + self._rank * share
            num_real = max(0, min(share, first + total - start))
            if num_real:
                rows, row_id = reader.take(start, start + num_real)
            else:
                rows, row_id = reader.take(first, first + 1)
            if num_real < share:
                rows, row_id = _padded(rows, row_id, num_real, share)
            batch = self._build(rows, row_id)
            yield batch.pin_memory() if self._pin_memory else batch

    def _keep(self) -> Rows:
        """The whole split, read and verified once."""
        if self._kept is None:
            self._split.verify()
            self._kept = Rows.cat([self._split.read(i, 0, shard.num_rows) for i, shard in enumerate(self._split.shards)])
        return self._kept


class _OrderedReader:
    """Rows by their position in an epoch; holds one window at a time, and expects positions to grow."""

    def __init__(self, split: SplitData, order: EpochOrder, kept: Rows | None) -> None:
        self.split = split
        self.order = order
        self.window = -1
        self.rows = kept
        self.kept = kept is not None

    def take(self, start: int, stop: int) -> tuple[Rows, Tensor]:
        """The rows at positions start .. stop - 1 in memory of their own, and their positions in the split."""
        parts, row_ids = [], []
        first_window = int(self.order.starts.searchsorted(start, side="right")) - 1
        last_window = int(self.order.starts.searchsorted(stop - 1, side="right")) - 1
        for window in range(first_window, last_window + 1):
            self._open(window)
            assert self.rows is not None
            begin = int(self.order.starts[window])
            index = torch.arange(max(start - begin, 0), min(stop - begin, int(self.order.starts[window + 1]) - begin))
            if self.permutation is not None:
                index = self.permutation[index]
            parts.append(self.rows.take(index))
            row_ids.append(self.row_id[index])
        return Rows.cat(parts), torch.cat(row_ids)

    def _open(self, window: int) -> None:
        if window == self.window:
            return
        if not self.kept:
            self.rows = Rows.cat([self.split.read(b.shard, b.start, b.stop) for b in self.order.windows[window]])
        self.row_id = self.order.rows_of(window)
        self.permutation = self.order.permutation(window)
        self.window = window


def _padded(rows: Rows, row_id: Tensor, num_real: int, size: int) -> tuple[Rows, Tensor]:
    """`size` rows: the first `num_real` as given, then repeats of the last one with weight 0 and row_id -1."""
    index = torch.arange(size).clamp(max=max(num_real - 1, 0))
    padded = rows.take(index)
    padded.weights[num_real:] = 0
    padded_row_id = row_id[index]
    padded_row_id[num_real:] = -1
    return padded, padded_row_id
