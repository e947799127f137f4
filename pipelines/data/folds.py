"""Folds over one cache: rows are stored piece by piece, and a fold is a choice of pieces.

`fold` stores each fold as a piece: fold k validates on piece k and trains on the others. `time_fold` stores what lies between two
of its moments as a piece, twice where groups are held out. So five folds cost one preparation and one copy of the rows. What is
fitted (vocabularies, means) is fitted on the rows that some fold trains on, and is the same in all folds: that includes the inputs
of rows that a fold validates on, never their labels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config.splits import FoldSplit, Moment, TimeFoldSplit
from .hashes import hash_integers, hash_numbers, hash_strings
from .shards import Cache, SplitData
from .sources import SourceBatch
from .values import Kind, Place, kind_of, numbers, one_array, plain, strings

NUM_BUCKETS = 4096
_MOST_CLASSES = 64
_SALT = 0x5350_4C49_5400_0000  # another stream than feature hashes of the same seed


def split_seed(seed: int) -> int:
    return (seed ^ _SALT) % 2**64


def hash_values(column: pa.Array, seed: int, place: Place) -> np.ndarray:
    """[N] uint64, the same for 7, 7.0 and every batch."""
    kind: Kind | None = kind_of(column.type)
    if kind == "number":
        return hash_numbers(numbers(column, place)[0], split_seed(seed))
    return hash_strings(strings(column, place), split_seed(seed))


def split_column(batch: SourceBatch, name: str, by: str) -> tuple[pa.Array, Place]:
    """A column that a split goes by.

    Raises:
        ValueError: naming file, column and data row of a missing value.
    """
    place = Place(batch.path, name, batch.first_row)
    column = plain(one_array(batch.batch.column(name)))
    missing = pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)
    if missing.any():
        raise place.error(int(missing.argmax()), f"the value is missing, and data.split goes by this column (by: {by})")
    return column, place


class FoldPlan:
    """Which fold each row belongs to. Groups (or single rows, by position) are hashed into buckets, and buckets are dealt to folds.

    Without group and stratify, the hash alone decides. Else one pass over the rows counts each bucket's rows per class, and the
    buckets are dealt so that all folds get equally many rows of each class: the largest first, each to the fold that has least of
    what it brings (the greedy rule of scikit-learn's StratifiedGroupKFold, on buckets instead of groups). Memory does not grow with
    rows or groups, the order of files does not matter where there is a group, and a group is never on two sides.
    """

    def __init__(self, split: FoldSplit) -> None:
        self.split = split
        self.needs_counts = bool(split.group or split.stratify)
        self._counts: dict[str | None, np.ndarray] = {}  # value of `stratify` -> [NUM_BUCKETS] rows
        self._fold_of: np.ndarray | None = None

    def _hashes(self, batch: SourceBatch) -> np.ndarray:
        split, num_rows = self.split, batch.batch.num_rows
        if not split.group:
            return hash_integers(np.arange(batch.global_row, batch.global_row + num_rows), split_seed(split.seed))
        column, place = split_column(batch, split.group, split.by)
        return hash_values(column, split.seed, place)

    def count(self, batch: SourceBatch) -> None:
        """The pass before the deal.

        Raises:
            ValueError: a missing group; more than 64 values to stratify by.
        """
        bucket = (self._hashes(batch) % np.uint64(NUM_BUCKETS)).astype(np.int64)
        if not self.split.stratify:
            self._add("", bucket)
            return
        place = Place(batch.path, self.split.stratify, batch.first_row)
        coded = strings(plain(one_array(batch.batch.column(self.split.stratify))), place).dictionary_encode()
        codes = coded.indices.fill_null(len(coded.dictionary)).to_numpy()
        for code, value in enumerate([*coded.dictionary.to_pylist(), None]):
            if len(of_value := bucket[codes == code]):
                self._add(value, of_value)
                if len(self._counts) > _MOST_CLASSES:
                    raise place.column_error(
                        f"data.split.stratify: more than {_MOST_CLASSES} values; give a column with few, such as the label"
                    )

    def counts(self) -> list[tuple[str | None, list[int]]]:
        """What was counted so far, as JSON data."""
        return [(value, of_value.tolist()) for value, of_value in self._counts.items()]

    def add_counts(self, counts: Iterable[tuple[str | None, list[int]]]) -> None:
        """What another process has counted in other rows.

        Raises:
            ValueError: more than 64 values to stratify by.
        """
        for value, of_value in counts:
            self._counts[value] = self._counts.get(value, 0) + np.array(of_value)
        if len(self._counts) > _MOST_CLASSES:
            raise ValueError(f"data.split.stratify: more than {_MOST_CLASSES} values; give a column with few, such as the label")

    def _add(self, value: str | None, bucket: np.ndarray) -> None:
        counts = self._counts.setdefault(value, np.zeros(NUM_BUCKETS, np.int64))
        counts += np.bincount(bucket, minlength=NUM_BUCKETS)

    def deal(self) -> None:
        """After the last `count`."""
        classes = sorted(self._counts, key=lambda value: (value is None, value or ""))
        counts_BC = np.stack([self._counts[value] for value in classes], axis=1).astype(np.float64)
        share_BC = counts_BC / counts_BC.sum(axis=0)
        have_KC = np.zeros((self.split.num_folds, len(classes)))
        fold_of = np.zeros(NUM_BUCKETS, np.int8)
        for bucket in np.argsort(-share_BC.max(axis=1), kind="stable"):
            # the sum of squares over folds grows by 2 * have @ share + const
            fold = int((have_KC @ share_BC[bucket]).argmin())
            have_KC[fold] += share_BC[bucket]
            fold_of[bucket] = fold
        self._fold_of = fold_of

    def assign(self, batch: SourceBatch) -> np.ndarray:
        """[N] int8, the number of each row's fold."""
        hashes = self._hashes(batch)
        if not self.needs_counts:
            return (hashes % np.uint64(self.split.num_folds)).astype(np.int8)
        assert self._fold_of is not None, "deal() comes first"
        return self._fold_of[(hashes % np.uint64(NUM_BUCKETS)).astype(np.int64)]


def cuts(split: TimeFoldSplit) -> list[tuple[Moment, str]]:
    """All moments of a split, growing, each with the option that names it first."""
    found = dict.fromkeys(split.valid_from, "valid_from")
    for moment in split.train_before:
        found.setdefault(moment, "train_before")
    return sorted(found.items())  # all are text, or all are numbers


def held_out(hashes: np.ndarray, split: TimeFoldSplit) -> np.ndarray:
    return hashes.astype(np.float64) / 2.0**64 < split.group_share


def piece_names(split: FoldSplit | TimeFoldSplit) -> tuple[str, ...]:
    """What the cache calls its pieces, in the order of the splitter's codes."""
    if isinstance(split, FoldSplit):
        return tuple(f"fold_{k:02d}" for k in range(split.num_folds))
    periods = tuple(f"period_{p:02d}" for p in range(len(cuts(split)) + 1))
    return periods + (tuple(f"{name}_held_out" for name in periods) if split.group else ())


def pieces_of(split: FoldSplit | TimeFoldSplit, fold: int) -> tuple[list[int], list[int]]:
    """The pieces that a fold trains on, and those that it validates on."""
    if isinstance(split, FoldSplit):
        return [k for k in range(split.num_folds) if k != fold], [fold]
    moments = [moment for moment, _ in cuts(split)]
    num_periods = len(moments) + 1
    end = moments.index((split.train_before or split.valid_from)[fold])
    first = moments.index(split.valid_from[fold]) + 1
    last = fold + 1 == len(split.valid_from)
    stop = num_periods if last else moments.index(split.valid_from[fold + 1]) + 1
    shift = num_periods if split.group else 0
    return list(range(end + 1)), list(range(shift + first, shift + stop))


def num_folds(split: FoldSplit | TimeFoldSplit) -> int:
    return split.num_folds if isinstance(split, FoldSplit) else len(split.valid_from)


def check_rows(split: FoldSplit | TimeFoldSplit, num_rows: Mapping[str, int]) -> None:
    """Raises ValueError if a fold has nothing to train on or to validate on."""
    names = piece_names(split)
    for fold in range(num_folds(split)):
        for side, pieces in zip(("train", "validate"), pieces_of(split, fold)):
            if not any(num_rows[names[p]] for p in pieces):
                got = ", ".join(f"{name}: {num_rows[name]}" for name in names)
                raise ValueError(f"fold {fold} of data.split (by: {split.by}) has no row to {side} on (rows: {got})")


def fold_of_cache(cache: Cache, split: FoldSplit | TimeFoldSplit) -> Cache:
    """The same files as splits train and valid of the chosen fold (and test, where it has files of its own)."""
    names = piece_names(split)

    def joined(name: str, pieces: list[int]) -> SplitData:
        shards = tuple(shard for p in pieces for shard in cache.splits[names[p]].shards)
        return SplitData(name, cache.schema, shards, cache.stores)

    train, valid = pieces_of(split, split.fold)
    splits = {"train": joined("train", train), "valid": joined("valid", valid)}
    return replace(cache, splits=splits | {name: data for name, data in cache.splits.items() if name == "test"})
