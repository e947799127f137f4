"""What is learned from a stream of rows in bounded memory: moments, a row sample, counts of distinct values."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import distinct
from .ids import hash_integers

_BLOCK_VALUES = 1 << 15  # what is summed at once; so that sums do not depend on the batches in which values come
_SAMPLE_SEED = 0x5A4D504C45


class Moments:
    """Count, mean, sum of squared deviations, lowest and highest, merged pairwise over blocks of equal size.

    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979, equation 2.1.
    """

    def __init__(self) -> None:
        self._count, self._mean, self._squares, self._low, self._high = 0, 0.0, 0.0, np.inf, -np.inf
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0

    def update(self, x: np.ndarray) -> None:
        self._waiting.append(x)
        self._num_waiting += len(x)
        if self._num_waiting >= _BLOCK_VALUES:
            together = np.concatenate(self._waiting)
            end = len(together) // _BLOCK_VALUES * _BLOCK_VALUES
            for start in range(0, end, _BLOCK_VALUES):
                self._add(together[start : start + _BLOCK_VALUES])
            self._waiting, self._num_waiting = [together[end:].copy()], len(together) - end

    def _flushed(self) -> "Moments":
        if self._num_waiting:
            self._add(np.concatenate(self._waiting))
            self._waiting, self._num_waiting = [], 0
        return self

    def _add(self, x: np.ndarray) -> None:
        mean = float(x.mean())
        self._merge(len(x), mean, float(np.square(x - mean).sum()), float(x.min()), float(x.max()))

    def repeat(self, value: float, count: int) -> None:
        """As `update` with `count` copies of one value."""
        if count:
            self._flushed()._merge(count, value, 0.0, value, value)

    @property
    def count(self) -> int:
        return self._flushed()._count

    @property
    def mean(self) -> float:
        return self._flushed()._mean

    @property
    def low(self) -> float:
        return self._flushed()._low

    @property
    def high(self) -> float:
        return self._flushed()._high

    def _merge(self, count: int, mean: float, squares: float, low: float, high: float) -> None:
        total = self._count + count
        delta = mean - self._mean
        self._mean += delta * count / total
        self._squares += squares + delta * delta * self._count * count / total
        self._count, self._low, self._high = total, min(self._low, low), max(self._high, high)
        if self._low == self._high:  # else a constant such as 0.1 would get a spread of rounding errors
            self._mean, self._squares = self._low, 0.0

    @property
    def std(self) -> float:
        """Standard deviation of the population."""
        return float(np.sqrt(self._squares / self.count)) if self.count else 0.0


@dataclass
class RowSample:
    """All values up to `size` of them; past that a uniform sample of `size`, the same however the rows are batched.

    Every row gets a pseudo-random priority from its number, and the lowest priorities stay. A quantile of the sample is off
    by at most sqrt(ln(2 / p) / (2 size)) in rank, with probability 1 - p (Dvoretzky-Kiefer-Wolfowitz; Massart 1990): 0.0014 at
    size 1,000,000 and p = 0.05.
    """

    size: int
    seen: int = 0
    _values: list[np.ndarray] = field(default_factory=list)
    _priorities: list[np.ndarray] = field(default_factory=list)
    _held: int = 0
    _highest: int = 2**64 - 1

    def update(self, x: np.ndarray) -> None:
        priorities = hash_integers(np.arange(self.seen, self.seen + len(x)), _SAMPLE_SEED)
        self.seen += len(x)
        if self.seen > self.size:
            low = priorities <= np.uint64(self._highest)
            x, priorities = x[low], priorities[low]
        self._values.append(x)
        self._priorities.append(priorities)
        self._held += len(x)
        if self._held > 2 * self.size:
            self._shrink()

    def _shrink(self) -> None:
        values, priorities = np.concatenate(self._values), np.concatenate(self._priorities)
        if len(values) > self.size:
            kept = np.argpartition(priorities, self.size - 1)[: self.size]
            values, priorities = values[kept], priorities[kept]
            self._highest = int(priorities.max())
        self._values, self._priorities, self._held = [values], [priorities], len(values)

    @property
    def exact(self) -> bool:
        return self.seen <= self.size

    def quantiles(self, levels: np.ndarray, *, repeated: tuple[float, int] | None = None) -> np.ndarray:
        """Quantiles at `levels`, linear between order statistics, of the rows and of `repeated` (value, copies)."""
        self._shrink()
        values = np.sort(self._values[0])
        value, copies = repeated or (0.0, 0)
        copies = round(copies * len(values) / self.seen) if self.seen else copies
        split = int(np.searchsorted(values, value))
        place = np.asarray(levels) * (len(values) + copies - 1)
        below = np.floor(place).astype(np.int64)

        def ordered(index: np.ndarray) -> np.ndarray:
            taken = np.where(index < split, index, np.maximum(index - copies, 0))
            taken = np.minimum(taken, len(values) - 1)
            return np.where((index >= split) & (index < split + copies), value, values[taken])

        low, high = ordered(below), ordered(np.minimum(below + 1, len(values) + copies - 1))
        return np.maximum.accumulate(low + (high - low) * (place - below))


@dataclass
class ValueCounts:
    """How often each distinct value was seen; memory grows with distinct values, not with rows."""

    _merged: pa.Table | None = None
    _pending: list[pa.Table] = field(default_factory=list)
    _num_pending: int = 0
    _counter: distinct.Counter | None = None

    def update(self, values: pa.Array) -> None:
        """Count plain values; nulls are counted too."""
        counts = pc.value_counts(values)
        self.add(counts.field("values"), counts.field("counts"))

    def add(self, values: pa.Array, counts: pa.Array) -> None:
        if self._counter is None and self._merged is None and not self._pending:
            self._counter = distinct.Counter.of(values.type)
        if self._counter is not None:
            present = values.is_valid()
            self._counter.add(values.filter(present), counts.cast(pa.int64()).filter(present))
            values, counts = values.filter(pc.invert(present)), counts.filter(pc.invert(present))
            if not len(values):
                return
        self._pending.append(pa.table({"value": values, "count": counts.cast(pa.int64())}))
        self._num_pending += len(values)
        if self._num_pending > max(1 << 18, 2 * (self._merged.num_rows if self._merged else 0)):
            self._merge()

    def _merge(self) -> None:
        tables = self._pending if self._merged is None else [self._merged, *self._pending]
        grouped = pa.concat_tables(tables).group_by("value", use_threads=False).aggregate([("count", "sum")])
        self._merged = pa.table({"value": grouped["value"], "count": grouped["count_sum"]}).combine_chunks()
        self._pending, self._num_pending = [], 0

    def table(self) -> pa.Table | None:
        """Columns `value` and `count`, a row per distinct value; None where nothing was counted."""
        if self._pending:
            self._merge()
        if self._counter is None:
            return self._merged
        counted = self._counter.table()
        return counted if self._merged is None else pa.concat_tables([counted, self._merged])
