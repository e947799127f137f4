"""What is learned from a stream of rows in bounded memory: moments, a row sample, counts of distinct values."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import distinct
from .hashes import hash_integers

_BLOCK_VALUES = 1 << 15  # what is summed at once; so that sums do not depend on the batches in which values come
_SAMPLE_SEED = 0x5A4D504C45
_PART_BITS = 40  # the values of a part are numbered up to 2^40
_INT, _FLOAT = pa.int64(), pa.float64()
_MOMENTS = pa.schema({"part": _INT, "count": _INT, "mean": _FLOAT, "squares": _FLOAT, "low": _FLOAT, "high": _FLOAT})


@dataclass
class _Summary:
    """Count, mean, sum of squared deviations, lowest and highest of some values.

    Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979, equation 2.1.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    @classmethod
    def of(cls, x: np.ndarray) -> "_Summary":
        mean = float(x.mean())
        return cls(len(x), mean, float(np.square(x - mean).sum()), float(x.min()), float(x.max()))

    def merge(self, other: "_Summary") -> None:
        total = self.count + other.count
        delta = other.mean - self.mean
        self.mean += delta * other.count / total
        self.squares += other.squares + delta * delta * self.count * other.count / total
        self.count, self.low, self.high = total, min(self.low, other.low), max(self.high, other.high)
        if self.low == self.high:  # else a constant such as 0.1 would get a spread of rounding errors
            self.mean, self.squares = self.low, 0.0


class Moments:
    """Count, mean, deviation, lowest and highest: merged over blocks of equal size, and these over the parts of the data.

    So the sums depend on what the parts are, and neither on batches nor on who has seen which part.
    """

    def __init__(self) -> None:
        self._parts: dict[int, _Summary] = {}
        self._part = 0
        self._copies = _Summary()
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0

    def start_part(self, number: int) -> None:
        """What comes from now on belongs to this part."""
        self._flush()
        self._part = number

    def update(self, x: np.ndarray) -> None:
        self._waiting.append(x)
        self._num_waiting += len(x)
        if self._num_waiting >= _BLOCK_VALUES:
            together = np.concatenate(self._waiting)
            end = len(together) // _BLOCK_VALUES * _BLOCK_VALUES
            for start in range(0, end, _BLOCK_VALUES):
                self._add(together[start : start + _BLOCK_VALUES])
            self._waiting, self._num_waiting = [together[end:].copy()], len(together) - end

    def _flush(self) -> None:
        if self._num_waiting:
            self._add(np.concatenate(self._waiting))
            self._waiting, self._num_waiting = [], 0

    def _add(self, x: np.ndarray) -> None:
        self._parts.setdefault(self._part, _Summary()).merge(_Summary.of(x))

    def repeat(self, value: float, count: int) -> None:
        """As `update` with `count` copies of one value."""
        if count:
            self._copies.merge(_Summary(count, value, 0.0, value, value))

    @property
    def _total(self) -> _Summary:
        self._flush()
        total = _Summary()
        for _, summary in sorted(self._parts.items()):
            total.merge(summary)
        if self._copies.count:
            total.merge(self._copies)
        return total

    @property
    def count(self) -> int:
        return self._total.count

    @property
    def mean(self) -> float:
        return self._total.mean

    @property
    def low(self) -> float:
        return self._total.low

    @property
    def high(self) -> float:
        return self._total.high

    @property
    def std(self) -> float:
        """Standard deviation of the population."""
        total = self._total
        return float(np.sqrt(total.squares / total.count)) if total.count else 0.0

    def state(self) -> pa.Table:
        """A row per part."""
        self._flush()
        return pa.Table.from_pylist([{"part": part, **vars(summary)} for part, summary in self._parts.items()], _MOMENTS)

    def merge(self, state: pa.Table) -> None:
        """Adds the parts that another has seen."""
        for row in state.to_pylist():
            part = row.pop("part")
            self._parts[part] = _Summary(**row)


@dataclass
class RowSample:
    """All values up to `size` of them; past that a uniform sample of `size`, the same however the rows are batched.

    Every row gets a pseudo-random priority from its part and its number therein, and the lowest priorities stay: no two are equal,
    so it is the same sample whoever has seen which part. A quantile of the sample is off
    by at most sqrt(ln(2 / p) / (2 size)) in rank, with probability 1 - p (Dvoretzky-Kiefer-Wolfowitz; Massart 1990): 0.0014 at
    size 1,000,000 and p = 0.05.
    """

    size: int
    seen: int = 0
    _next: int = 0
    _values: list[np.ndarray] = field(default_factory=list)
    _priorities: list[np.ndarray] = field(default_factory=list)
    _held: int = 0
    _highest: int = 2**64 - 1

    def start_part(self, number: int) -> None:
        """What comes from now on belongs to this part."""
        self._next = number << _PART_BITS

    def update(self, x: np.ndarray) -> None:
        priorities = hash_integers(np.arange(self._next, self._next + len(x)), _SAMPLE_SEED)
        self._next += len(x)
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

    def state(self) -> pa.Table:
        """A row per value held."""
        if self._values:
            self._shrink()
        values = pa.chunked_array(list(map(pa.array, self._values)), _FLOAT)
        table = pa.table({"value": values, "priority": pa.chunked_array(list(map(pa.array, self._priorities)), pa.uint64())})
        return table.replace_schema_metadata({"seen": str(self.seen)})

    def merge(self, state: pa.Table) -> None:
        """Adds the parts that another has seen."""
        self.seen += int((state.schema.metadata or {})[b"seen"])
        self._values.append(state["value"].to_numpy())
        self._priorities.append(state["priority"].to_numpy())
        self._held += state.num_rows
        if self._held > 2 * self.size:
            self._shrink()

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
