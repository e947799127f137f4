"""The last pass of `prepare`: raw rows are encoded and spread over the shards of their splits."""

import time
from collections.abc import Collection, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from torchrec_models.pipelines.config import RunConfig

from .journal import Journal
from .missing import Missing
from .rows import Rows
from .saving import Pace
from .shard_writer import ShardWriter
from .shards import Shard
from .sources import SourceBatch, wanted_columns
from .splits import stored_names
from .store_files import LogEncoder
from .targets import read_side_columns, read_targets, side_columns, side_schema


def pick(batch: SourceBatch, index: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray | None]:
    """The rows at `index` (growing), and their 0-based numbers in the file where they are not simply all rows."""
    if len(index) == batch.batch.num_rows:
        return batch.batch, None
    return batch.batch.take(pa.array(index)), batch.first_row + index


@dataclass(frozen=True)
class Share:
    """The rows of a batch that no finished shard holds: which (growing), and the split of each."""

    batch: SourceBatch
    index: np.ndarray
    codes: np.ndarray
    begin: "Begin"


@dataclass(frozen=True)
class Begin:
    """Where a batch begins: its part, its first row over the whole source, and the rows of each stored split before it."""

    part: int
    row: int
    rows_before: tuple[int, ...]


Written = list[tuple[int, Rows, pa.Table, Missing]]
"""Per split (its index), encoded rows, their side columns, and what was missing of the raw rows."""


