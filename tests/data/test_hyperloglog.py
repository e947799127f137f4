"""Estimates of the number of distinct values against the number itself, over the whole range."""

import numpy as np
import pytest

from torchrec_models.pipelines.data.hashes import hash_integers
from torchrec_models.pipelines.data.hyperloglog import NUM_REGISTERS, STANDARD_ERROR, estimate, registers


@pytest.mark.parametrize("num_values", [0, 1, 100, 10_000, 1_000_000])
def test_the_estimate_is_near_the_number(num_values: int) -> None:
    found = estimate(registers(hash_integers(np.arange(num_values), 0)))
    assert found == pytest.approx(num_values, rel=0.03) and isinstance(found, int)


@pytest.mark.parametrize("num_values", [8_000, 41_000, 50_000, 80_000])
def test_the_estimate_has_no_bias_where_that_of_2007_has(num_values: int) -> None:
    """The mean error of 40 seeds, against its own standard error, which the mean of that many makes small."""
    errors = [estimate(registers(hash_integers(np.arange(num_values), seed))) / num_values - 1 for seed in range(40)]
    assert abs(np.mean(errors)) < 3.5 * STANDARD_ERROR / np.sqrt(40)
    assert np.std(errors) < 1.5 * STANDARD_ERROR


def test_repeated_values_count_once_and_sketches_merge() -> None:
    hashes = hash_integers(np.arange(30_000), 5)
    whole = registers(hashes)
    assert np.array_equal(registers(np.repeat(hashes, 3)), whole)
    parts = [registers(part) for part in (hashes[:20_000], hashes[10_000:], hashes[:0])]
    assert np.array_equal(np.maximum.reduce(parts), whole)


def test_registers_hold_the_greatest_rank() -> None:
    """By hand: 14 bits of index, then the position of the first one among 50 bits, 51 where there is none."""
    hashes = np.array([3 << 50, (3 << 50) | 1, (5 << 50) | (1 << 49), (5 << 50) | (1 << 47), 2**64 - 1], np.uint64)
    expected = np.zeros(NUM_REGISTERS, np.uint8)
    expected[3], expected[5], expected[-1] = 51, 3, 1
    assert np.array_equal(registers(hashes), expected)
