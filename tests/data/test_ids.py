import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_models.pipelines.data.hashes import hash_integers, hash_numbers, hash_strings
from torchrec_models.pipelines.data.ids import Buckets, Hash, Identity, Vocabulary
from torchrec_models.pipelines.data.values import Place

AT = Place("file", "column")


def splitmix64(state: int) -> int:
    """The published generator's step in plain Python: state += golden gamma, then the mixer."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_integer_hash_is_the_published_splitmix64() -> None:
    # First outputs of Vigna's splitmix64.c (prng.di.unimi.it) from state 0 and 1234567, as Rust's rand_core and Numba cite them.
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert splitmix64(1234567) == 6457827717110365317
    values = np.array([0, 1, -1, 2**63 - 1, -(2**63)], np.int64)
    for seed in (0, 7, 2**63 - 1):
        expected = [splitmix64((int(v) % 2**64) ^ splitmix64(seed)) for v in values]
        assert hash_integers(values, seed).tolist() == expected


def test_hashes_are_pinned() -> None:
    """A change here breaks every cache, checkpoint and bundle there is."""
    assert hash_integers(np.array([0, 1, -1, 42], np.int64), 0).tolist() == INTEGERS
    assert hash_numbers(np.array([0.5, -0.25]), 3).tolist() == FRACTIONS
    assert hash_strings(pa.array(["", "a", "ü", "a"]), 0).tolist() == STRINGS
    table = Hash(null="token", buckets=1000, seed=5, kind="string")
    assert table.encode(pa.array(["a", "b", None]), AT).tolist() == TABLE


INTEGERS = [12035550249420947055, 627405149472732430, 3303439293501059696, 5592132763777985307]
FRACTIONS = [200268568657306041, 9766285884755981984]
STRINGS = [4331143152044847043, 4180199910021036473, 4120706140644760123, 4180199910021036473]
TABLE = [562, 950, 260]


@given(st.lists(st.integers(-(2**53), 2**53)), st.integers(0, 2**63 - 1))
def test_an_integer_hashes_alike_in_every_numeric_type(values: list[int], seed: int) -> None:
    table = Hash(null="oov", buckets=97, seed=seed, kind="number")
    as_integers = table.encode(pa.array(values, pa.int64()), AT)
    assert (table.encode(pa.array(values, pa.float64()), AT) == as_integers).all()
    assert (table.encode(pa.array([str(v) for v in values], pa.string()), AT) == as_integers).all()
    assert ((as_integers >= 1) & (as_integers <= 97)).all()


def test_hash_spreads_evenly() -> None:
    ids = Hash(null="oov", buckets=64, seed=1, kind="number").encode(pa.array(np.arange(64_000)), AT)
    counts = np.bincount(ids, minlength=65)
    assert counts[0] == 0
    assert np.square(counts[1:] - 1000).sum() / 1000 < 104  # chi-square with 63 degrees of freedom: 0.999 quantile 103.4


def test_seeds_give_unrelated_hashes() -> None:
    values = pa.array(np.arange(10_000))
    one, other = (Hash(null="oov", buckets=100, seed=seed, kind="number").encode(values, AT) for seed in (0, 1))
    assert 50 < (one == other).sum() < 160


def test_missing_hash_is_a_token_or_row_zero() -> None:
    missing = pa.array(["x", None])
    token = Hash(null="token", buckets=10**6, seed=0, kind="string").encode(missing, AT)
    assert token[1] >= 1 and token[1] != token[0]
    assert Hash(null="oov", buckets=10**6, seed=0, kind="string").encode(missing, AT)[1] == 0


@pytest.mark.parametrize("size", [3, 5000])
def test_vocabulary_finds_strings_in_small_and_large_batches(size: int) -> None:
    """A batch much smaller than the vocabulary goes another way than a large one."""
    words = [f"w{i}" for i in range(size)]
    vocabulary = Vocabulary(null="token", values=pa.array([*words[:2], None, *words[2:]]))
    asked = ["w1", "nope", None, "w2", "w1"]
    expected = [2, 0, 3, 4, 2]
    assert vocabulary.encode(pa.array(asked), AT).tolist() == expected
    assert vocabulary.encode(pa.array(asked * 1000), AT).tolist() == expected * 1000
    assert vocabulary.encode(pa.array(asked).dictionary_encode(), AT).tolist() == expected
    assert vocabulary.encode(pa.array(asked, pa.large_string()), AT).tolist() == expected


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1), st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_vocabulary_finds_integers_far_apart(known: list[int], others: list[int]) -> None:
    vocabulary = Vocabulary(null="oov", values=pa.array(known, pa.int64()))
    rows = {v: i + 1 for i, v in enumerate(known)}
    asked = known + others
    assert vocabulary.encode(pa.array(asked, pa.int64()), AT).tolist() == [rows.get(v, 0) for v in asked]


ASKED = st.one_of(st.none(), st.integers(-90, 90), st.sampled_from([0.5, -7.25, 1e300]))


@given(st.lists(st.integers(-50, 50), unique=True), st.lists(ASKED))
def test_vocabulary_of_integers_reads_floats(known: list[int], asked: list[float | None]) -> None:
    """Pandas writes integers beside nulls as floats: 7.0 is 7, 7.25 is unknown."""
    vocabulary = Vocabulary(null="oov", values=pa.array(known, pa.int64()))
    rows: dict[float | None, int] = {v: i + 1 for i, v in enumerate(known)}
    expected = [rows.get(v, 0) for v in asked]
    assert vocabulary.encode(pa.array([None if v is None else float(v) for v in asked], pa.float64()), AT).tolist() == expected


def test_vocabulary_casts_what_it_was_not_fitted_on() -> None:
    text = Vocabulary(null="oov", values=pa.array(["7", "8", "0.5"]))
    assert text.encode(pa.array([8, 7, 9]), AT).tolist() == [2, 1, 0]
    assert text.encode(pa.array([8.0, 0.5, None, float("nan")]), AT).tolist() == [2, 3, 0, 0]
    numbers = Vocabulary(null="oov", values=pa.array([7, 8]))
    assert numbers.encode(pa.array(["8", "9", None]), AT).tolist() == [2, 0, 0]
    assert numbers.encode(pa.array([True, False]), AT).tolist() == [0, 0]
    with pytest.raises(ValueError, match="file: column 'column', data row 2: 'eight' is not a number"):
        numbers.encode(pa.array(["7", "eight"]), AT)


def test_vocabulary_without_values_knows_nothing() -> None:
    vocabulary = Vocabulary(null="token", values=pa.array([], pa.int64()))
    assert vocabulary.num_rows == 1
    assert vocabulary.encode(pa.array([1, None]), AT).tolist() == [0, 0]


@given(st.lists(st.floats(allow_nan=False, width=32)))
def test_buckets_count_the_boundaries_passed(values: list[float]) -> None:
    boundaries = (-1.0, 0.0, 2.5)
    ids = Buckets(null="oov", boundaries=boundaries).encode(pa.array(values, pa.float64()), AT)
    assert ids.tolist() == [1 + sum(v >= b for b in boundaries) for v in values]


def test_buckets_for_missing() -> None:
    missing = pa.array([None, float("nan"), 9.0], pa.float64())
    assert Buckets(null="oov", boundaries=(1.0,)).encode(missing, AT).tolist() == [0, 0, 2]
    token = Buckets(null="token", boundaries=(1.0,))
    assert token.encode(missing, AT).tolist() == [3, 3, 2]
    assert token.num_rows == 4


def test_identity_keeps_rows_and_names_the_row_it_refuses() -> None:
    identity = Identity(null="error", size=5)
    assert identity.encode(pa.array([0, 4, 2], pa.int8()), AT).tolist() == [0, 4, 2]
    assert identity.encode(pa.array([0.0, 4.0]), AT).tolist() == [0, 4]
    for bad, shown in (([0, 5], "5"), ([0, -1], "-1"), ([0, 1.5], "1.5"), (["0", "7"], "7")):
        with pytest.raises(ValueError, match=rf"data row 2: {shown} is out of range; ids: identity allows 0 .. 4 \(num_rows 5\)"):
            identity.encode(pa.array(bad), AT)
    with pytest.raises(ValueError, match=r"data row 1: the value is missing, and ids.null is error"):
        identity.encode(pa.array([None, 1]), AT)


def test_a_dictionary_entry_that_no_row_uses_is_no_error() -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array([1, 1, 1], pa.int32()), pa.array([99, 3]))
    identity = Identity(null="error", size=5)
    assert identity.encode(coded, AT).tolist() == [3, 3, 3]
    used = pa.DictionaryArray.from_arrays(pa.array([1, 0], pa.int32()), pa.array([99, 3]))
    with pytest.raises(ValueError, match="data row 2: 99 is out of range"):
        identity.encode(used, AT)


def test_unsigned_ids_beyond_int64_are_refused_not_wrapped() -> None:
    with pytest.raises(ValueError, match="18446744073709551615 is not a 64-bit signed integer; store such ids as text"):
        Hash(null="oov", buckets=9, seed=0, kind="number").encode(pa.array([1, 2**64 - 1], pa.uint64()), AT)
