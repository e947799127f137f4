"""What a server counts, as Prometheus text.

Requests only append to lists; the lists are folded into histograms a thousand values at a time, because a histogram update per
request and label (prometheus_client's way) costs more than decoding the request. prometheus_client writes the text. Several workers
share a folder: each leaves its totals there once a second, and whichever worker is scraped adds them up.
"""

import ctypes
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..data.native import native_library

SECONDS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
SCORES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
_FRESH_SECONDS = 5.0
_FOLD_AT = 1024  # requests
_COUNT_AT = 256  # rows: requests wait while they are counted

Answers = list[list[float]]
Labels = tuple[str, ...]


class Kind(msgspec.Struct, frozen=True):
    """One metric: what it is, its labels, and the bounds of a histogram's buckets."""

    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    is_gauge: bool = False


_VERSION = ("model", "version")
KINDS = {
    "trm_requests": Kind("requests answered", ("path", "status")),
    "trm_request_seconds": Kind("from the first line of a request to its answer", ("path",), SECONDS),
    "trm_batch_rows": Kind("rows of one call of the graph", _VERSION, BATCH_ROWS),
    "trm_rows": Kind("rows scored", _VERSION),
    "trm_score": Kind("predictions", (*_VERSION, "task"), SCORES),
    "trm_shadow_difference": Kind("|shadow's prediction - the answer given|", (*_VERSION, "task"), DIFFERENCES),
    "trm_shadow_errors": Kind("requests that the shadow refused", _VERSION),
    "trm_ids": Kind("ids looked up", (*_VERSION, "feature")),
    "trm_unknown_ids": Kind("of them, values not in the vocabulary, or missing (row 0)", (*_VERSION, "feature")),
    "trm_reloads": Kind("new versions loaded", ("model",)),
    "trm_failed_reloads": Kind("tries to load a new version that failed: refused, or unreadable", ("model", "reason")),
    "trm_bids": Kind("bids offered", ("campaign",)),
    "trm_no_bids": Kind("impressions or requests without a bid", ("reason",)),
    "trm_bid_notices": Kind("bids settled by a notice, or by none in time", ("kind",)),
    "trm_open_bids": Kind("bids that wait for a notice", is_gauge=True),
    "trm_budget": Kind(
        "today's budget, what of it is spent, and what open bids reserve", ("campaign", "part", "currency"), is_gauge=True
    ),
    "trm_pass_rate": Kind("share of the impressions that pacing lets a campaign bid on", ("campaign",), is_gauge=True),
    "trm_queued_rows": Kind("rows that wait for the graph", ("model",), is_gauge=True),
    "trm_requests_in_work": Kind("requests that are being answered", is_gauge=True),
    "trm_workers_with_model": Kind("workers that have this version loaded", (*_VERSION, "role"), is_gauge=True),
}


class Histogram(msgspec.Struct):
    """Counts per bucket (the last one is above all bounds) and the sum of the values."""

    counts: list[int]
    sum: float = 0.0

    def add(self, values: np.ndarray, buckets: Sequence[float]) -> None:
        found = np.bincount(np.searchsorted(np.asarray(buckets), values, side="left"), minlength=len(self.counts))
        self.counts = (np.asarray(self.counts) + found).tolist()
        self.sum += float(values.sum())


class Totals(msgspec.Struct):
    """All numbers of one worker, or of several, by (metric, labels)."""

    numbers: dict[str, dict[Labels, float]]
    histograms: dict[str, dict[Labels, Histogram]]

    @classmethod
    def empty(cls) -> "Totals":
        return cls({}, {})

    def count(self, name: str, labels: Labels, amount: float = 1.0) -> None:
        of = self.numbers.setdefault(name, {})
        of[labels] = of.get(labels, 0.0) + amount

    def observe(self, name: str, labels: Labels, values: np.ndarray) -> None:
        buckets = KINDS[name].buckets
        of = self.histograms.setdefault(name, {})
        if labels not in of:
            of[labels] = Histogram([0] * (len(buckets) + 1))
        of[labels].add(values, buckets)

    def merge(self, other: "Totals", *, gauges: bool) -> None:
        for name, by_labels in other.numbers.items():
            for labels, amount in by_labels.items():
                if gauges or not KINDS[name].is_gauge:
                    self.count(name, labels, amount)
        for name, by in other.histograms.items():
            for labels, histogram in by.items():
                mine = self.histograms.setdefault(name, {}).setdefault(labels, Histogram([0] * len(histogram.counts)))
                mine.counts = [a + b for a, b in zip(mine.counts, histogram.counts)]
                mine.sum += histogram.sum


