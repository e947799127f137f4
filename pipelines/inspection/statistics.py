"""`trm data stats`: what the prepared rows look like, in one pass over each split, a block of rows at a time.

Numbers and ids are what the model is given: steps were applied, so a missing number cannot be told from its fill any more. What was
missing of the raw rows was counted by `trm prepare`, for every column.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from torchrec_models.pipelines.data.ids import Hash, IdTransform
from torchrec_models.pipelines.data.order import Run
from torchrec_models.pipelines.data.progress import progress_bar
from torchrec_models.pipelines.data.rows import Rows, list_valued, single_valued
from torchrec_models.pipelines.data.shards import Cache, SplitData
from torchrec_models.pipelines.data.window_reader import WindowReader

_BLOCK_ROWS = 1 << 16
NUM_BINS = 40
_FIRST_EPOCH_SECONDS = 10**8  # 1973; smaller numbers count something else than seconds since 1970
_FIRST_EPOCH_MILLISECONDS = 10**11
_TIME_SLICES = 20


@dataclass
class NumberStats:
    """Of one numeric feature in one split. Bins reach from the smallest to the largest value of the split."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    bins: np.ndarray = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def std(self) -> float:
        return float(np.sqrt(max(0.0, self.squares / self.count - self.mean**2)))

    @property
    def edges(self) -> np.ndarray:
        return np.linspace(self.low, self.high, NUM_BINS + 1)


@dataclass
class IdStats:
    """Of one categorical or sequence feature in one split.

    Attributes:
        counts: [table rows] how often each is used.
        lengths: [max_len + 1] rows by their number of ids; one id in each row for single-valued features.
        missing_row: the table row of missing values; -1 where they have none of their own.
        has_oov: whether row 0 stands for values that are not known (not in identity and hashed tables).
    """

    counts: np.ndarray
    lengths: np.ndarray
    missing_row: int
    has_oov: bool

    @property
    def num_ids(self) -> int:
        return int(self.counts.sum())

    @property
    def distinct(self) -> int:
        return int((self.counts > 0).sum())

    @property
    def oov_share(self) -> float:
        return float(self.counts[0] / max(1, self.num_ids)) if self.has_oov else float("nan")

    @property
    def missing_share(self) -> float:
        return float(self.counts[self.missing_row] / max(1, self.num_ids)) if self.missing_row > 0 else float("nan")

    @property
    def mean_length(self) -> float:
        return float((np.arange(len(self.lengths)) * self.lengths).sum() / self.lengths.sum())

    @property
    def empty_share(self) -> float:
        return float(self.lengths[0] / self.lengths.sum())


@dataclass(frozen=True)
class RateOverTime:
    """Label means by day, or by equal slices of a time that is not a date. Rows without a time are in no period."""

    unit: str
    periods: list[str]
    num_rows: list[int]
    means: dict[str, list[float]]
    num_rows_without_time: int


@dataclass(frozen=True)
class SplitStats:
    """Of one split.

    Attributes:
        missing: raw column -> rows whose value was missing; None where `trm prepare` did not record it (earlier releases).
    """

    num_rows: int
    label_means: dict[str, float]
    missing: Mapping[str, int] | None
    numbers: dict[str, NumberStats]
    ids: dict[str, IdStats]
    over_time: RateOverTime | None

    def missing_share(self, column: str) -> float | None:
        """Of its rows; None where it was not recorded."""
        return None if self.missing is None else self.missing[column] / max(1, self.num_rows)


def raw_columns(stats: Mapping[str, SplitStats]) -> list[str]:
    """Those whose missing values were recorded in some split."""
    return list(dict.fromkeys(column for split in stats.values() for column in split.missing or ()))


def statistics(cache: Cache, *, progress: bool = False) -> dict[str, SplitStats]:
    """Of every split. Memory holds one block of rows and a count for each table row.

    Args:
        progress: a bar on stderr; rows are read twice where there are numbers.
    """
    passes = 2 if cache.schema.dense else 1
    num_rows = passes * sum(split.num_rows for split in cache.splits.values())
    with progress_bar("stats", num_rows, progress=progress) as bar:
        return {name: _of_split(cache, split, bar) for name, split in cache.splits.items()}


def _of_split(cache: Cache, split: SplitData, bar: tqdm) -> SplitStats:
    tables = cache.transforms.tables if cache.manifest["transforms"] else {}
    numbers = {f.name: NumberStats() for f in cache.schema.dense}
    ids: dict[str, IdStats] = {}
    for feature in (*single_valued(cache.schema), *list_valued(cache.schema)):
        num_rows, table = cache.schema.table(feature.table).num_rows, tables.get(feature.table)
        lengths = np.zeros(feature.max_len + 1, np.int64)
        ids[feature.name] = IdStats(np.zeros(num_rows, np.int64), lengths, *_special_rows(table))
    for rows in _blocks(split):
        _add_ranges(numbers, rows.dense.numpy())
        _add_ids(cache, ids, rows)
        bar.update(rows.num_rows)
    for rows in _blocks(split) if numbers else ():  # bins need the range first
        bar.update(rows.num_rows)
        dense = rows.dense.numpy()
        for column, stats in enumerate(numbers.values()):
            if stats.high > stats.low:
                stats.bins += np.histogram(dense[:, column], bins=stats.edges)[0]
    return SplitStats(split.num_rows, split.label_mean, split.missing, numbers, ids, _over_time(cache, split))


