"""Packed numbers are found again, in the room that their largest takes."""

import numpy as np
import pytest

from torchrec_models.pipelines.data import packed as module
from torchrec_models.pipelines.data.packed import num_words, packed, unpacked


@pytest.mark.parametrize("bits", range(1, 32))
@pytest.mark.parametrize("num_values", [1, 511, 512, 5 * 512 + 17])
def test_what_is_packed_is_found(bits: int, num_values: int) -> None:
    assert module._library() is not None, "this test needs a C compiler"
    numbers = np.random.default_rng(bits).integers(0, 1 << bits, num_values).astype(np.int32)
    numbers[num_values // 2] = (1 << bits) - 1
    words, found_bits = packed(numbers)
    assert found_bits == bits and len(words) == num_words(num_values, bits) == -(-num_values // 512) * 16 * bits
    assert np.array_equal(unpacked(words.copy(), num_values, bits), numbers)


def test_a_word_holds_one_value_of_each_lane_above_the_other() -> None:
    words, bits = packed(np.arange(512, dtype=np.int32))
    assert bits == 9 and words.view(np.uint32)[3] == (3 | 19 << 9 | 35 << 18 | (51 & 31) << 27)


@pytest.mark.parametrize("numbers", [np.array([5, -1], np.int32), np.array([-(2**31)], np.int32)])
def test_negative_numbers_stay_as_they_are(numbers: np.ndarray) -> None:
    words, bits = packed(numbers)
    assert bits == 32 and np.array_equal(unpacked(words, len(numbers), bits), numbers)


def test_no_numbers() -> None:
    words, bits = packed(np.empty(0, np.int32))
    assert len(words) == 0 and len(unpacked(words, 0, bits)) == 0


def test_without_a_compiler_they_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_library", lambda: None)
    words, bits = packed(np.arange(600, dtype=np.int32))
    assert bits == 32 and np.array_equal(unpacked(words, 600, bits), np.arange(600)) and num_words(600, bits) == 600
