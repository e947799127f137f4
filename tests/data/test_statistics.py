import collections

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_models.pipelines.data.statistics import Moments, RowSample, ValueCounts

FINITE = st.floats(-1e6, 1e6)


@given(st.lists(st.lists(FINITE, max_size=20), min_size=1, max_size=6).filter(lambda p: any(p)))
def test_moments_equal_numpy(parts: list[list[float]]) -> None:
    moments = Moments()
    for part in parts:
        moments.update(np.array(part, np.float64))
    x = np.concatenate([np.array(p, np.float64) for p in parts])
    assert moments.count == len(x)
    assert moments.mean == pytest.approx(x.mean(), rel=1e-12, abs=1e-9)
    assert moments.std == pytest.approx(x.std(), rel=1e-9, abs=1e-6)
    assert (moments.low, moments.high) == (x.min(), x.max())


def test_moments_keep_their_digits_far_from_zero() -> None:
    """The textbook sum of squares loses everything here: 1e9 +- 1 has 1e18 squares."""
    x = 1e9 + np.random.default_rng(0).normal(size=10_000)
    moments = Moments()
    for part in np.array_split(x, 37):
        moments.update(part)
    assert moments.std == pytest.approx(x.std(), rel=1e-7)


def test_repeat_is_update_with_copies() -> None:
    one, other = Moments(), Moments()
    for moments in (one, other):
        moments.update(np.array([1.0, 4.0]))
    one.repeat(2.5, 1000)
    other.update(np.full(1000, 2.5))
    assert (one.count, one.low, one.high) == (other.count, other.low, other.high)
    assert (one.mean, one.std) == pytest.approx((other.mean, other.std))


@given(st.lists(FINITE, min_size=1, max_size=60), st.integers(1, 12), st.one_of(st.none(), st.tuples(FINITE, st.integers(0, 50))))
def test_exact_quantiles_equal_numpy(values: list[float], num_levels: int, repeated: tuple[float, int] | None) -> None:
    sample = RowSample(100)
    for part in np.array_split(np.array(values), 3):
        sample.update(part)
    levels = np.linspace(0, 1, num_levels)
    value, copies = repeated or (0.0, 0)
    expected = np.quantile(np.array(values + [value] * copies), levels)
    np.testing.assert_allclose(sample.quantiles(levels, repeated=repeated), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("batch_rows", [1, 7, 100, 5000])
def test_sample_does_not_depend_on_batches(batch_rows: int) -> None:
    x = np.random.default_rng(1).normal(size=5000)
    whole, cut = RowSample(200), RowSample(200)
    whole.update(x)
    for start in range(0, len(x), batch_rows):
        cut.update(x[start : start + batch_rows])
    levels = np.linspace(0, 1, 11)
    assert (whole.quantiles(levels) == cut.quantiles(levels)).all()


def test_sampled_quantiles_keep_to_their_bound() -> None:
    size, rows = 2000, 100_000
    x = np.sort(np.random.default_rng(2).exponential(size=rows))  # a stream that drifts: its head is not a sample
    sample = RowSample(size)
    for part in np.array_split(x, 50):
        sample.update(part)
        assert sum(map(len, sample._values)) <= 2 * size
    assert not sample.exact
    ranks = np.searchsorted(x, sample.quantiles(np.linspace(0.01, 0.99, 99))) / rows
    bound = np.sqrt(np.log(2 / 1e-6) / (2 * size))  # the stated one, at p = 1e-6
    assert np.abs(ranks - np.linspace(0.01, 0.99, 99)).max() < bound


def test_repeated_weighs_as_much_in_a_sample_as_in_all_rows() -> None:
    sample = RowSample(1000)
    sample.update(np.random.default_rng(3).uniform(size=10_000))
    assert sample.quantiles(np.array([0.5, 0.8]), repeated=(-1.0, 30_000)).tolist() == [-1.0, pytest.approx(0.2, abs=0.05)]


@settings(deadline=None)  # the first example may wait for the compiler
@given(st.lists(st.lists(st.one_of(st.none(), st.integers(-5, 5)), max_size=30), max_size=6))
def test_counts_equal_a_counter(parts: list[list[int | None]]) -> None:
    counts = ValueCounts()
    for part in parts:
        counts.update(pa.array(part, pa.int64()))
    table = counts.table()
    found = {} if table is None else dict(zip(table["value"].to_pylist(), table["count"].to_pylist()))
    assert found == collections.Counter(v for part in parts for v in part)


def test_counts_hold_distinct_values_only() -> None:
    counts = ValueCounts()
    for _ in range(40):
        counts.update(pa.array(np.arange(50_000)))
        assert counts._num_pending <= (1 << 18)
    table = counts.table()
    assert table is not None and table.num_rows == 50_000 and set(table["count"].to_pylist()) == {40}
