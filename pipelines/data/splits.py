"""Which split a row belongs to: a function of the row alone, so that batches, machines and restarts cannot move it."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config.splits import (
    ColumnSplit,
    FoldSplit,
    HashSplit,
    Moment,
    RandomSplit,
    SplitConfig,
    TimeFoldSplit,
    TimeSplit,
    split_columns,
)
from .folds import FoldPlan, cuts, hash_values, held_out, num_folds, piece_names, pieces_of, split_column, split_seed
from .hashes import hash_integers
from .sources import SourceBatch
from .values import Place, first_failure, kind_of, numbers, shown, strings

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = np.int8(0), np.int8(1), np.int8(2)


def stored_names(split: SplitConfig | None) -> tuple[str, ...]:
    """What a cache calls its splits, in the order of the codes that Splitter assigns; test comes last."""
    return (*piece_names(split), "test") if isinstance(split, FoldSplit | TimeFoldSplit) else SPLITS


class Splitter:
    """Assigns rows to splits.

    - random: by a hash of the row's number in the source and the seed;
    - hash: by a hash of the column's value and the seed, the same for 7, 7.0 and every batch;
    - time: by the column's value, compared in its own type;
    - column: by the value itself;
    - fold and time_fold: into pieces, see folds.py.

    Args:
        split: None puts every row into train.

    Attributes:
        columns: that `assign` reads.
        plan: what has to see all rows once before `assign`; None if nothing has to.
        fitted: codes of the rows that transforms are fitted on.
    """

    def __init__(self, split: SplitConfig | None) -> None:
        self._split = split
        self._folds = FoldPlan(split) if isinstance(split, FoldSplit) else None
        self.columns = split_columns(split)
        self.plan = self._folds if self._folds and self._folds.needs_counts else None
        self.fitted = [int(TRAIN)]
        if isinstance(split, FoldSplit | TimeFoldSplit):
            self.fitted = sorted({piece for fold in range(num_folds(split)) for piece in pieces_of(split, fold)[0]})

    def assign(self, batch: SourceBatch) -> np.ndarray:
        """[N] int8: 0 train, 1 valid, 2 test; with folds, the number of the piece.

        Raises:
            ValueError: naming file, column and data row, for missing values and values that belong nowhere.
        """
        split, num_rows = self._split, batch.batch.num_rows
        if split is None:
            return np.zeros(num_rows, np.int8)
        if isinstance(split, RandomSplit):
            hashes = hash_integers(np.arange(batch.global_row, batch.global_row + num_rows), split_seed(split.seed))
            return _by_share(hashes, split)
        if self._folds:
            return self._folds.assign(batch)
        assert not isinstance(split, FoldSplit)
        column, place = split_column(batch, split.column, split.by)
        if isinstance(split, TimeFoldSplit):
            return _by_period(column, split, place, batch)
        if isinstance(split, HashSplit):
            return _by_share(hash_values(column, split.seed, place), split)
        if isinstance(split, TimeSplit):
            return _by_time(column, split, place)
        return _by_value(column, split, place)


def _by_share(hashes: np.ndarray, split: RandomSplit | HashSplit) -> np.ndarray:
    """Test takes the lowest hashes, valid the next, train the rest."""
    position = hashes.astype(np.float64) / 2.0**64
    return np.where(position < split.test, TEST, np.where(position < split.test + split.valid, VALID, TRAIN))


def _by_time(column: pa.Array, split: TimeSplit, place: Place) -> np.ndarray:
    out = np.where(_at_or_after(column, split.valid_from, "valid_from", place), VALID, TRAIN)
    if split.test_from is not None:
        out = np.where(_at_or_after(column, split.test_from, "test_from", place), TEST, out)
    return out


def _by_period(column: pa.Array, split: TimeFoldSplit, place: Place, batch: SourceBatch) -> np.ndarray:
    moments = cuts(split)
    period = sum((_at_or_after(column, m, key, place).astype(np.int8) for m, key in moments), np.zeros(len(column), np.int8))
    if not split.group:
        return period
    groups, of_group = split_column(batch, split.group, split.by)
    outside = held_out(hash_values(groups, split.seed, of_group), split)
    return np.where(outside, period + np.int8(len(moments) + 1), period)


def _at_or_after(column: pa.Array, start: Moment, key: str, place: Place) -> np.ndarray:
    type = column.type
    if isinstance(start, str) and kind_of(type) == "number":
        raise place.column_error(f"the column holds numbers ({type}); give data.split.{key} as a number, not as the text {start!r}")
    if not isinstance(start, str):
        if pa.types.is_temporal(type):
            raise place.column_error(f"the column has type {type}; give data.split.{key} as an ISO date in quotes, not {start!r}")
        return numbers(column, place)[0] >= start
    if pa.types.is_temporal(type):
        return pc.greater_equal(column, _moment(start, type, key)).to_numpy(zero_copy_only=False)
    text = strings(column, place)
    shape = "^" + "".join(r"\d" if c.isdigit() else re.escape(c) for c in start)
    alike = pc.match_substring_regex(text, shape)
    if not pc.all(alike).as_py():
        index = first_failure(alike, lambda part: pc.all(part).as_py())
        raise place.error(index, f"{shown(text[index])} is not written like data.split.{key} {start!r}; text is compared as text")
    return pc.greater_equal(text, start).to_numpy(zero_copy_only=False)


def _moment(text: str, type: pa.DataType, key: str) -> pa.Scalar:
    """An ISO date or time in a column's type; without a zone it is in the column's zone."""
    zone = getattr(type, "tz", None)
    try:
        if zone and not re.search(r"(Z|[+-]\d\d:?\d\d)$", text):
            return pc.assume_timezone(pa.scalar(text).cast(pa.timestamp(type.unit)), zone)
        return pa.scalar(text).cast(type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ValueError(f"data.split.{key}: {text!r} is not an ISO date or time that fits a column of type {type}") from None


def _by_value(column: pa.Array, split: ColumnSplit, place: Place) -> np.ndarray:
    names = {str(value): code for code, key in enumerate((split.train, split.valid, split.test)) for value in key}
    coded = strings(column, place).dictionary_encode()
    codes = np.array([names.get(value, -1) for value in coded.dictionary.to_pylist()], np.int8)
    out = codes[coded.indices.to_numpy()] if len(column) else np.zeros(0, np.int8)
    unknown = out < 0
    if unknown.any():
        index = int(unknown.argmax())
        value = coded.dictionary[coded.indices[index].as_py()]
        lists = f"train {split.train}, valid {split.valid}, test {split.test}"
        raise place.error(index, f"{shown(value)} is in no list of data.split ({lists}); add it to one, or filter the rows out")
    return out