class Metrics:
    """The metrics of one worker.

    Args:
        folder: where the workers of one server leave their totals; None for a single worker.
    """

    def __init__(self, *, folder: Path | None = None) -> None:
        self.totals = Totals.empty()
        self._folder = folder
        self._seconds: dict[tuple[str, int], list[float]] = {}
        self._waiting: list[ModelMetrics] = []

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Called by the app after each answer."""
        of = self._seconds.get((path, status))
        if of is None:
            of = self._seconds[path, status] = []
        of.append(seconds)
        if len(of) >= _FOLD_AT:
            self._fold_seconds()

    def _fold_seconds(self) -> None:
        for (path, status), values in self._seconds.items():
            if values:
                self.totals.count("trm_requests", (path, str(status)), len(values))
                self.totals.observe("trm_request_seconds", (path,), np.array(values))
                values.clear()

    def of_model(
        self, name: str, version: str, *, tasks: Sequence[str], features: Mapping[str, slice], unknown_rows: np.ndarray
    ) -> "ModelMetrics":
        """Counts of one version; see `ModelMetrics`."""
        made = ModelMetrics(self.totals, (name, version), tasks=tasks, features=features, unknown_rows=unknown_rows)
        self._waiting = [*self._waiting, made]
        return made

    def forget(self, metrics: "ModelMetrics") -> None:
        """Of a model that is no longer served: what it still has to count is counted now."""
        metrics.fold()
        self._waiting = [m for m in self._waiting if m is not metrics]

    def _current(self, gauges: Mapping[str, Mapping[Labels, float]]) -> Totals:
        self._fold_seconds()
        for metrics in self._waiting:
            metrics.fold()
        self.totals.numbers.update({name: dict(of) for name, of in gauges.items()})
        return self.totals

    def leave(self, gauges: Mapping[str, Mapping[Labels, float]]) -> None:
        """Put this worker's totals where the other workers find them."""
        if self._folder is None:
            return
        path = self._folder / f"{os.getpid()}.msgpack"
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.msgpack.encode(self._current(gauges)))
        partial.replace(path)

    def text(self, gauges: Mapping[str, Mapping[Labels, float]]) -> bytes:
        """Prometheus' text format: this worker's numbers, and the others' as they were at most a second ago."""
        everything = Totals.empty()
        everything.merge(self._current(gauges), gauges=True)
        for path in sorted(self._folder.glob("*.msgpack")) if self._folder else ():
            if path.stem != str(os.getpid()):
                is_fresh = time.time() - path.stat().st_mtime < _FRESH_SECONDS  # a worker that died still has counted
                everything.merge(msgspec.msgpack.decode(path.read_bytes(), type=Totals), gauges=is_fresh)
        registry = CollectorRegistry()
        registry.register(_Families(everything))
        return generate_latest(registry)


