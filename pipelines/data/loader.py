"""From shards to batches: a seeded order that does not depend on the number of processes, equal batch counts on every rank."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from torchrec_models.batch import Batch
from torchrec_models.schema import Schema

from . import order
from .gather import BatchGather, Held, NativeGather, OpenWindow, Segment, StockGather
from .native import native_gather
from .read_ahead import ReadAhead, read_ahead
from .rows import BatchBuilder, Rows
from .sampling import RowSampling
from .shards import Cache, SplitData
from .window_reader import WindowReader, window_pool

if TYPE_CHECKING:
    from .transforms import Encoded

LastBatch = Literal["keep", "drop"]
GatherKind = Literal["auto", "stock", "native"]
_BATCHES_TOGETHER, _ROWS_TOGETHER = 8, 2048  # most that are made at once: 8 of 256 rows come 1.15 times as fast as 4 (measured)


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

    Global batch i of an epoch is rows [i * batch_size, (i + 1) * batch_size) of the epoch's order, which depends on (seed, epoch)
    only (see order.py), so the same rows meet in the same step on any number of ranks. Of these rows, rank r takes every
    world_size-th one, from the r-th on; with shuffle off, the r-th equal slice.

    A split of at most `order.WHOLE_BYTES` is read once, verified and kept. A larger one is read in windows by a thread of its own,
    each rank its part. Feature stores are mapped into memory; what rows name of them is gathered with each batch.

    Args:
        cache: a finished cache.
        split: "train", "valid" or "test".
        batch_size: rows per step over all ranks.
        rank, world_size: of this process.
        shuffle: another order each epoch; False: the stored order.
        seed: of the shuffle, >= 0.
        sampling: uses a part of the rows in each epoch; needs shuffle.
        last_batch: what happens to the last N % batch_size rows. "keep" gives each rank floor(n / world_size) of them (so
            at most world_size - 1 rows of an epoch are left out); "drop" leaves them all out.
        pad: for evaluation: every row exactly once over all ranks. Ranks that lack a row of the last batch repeat one, with
            row_id -1 and weight 0. Needs `last_batch="keep"`.
        pin_memory: page-locked tensors, for fast copies to a GPU.
        read_ahead_batches: batches made ahead of their use, in a thread, at least; small ones are made up to 8 at once.
        gather: "native" copies rows with compiled code, "stock" with operators of torch and fbgemm, to the same bits; "auto":
            native where there is a C compiler, else stock, which is logged.
        id_dtype: of ids and lengths in the batch, torch.int32 or torch.int64.

    Attributes:
        num_rows: of an epoch, over all ranks.
        num_batches: per epoch; the same on every rank.

    Raises:
        ValueError: if the split does not exist or gives no batch, if batch_size cannot be divided by world_size, if native
            code was asked for and cannot be had, or if a file of a kept split was altered.
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
        sampling: RowSampling | None = None,
        last_batch: LastBatch = "keep",
        pad: bool = False,
        pin_memory: bool = False,
        read_ahead_batches: int = 4,
        gather: GatherKind = "auto",
        id_dtype: torch.dtype = torch.int64,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            fits = max(batch_size // world_size, 1) * world_size
            raise ValueError(
                f"batch_size {batch_size} (rows per step over all ranks) cannot be divided among {world_size} ranks; try {fits}"
            )
        if pad and last_batch == "drop":
            raise ValueError('pad=True keeps every row and last_batch="drop" leaves some out; choose one')
        assert 0 <= rank < world_size, (rank, world_size)
        assert shuffle or sampling is None, "a sample has no stored order"
        self._split = cache.split(split)
        self.schema = cache.schema
        self._sampling = sampling
        self.num_rows = sampling.num_rows if sampling else self._split.num_rows
        self._deal = order.Deal(self.num_rows, batch_size, rank, world_size, pad)
        self._shuffle, self._seed = shuffle, seed
        self._most_together = max(1, min(_BATCHES_TOGETHER, _ROWS_TOGETHER // self._deal.rows_per_step))
        self._read_ahead = -(-read_ahead_batches // self._most_together)
        self._is_kept = self._split.num_bytes <= order.WHOLE_BYTES
        self._kept: Held | None = None
        self._pool = window_pool(self._split)
        self._gather = _gather(gather, self._split, id_dtype=id_dtype, pin_memory=pin_memory)
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

        Threads read ahead; an exception in them is raised here. Close the iterator, or drop it, to stop early. A batch's memory
        is used again when no tensor refers to it any more, nor to one of the small batches made together with it.
        """
        with closing(self._reading(epoch, start_batch)) as reading:
            yield from _one_by_one(reading)

    def epochs(self, numbers: Iterable[int], *, start_batch: int = 0) -> Generator[Batch, None, None]:
        """The batches of several epochs, the first one from `start_batch` on: those of `epoch`, without a pause between two epochs,
        as the rows of the next one are put in order while the last quarter of one is used."""
        under_way: deque[ReadAhead[list[Batch]]] = deque()
        to_come = iter(numbers)

        def begin(start: int) -> None:
            for number in islice(to_come, 1):
                under_way.append(self._reading(number, start))

        try:
            begin(start_batch)
            left = self.num_batches - start_batch
            while under_way:
                for batch in _one_by_one(under_way[0]):
                    left -= 1
                    if left <= self.num_batches // 4 and len(under_way) == 1:
                        begin(0)
                    yield batch
                    del batch
                if len(under_way) == 1:
                    begin(0)
                under_way.popleft().close()
                left = self.num_batches
        finally:
            for reading in under_way:
                reading.close()

    def _reading(self, epoch: int, start_batch: int) -> ReadAhead[list[Batch]]:
        name = f"loader-{self._split.name}-{epoch}"
        return ReadAhead(partial(self._groups, epoch, start_batch), depth=self._read_ahead, name=name)

    def _order(self, epoch: int) -> order.EpochOrder:
        if not self._shuffle:
            return order.Stored(self._deal, batches_per_window=max(1, order.WINDOW_ROWS // self._deal.rows_per_step))
        sample = self._sampling.rows(epoch) if self._sampling else None
        if self._is_kept:
            return order.Permuted(self._deal, seed=self._seed, epoch=epoch, split_rows=self._split.num_rows, sample=sample)
        shard_rows = [shard.num_rows for shard in self._split.shards]
        return order.Lanes(self._deal, seed=self._seed, epoch=epoch, shard_rows=shard_rows, sample=sample)

    def _groups(self, epoch: int, start_batch: int) -> Generator[list[Batch], None, None]:
        """The batches of an epoch; small ones that lie in one window several at once."""
        this_epoch, deal = self._order(epoch), self._deal
        if start_batch >= self.num_batches:
            return
        first_window = this_epoch.window_of(start_batch * deal.rows_per_step)
        with ExitStack() as stack:
            windows: Iterator[OpenWindow] = self._windows(this_epoch, first_window)
            if not self._is_kept:
                reading = read_ahead(lambda: self._windows(this_epoch, first_window), depth=1, name=f"reader-{self._split.name}")
                windows = stack.enter_context(closing(reading))
            cursor = _Cursor(windows, at=this_epoch.first_of(first_window))
            cursor.skip(start_batch * deal.rows_per_step)
            batch, num_whole = start_batch, deal.num_rows // deal.batch_size
            while batch < self.num_batches:
                share, num_real = deal.share(batch), this_epoch.num_real(batch)
                together = min(self._most_together, cursor.num_open // share, num_whole - batch)
                if together > 1:
                    made = self._gather.several(cursor.take(together * share)[0], num_batches=together)
                else:
                    segments = cursor.take(num_real) if num_real else []
                    if num_real < share:
                        window = segments[-1].window if segments else self._any_row()
                        last = segments[-1].stop - 1 if segments else 0
                        segments.append(Segment(window.last_again(last, share - num_real), 0, share - num_real))
                    made = [self._gather(segments)]
                    if num_real < share:
                        made[0].weights[num_real:] = 0
                if self._sampling is not None and self._sampling.row_weights is not None:
                    for each in made:
                        each.weights.mul_(self._sampling.row_weights[each.row_id][:, None])
                batch += len(made)
                yield made

    def _windows(self, this_epoch: order.EpochOrder, first: int) -> Generator[OpenWindow, None, None]:
        last_batch = self.num_batches - 1
        num_mine = last_batch * self._deal.rows_per_step + this_epoch.num_real(last_batch)
        numbers = range(first, this_epoch.window_of(num_mine - 1) + 1 if num_mine else first)
        if self._is_kept:
            kept = self._keep()
            for number in numbers:
                runs, where = this_epoch.window(number)
                yield OpenWindow(kept, order.rows_of(runs)[where])
        else:
            with closing(WindowReader(self._split, self._pool)) as reader:
                for number in numbers:
                    runs, where = this_epoch.window(number)
                    yield OpenWindow(self._gather.of_runs(reader, runs), where)

    def _any_row(self) -> OpenWindow:
        with closing(WindowReader(self._split)) as reader:
            return OpenWindow(self._gather.of_runs(reader, [order.Run(0, 1)]), torch.zeros(1, dtype=torch.int64))

    def _keep(self) -> Held:
        """The whole split, read and verified once."""
        if self._kept is None:
            self._split.verify()
            with closing(WindowReader(self._split)) as reader:
                self._kept = self._gather.of_runs(reader, [order.Run(0, self._split.num_rows)])
        return self._kept


class _Cursor:
    """Goes through a rank's rows, window after window. Row `at` is the first of the first window."""

    def __init__(self, windows: Iterator[OpenWindow], *, at: int) -> None:
        self._windows = windows
        self._window: OpenWindow | None = None
        self._used = 0
        self._row = at

    def skip(self, to: int) -> None:
        """Go on at a row of the first window."""
        self._used = to - self._row

    @property
    def num_open(self) -> int:
        """Rows left in the window that is open."""
        return 0 if self._window is None else len(self._window.index) - self._used

    def take(self, count: int) -> list[Segment]:
        """The next rows."""
        segments = []
        while count:
            if self._window is None:
                self._window = next(self._windows)
            size = min(count, len(self._window.index) - self._used)
            if size:
                segments.append(Segment(self._window, self._used, self._used + size))
            self._used, count = self._used + size, count - size
            if self._used == len(self._window.index):
                self._window, self._used = None, 0
        return segments


def _one_by_one(groups: Iterable[list[Batch]]) -> Iterator[Batch]:
    for group in groups:
        group.reverse()
        while group:
            yield group.pop()  # and hold none that is used


def _gather(kind: GatherKind, split: SplitData, *, id_dtype: torch.dtype, pin_memory: bool) -> BatchGather:
    native = None if kind == "stock" else native_gather()
    if native is None:
        if kind == "native":
            raise ValueError("gather='native' cannot be had here (the log says why); use 'auto' or 'stock'")
        return StockGather(split.schema, split.join, id_dtype=id_dtype, pin_memory=pin_memory)
    return NativeGather(split.schema, split.join, native, id_dtype=id_dtype, pin_memory=pin_memory)