class RowWriter:
    """Writes all splits side by side: `share` every batch, `encode` it, `append` it.

    `share` and `append` want the batches in the order of the first run; `encode` may be done by any thread.

    Rows that finished shards hold already are not encoded again, nor are those of shards that another process writes.

    Args:
        folder: where the splits' folders are or will be.
        encode: makes rows of what is read.
        journal: says which shards are finished, and is told of each new one.
        raw_schema: of the training files; types of side columns are taken from it.
        shards: split -> numbers of the shards to write.
        pool: as of ShardWriter.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        config: RunConfig,
        encode: LogEncoder,
        raw_schema: pa.Schema,
        *,
        shards: Mapping[str, range],
        pool: Executor | None = None,
    ) -> None:
        self._config = config
        self._columns = wanted_columns(config)
        self._encode_log = encode
        self._side_columns = side_columns(config.data)
        self._side_schema = side_schema(self._side_columns, raw_schema)

        self._journal, self._pool, self._pace = journal, pool, Pace()
        self._saving: Future[None] | None = None

        def writer(split: str) -> ShardWriter:
            def record(shard: Shard) -> None:
                journal.add({"split": split, "name": shard.folder.name, "shard": shard.to_json()})

            finished = journal.finished_shards(split, folder / split, shards[split])
            following = shards[split][len(finished) : len(finished) + 1]
            return ShardWriter(
                folder / split,
                encode.schema,
                self._side_schema,
                rows_per_shard=config.data.rows_per_shard,
                numbers=shards[split],
                finished=finished,
                saved=journal.saved_shard(split, f"{following.start:05d}") if following else None,
                on_finished=record,
                pool=pool,
            )

        self.splits = stored_names(config.data.split)
        self._writers = [writer(split) for split in self.splits]
        first_rows = [shards[split].start * config.data.rows_per_shard for split in self.splits]
        self._needed_from = [first + writer.num_rows for first, writer in zip(first_rows, self._writers)]
        self._needed_to = [shards[split].stop * config.data.rows_per_shard for split in self.splits]
        self._num_seen = [0] * len(self.splits)

    @property
    def num_rows(self) -> dict[str, int]:
        """Split -> rows written, by this run and before it."""
        return {split: writer.num_rows for split, writer in zip(self.splits, self._writers)}

    @property
    def shards(self) -> dict[str, list[Shard]]:
        return {split: writer.shards for split, writer in zip(self.splits, self._writers)}

    def needed(self, splits: Collection[str]) -> dict[int, tuple[int, int]]:
        """Split (its index) -> numbers, within it, of the first row that is still to be written and of the one behind the last."""
        codes = [self.splits.index(split) for split in splits]
        return {code: (self._needed_from[code], self._needed_to[code]) for code in codes}

    def begin(self, source: str, splits: Collection[str]) -> Begin | None:
        """The last beginning of a part that was noted, of a source's files, before which all rows of these splits are written."""
        codes = [self.splits.index(split) for split in splits]
        found = [Begin(one["part"], one["row"], tuple(one["rows_before"])) for one in self._journal.reached(source)]
        behind = [one for one in found if all(one.rows_before[code] <= self._needed_from[code] for code in codes)]
        return max(behind, key=lambda one: one.part, default=None)

    def save(self, source: str, begin: Begin) -> None:
        """Saves, where it is time to, what was appended: all before `begin`. The disk gets it while more is appended.

        Raises:
            OSError: with the path, if the disk refuses this, or refused it the last time.
        """
        if not self._pace.is_due() or (self._saving and not self._saving.done()):
            return
        if self._saving:
            self._saving.result()
        start = time.monotonic()
        earlier = [shard for writer in self._writers for shard in writer.unfinished]
        writers = [(split, writer) for split, writer in zip(self.splits, self._writers) if writer.under_way]
        shards = [(split, shard, shard.save()) for split, writer in writers if (shard := writer.under_way)]

        def force() -> None:
            for finishing in earlier:
                finishing.result()
            for _, shard, _ in shards:
                shard.force()
            told = [{"split": split, "name": shard.folder.stem, **saved} for split, shard, saved in shards]
            self._journal.add({"saved": {"reached": {"source": source, **vars(begin)}, "shards": told}})
            for _, shard, saved in shards:
                shard.forget(but=saved["waiting"])

        if self._pool is None:
            force()
        else:
            self._saving = self._pool.submit(force)
            for _, writer in writers:
                writer.being_saved = self._saving
        self._pace.saved(took_seconds=time.monotonic() - start)

    def start_behind(self, rows_before: Mapping[int, int]) -> None:
        """The next batch comes behind so many rows of each split."""
        for code, num_rows in rows_before.items():
            self._num_seen[code] = num_rows

    def share(self, batch: SourceBatch, codes: np.ndarray) -> Share:
        """What of a batch is still to be written; `codes` [N] says the split of each row as an index in `splits`."""
        begin = Begin(batch.part, batch.global_row, tuple(self._num_seen))
        needed = np.ones(len(codes), bool)
        for code in range(len(self.splits)):
            of_split = np.flatnonzero(codes == code)
            first, stop = self._needed_from[code] - self._num_seen[code], self._needed_to[code] - self._num_seen[code]
            needed[of_split[: max(first, 0)]] = False
            needed[of_split[max(stop, 0) :]] = False
            self._num_seen[code] += len(of_split)
        index = np.flatnonzero(needed)
        return Share(batch, index, codes[index], begin)

    def encode(self, share: Share) -> Written:
        """The rows as they will be stored.

        Raises:
            ValueError: for values that the transforms, labels, weights or side columns cannot take (file, column, row).
        """
        if not len(share.index):
            return []
        rows, side, missing = self._encode(share.batch, share.index)
        out = []
        for code in range(len(self.splits)):
            of_split = np.flatnonzero(share.codes == code)
            if len(of_split) == len(share.codes):
                out.append((code, rows, side, missing))
            elif len(of_split):
                taken = rows.take(torch.from_numpy(of_split)), side.take(pa.array(of_split)), missing.take(of_split)
                out.append((code, *taken))
        return out

    def append(self, written: Written) -> None:
        """Writes what `encode` gave.

        Raises:
            OSError: with the path, if the disk refuses.
        """
        for code, rows, side, missing in written:
            self._writers[code].append(rows, side, missing)

    def _encode(self, batch: SourceBatch, index: np.ndarray) -> tuple[Rows, pa.Table, Missing]:
        raw, numbers = pick(batch, index)
        where, first_row, config = str(batch.path), batch.first_row, self._config
        labels, weights = read_targets(config.labels, config.data.weight, raw, where=where, first_row=first_row, rows=numbers)
        encoded = self._encode_log(raw, where=where, first_row=first_row, rows=numbers, labels=labels, weights=weights)
        side = read_side_columns(self._side_columns, self._side_schema, raw, where=where, first_row=first_row, rows=numbers)
        missing = Missing.of(raw, self._columns, known={name: mask[index] for name, mask in batch.missing.items()})
        return encoded, side, missing

    def close(self, split: str) -> None:
        """Finishes a split's last shard; no row of it comes after this."""
        self._writers[self.splits.index(split)].close()