def _special_rows(table: IdTransform | None) -> tuple[int, bool]:
    """(row of missing values or -1, whether row 0 means not known)."""
    if table is None or table.null == "error":
        missing = -1
    else:
        missing = table.null_id if table.null == "token" and not isinstance(table, Hash) and _has_null_row(table) else -1
    return missing, type(table).__name__ in ("Vocabulary", "Buckets")


def _has_null_row(table: IdTransform) -> bool:
    values = getattr(table, "values", None)
    return values is None or values.null_count > 0


def _blocks(split: SplitData) -> Iterator[Rows]:
    reader = WindowReader(split)
    try:
        for start in range(0, split.num_rows, _BLOCK_ROWS):
            yield split.join(reader.read([Run(start, min(_BLOCK_ROWS, split.num_rows - start))]))
    finally:
        reader.close()


def _add_ranges(numbers: dict[str, NumberStats], dense_ND: np.ndarray) -> None:
    if not numbers:
        return
    total, squares = dense_ND.sum(0, dtype=np.float64), np.einsum("nd,nd->d", dense_ND, dense_ND, dtype=np.float64)
    low, high, zeros = dense_ND.min(0), dense_ND.max(0), (dense_ND == 0).sum(0)
    for column, stats in enumerate(numbers.values()):
        stats.count += len(dense_ND)
        stats.total += float(total[column])
        stats.squares += float(squares[column])
        stats.zeros += int(zeros[column])
        stats.low, stats.high = min(stats.low, float(low[column])), max(stats.high, float(high[column]))


def _add_ids(cache: Cache, ids: dict[str, IdStats], rows: Rows) -> None:
    for column, feature in enumerate(single_valued(cache.schema)):
        stats = ids[feature.name]
        stats.counts += np.bincount(rows.ids[:, column].numpy(), minlength=len(stats.counts))
        stats.lengths[1] += rows.num_rows
    for (values, _), lengths, feature in zip(rows.lists, rows.lengths, list_valued(cache.schema)):
        stats = ids[feature.name]
        stats.counts += np.bincount(values.numpy(), minlength=len(stats.counts))
        stats.lengths += np.bincount(lengths.numpy(), minlength=len(stats.lengths))


def _over_time(cache: Cache, split: SplitData) -> RateOverTime | None:
    if "timestamp" not in split.columns or not cache.schema.tasks:
        return None
    unit, periods = _periods(split.column("timestamp").combine_chunks())
    coded = periods.dictionary_encode()
    names = coded.dictionary.to_pylist()
    code = coded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    labels, weights = split.labels(), split.weights()
    order = np.argsort(names)
    sums = [np.bincount(code, labels[:, i] * weights[:, i], len(names) + 1) for i in range(labels.shape[1])]
    totals = [np.bincount(code, weights[:, i], len(names) + 1) for i in range(labels.shape[1])]
    with np.errstate(invalid="ignore"):
        means = {task.name: (sums[i] / totals[i])[order].tolist() for i, task in enumerate(cache.schema.tasks)}
    rows = np.bincount(code, minlength=len(names) + 1)
    return RateOverTime(unit, [str(names[i]) for i in order], rows[order].tolist(), means, int(rows[-1]))


def _periods(time: pa.Array) -> tuple[str, pa.Array]:
    """The day of each time as text; for numbers that are no seconds or milliseconds since 1970, one of 20 equal slices."""
    if pa.types.is_timestamp(time.type) or pa.types.is_date(time.type):
        return "day", pc.strftime(time.cast(pa.timestamp("s"), safe=False), format="%Y-%m-%d")
    if pa.types.is_string(time.type) or pa.types.is_large_string(time.type):
        return "day", pc.utf8_slice_codeunits(time, 0, 10)
    number = time.cast(pa.float64())
    ends = pc.min_max(number)
    low, high = ends["min"].as_py() or 0.0, ends["max"].as_py() or 0.0
    if low >= _FIRST_EPOCH_SECONDS:
        seconds = pc.divide(number, 1000.0) if low >= _FIRST_EPOCH_MILLISECONDS else number
        stamps = pc.floor(seconds).cast(pa.int64()).cast(pa.timestamp("s"))
        return "day", pc.strftime(stamps, format="%Y-%m-%d")
    width = (high - low) / _TIME_SLICES or 1.0
    piece = pc.min_element_wise(pc.floor(pc.divide(pc.subtract(number, low), width)), _TIME_SLICES - 1, skip_nulls=False)
    starts = np.array([f"{i + 1:02d}: from {low + i * width:g}" for i in range(_TIME_SLICES)])
    return "slice of time", pa.array(starts).take(piece.cast(pa.int64()))