class ModelMetrics:
    """Batch sizes, scores and unknown ids of one version.

    Args:
        labels: model and version.
        features: the slots of each feature with ids.
        unknown_rows: [S] the flat row that stands for a value not known; -1 where every row is a known id.
    """

    def __init__(
        self, totals: Totals, labels: Labels, *, tasks: Sequence[str], features: Mapping[str, slice], unknown_rows: np.ndarray
    ) -> None:
        self.labels = labels
        self._totals = totals
        self._tasks = tuple(tasks)
        self._features = dict(features)
        self._unknown_rows = np.ascontiguousarray(unknown_rows, np.int64)
        self._num_rows_of: list[int] = []  # of the batches whose answers are not counted yet
        self._answers: Answers = []
        self._num_known = np.zeros(len(unknown_rows), np.int64)  # [S], since the last fold
        self._num_unknown = np.zeros(len(unknown_rows), np.int64)
        self._count_ids = _id_counter(self._unknown_rows, self._num_known, self._num_unknown)

    def on_batch(self, ids_NS: np.ndarray, ids_at: int, answers: Answers) -> None:
        """Called by the batcher with every call of the graph; see `OnBatch` there."""
        self._count_ids(ids_NS, ids_at)
        self._num_rows_of.append(len(answers))
        self._answers += answers
        if len(self._answers) >= _COUNT_AT:
            self._count()

    def _count(self) -> None:
        totals, labels = self._totals, self.labels
        totals.observe("trm_batch_rows", labels, np.array(self._num_rows_of, np.float64))
        totals.count("trm_rows", labels, len(self._answers))
        answers_NT = np.array(self._answers)
        for index, task in enumerate(self._tasks):
            totals.observe("trm_score", (*labels, task), answers_NT[:, index])
        self._num_rows_of, self._answers = [], []

    def fold(self) -> None:
        """Everything up to now into the totals."""
        if self._answers:
            self._count()
        for feature, slots in self._features.items():
            self._totals.count("trm_ids", (*self.labels, feature), int(self._num_known[slots].sum()))
            self._totals.count("trm_unknown_ids", (*self.labels, feature), int(self._num_unknown[slots].sum()))
        self._num_known[:] = self._num_unknown[:] = 0

    def count_shadow_error(self) -> None:
        self._totals.count("trm_shadow_errors", self.labels)

    def observe_shadow(self, shadow: Sequence[Sequence[float]], given: Sequence[Sequence[float]]) -> None:
        """How far this version's answers, given as a shadow, are from those that the caller got."""
        difference = np.abs(np.asarray(shadow) - np.asarray(given))
        for index, task in enumerate(self._tasks):
            self._totals.observe("trm_shadow_difference", (*self.labels, task), difference[:, index])


class _Counts(ctypes.Structure):
    """As in id_counts.c."""

    _fields_ = [("num_slots", ctypes.c_int64), *((name, ctypes.c_void_p) for name in ("unknown_rows", "known", "unknown"))]


@cache
def _counting_function() -> Callable[[int, int, int], None] | None:
    library = native_library("id_counts", "ids are counted by numpy", sources=Path(__file__).parent)
    if library is None:
        return None
    count_ids = ctypes.PyDLL("", handle=library._handle).count_ids
    count_ids.argtypes, count_ids.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64), None
    return count_ids


def _id_counter(unknown_rows: np.ndarray, num_known: np.ndarray, num_unknown: np.ndarray) -> Callable[[np.ndarray, int], None]:
    """A function that adds one batch's [N, S] ids, and the address of the first, to the counts [S]."""
    function = _counting_function()
    if function is None:

        def count(ids_NS: np.ndarray, ids_at: int) -> None:
            num_known[:] += np.count_nonzero(ids_NS, axis=0)
            num_unknown[:] += np.count_nonzero(ids_NS == unknown_rows, axis=0)

        return count
    counts = _Counts(len(unknown_rows), *(array.ctypes.data for array in (unknown_rows, num_known, num_unknown)))
    counts_at = ctypes.addressof(counts)

    def count_in_c(ids_NS: np.ndarray, ids_at: int, counts: _Counts = counts) -> None:
        function(counts_at, ids_at, len(ids_NS))

    return count_in_c


class _Families(Collector):
    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> list[Metric]:
        out: list[Metric] = []
        for name, kind in KINDS.items():
            if kind.buckets:
                histogram = HistogramMetricFamily(name, kind.text, labels=kind.labels)
                for labels, found in self._totals.histograms.get(name, {}).items():
                    below = np.cumsum(found.counts).tolist()
                    bounds = [*(f"{b:g}" for b in kind.buckets), "+Inf"]
                    histogram.add_metric(labels, list(zip(bounds, below)), found.sum)
                out.append(histogram)
                continue
            family = GaugeMetricFamily if kind.is_gauge else CounterMetricFamily
            metric = family(name, kind.text, labels=kind.labels)
            for labels, amount in self._totals.numbers.get(name, {}).items():
                metric.add_metric(labels, amount)
            out.append(metric)
        return out
