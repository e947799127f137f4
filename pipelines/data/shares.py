"""What each of several processes does of one source: parts of the files to learn from, shards to write.

Statistics of a part, and the rows of a shard, are the same whoever makes them; so the cache does not depend on the processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from torchrec_models.pipelines.config import DataConfig
from torchrec_models.pipelines.replicas import Replicas

from .files import Part, no_rows
from .shard_writer import EVERY_SHARD
from .sources import Source
from .splits import Splitter, stored_names


@dataclass(frozen=True)
class Share:
    """Of one process, of one source.

    Attributes:
        own: parts that it learns from. It writes the shards that begin in them, and thus reads on until these are full.
        counts: [P, C] rows of each part in each stored split; None for a process that is alone, which has nothing to divide.
    """

    own: range
    counts: np.ndarray | None

    def shards(self, split: int, *, rows_per_shard: int) -> range:
        """Numbers of the shards to write of a split."""
        if self.counts is None:
            return EVERY_SHARD
        ends = np.concatenate([[0], np.cumsum(self.counts[:, split])])
        first, stop = (-(-int(ends[i]) // rows_per_shard) for i in (self.own.start, self.own.stop))
        return range(first, stop)

    def to_read(self, needed: Mapping[int, tuple[int, int]]) -> tuple[range, dict[int, int]]:
        """The parts that hold the needed rows, and how many rows of each split come before these parts.

        Args:
            needed: split -> first row and the one behind the last, counted within the split.
        """
        if self.counts is None:
            return self.own, dict.fromkeys(needed, 0)
        ends = np.concatenate([np.zeros((1, self.counts.shape[1]), np.int64), np.cumsum(self.counts, axis=0)])
        holds = np.zeros(len(self.counts), bool)
        for split, (first, stop) in needed.items():
            holds |= (ends[:-1, split] < stop) & (ends[1:, split] > first) & (self.counts[:, split] > 0)
        parts = np.flatnonzero(holds)
        reading = range(int(parts[0]), int(parts[-1]) + 1) if len(parts) else range(self.own.start, self.own.start)
        return reading, {split: int(ends[reading.start, split]) for split in needed}


def dealt(parts: Sequence[Part], num_shares: int) -> list[range]:
    """Neighbouring parts, about as much for each; a share may be empty."""
    ends = np.cumsum([part.size for part in parts])
    middles = ends - np.array([part.size for part in parts]) / 2
    share_of = np.minimum(middles * num_shares // max(int(ends[-1]), 1), num_shares - 1)
    borders = np.searchsorted(share_of, np.arange(num_shares + 1))
    return [range(int(first), int(stop)) for first, stop in pairwise(borders)]


def with_counts(source: Source, replicas: Replicas) -> Source:
    """The source, knowing how many rows each part has. Text files are read for it, each by one process.

    Raises:
        ValueError: if there are no rows.
    """
    if source.num_rows is None:
        own = dealt(source.parts, replicas.world_size)[replicas.rank]
        counts = []
        for part in own:
            replicas.check()
            counts.append(source.count_part(source.parts[part]))
        source = source.counted([num_rows for of_one in replicas.gather("rows", counts) for num_rows in of_one])
        if not source.num_rows:
            raise no_rows(source.files)
    return source


def share_of(source: Source, split: str, data: DataConfig, splitter: Splitter, replicas: Replicas) -> Share:
    """What this process does of the files of `data.<split>`. Reads the columns of the split, where there are any.

    Raises:
        ValueError: naming file and row, for rows that belong to no split.
    """
    if replicas.world_size == 1:
        return Share(range(len(source.parts)), None)
    own = dealt(source.parts, replicas.world_size)[replicas.rank]
    names = stored_names(data.split)
    counts = np.zeros((len(source.parts), len(names)), np.int64)
    if split != "train" or data.split is None:
        counts[:, names.index(split)] = [part.num_rows or 0 for part in source.parts]
        return Share(own, counts)
    reading = source.only(splitter.columns) if splitter.columns else source.only(source.arrow_schema.names[:1])
    for batch in reading.batches(own):
        replicas.check()
        counts[batch.part] += np.bincount(splitter.assign(batch), minlength=len(names))
    found = replicas.gather("rows of splits", counts[own.start : own.stop].tolist())
    return Share(own, np.array([row for of_one in found for row in of_one], np.int64).reshape(counts.shape))
