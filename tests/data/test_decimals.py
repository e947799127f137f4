"""Separated small whole numbers are read as the general way through text reads them, bit for bit."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_models.pipelines.config.data import VocabularyIds
from torchrec_models.pipelines.data import decimals, distinct, ids
from torchrec_models.pipelines.data.fit_ids import VocabularyFit
from torchrec_models.pipelines.data.ids import Buckets, Hash, Identity, IdTransform, Vocabulary
from torchrec_models.pipelines.data.values import Place, explode

PLACE = Place("log", "column")
NUMBERS = st.integers(0, 10**6 - 1).map(str) | st.integers(0, 20).map(str)
ROWS = st.lists(st.none() | st.lists(NUMBERS | st.just(""), max_size=90).map(",".join), min_size=1, max_size=20)


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decimals, "_LEAST_BYTES", 0)
    monkeypatch.setattr(distinct, "_LEAST_BYTES", 0)
    assert decimals._function() is not None, "these tests need a C compiler"


def lists(values: pa.Array, offsets: np.ndarray) -> list[list]:
    plain = values.cast(pa.string()).to_pylist()
    return [plain[start:end] for start, end in pairwise(offsets)]


@settings(deadline=None, max_examples=200)
@given(
    rows=ROWS, start=st.integers(0, 3), max_len=st.sampled_from([1, 2, 7, 63, 64, 1000]), keep=st.sampled_from(["first", "last"])
)
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_pieces(rows: list, start: int, max_len: int, keep: str, kind: pa.DataType) -> None:
    column = pa.array([*rows, "1," * 31 + "12345,9", "," * 200 + "1", "0"], kind).slice(start)
    found, general = (module.split(column, separator=",", max_len=max_len, keep=keep) for module in (decimals, distinct))
    assert found is not None and general is not None
    assert pa.types.is_int32(found[0].type)
    assert lists(*found) == lists(*general)
    assert found[1].tolist() == general[1].tolist()


@settings(deadline=None, max_examples=150)
@given(odd=st.text(alphabet="0123456789+-. e/:é", min_size=1, max_size=9), before=st.integers(0, 70))
def test_any_other_piece_is_left_to_the_general_way(odd: str, before: int) -> None:
    column = pa.array(["3,4", "7," * before + odd + ",1"])
    found = decimals.split(column, separator=",", max_len=1000, keep="last")
    if odd.isascii() and odd.isdigit() and odd == str(int(odd)) and len(odd) <= 6:
        assert found is not None and lists(*found)[1] == ["7"] * before + [odd, "1"]
    else:
        assert found is None
    assert lists(*explode(column, separator=",", max_len=1000, keep="last")) == [["3", "4"], ["7"] * before + [odd, "1"]]


@pytest.mark.parametrize(
    "table",
    [
        Vocabulary(values=pa.array(["7", "12", "x", "999999", "0", "007"]), null="token"),
        Vocabulary(values=pa.array([None, 3, 900_000, 5]), null="token"),
        Vocabulary(values=pa.array([0.5, 3.0]), null="oov"),
        Hash(buckets=1000, seed=3, kind="string", null="token"),
        Hash(buckets=1000, seed=3, kind="number", null="oov"),
        Buckets(boundaries=(3.0, 40.0, 5000.0), null="token"),
        Identity(size=10**6, null="error"),
    ],
)
@pytest.mark.parametrize("most", [20, 5000, 10**6])
def test_rows_of_small_numbers(table: IdTransform, most: int) -> None:
    """By a table of all numbers up to the largest, and without one where these are too many."""
    numbers = np.random.default_rng(most).integers(0, most, 3000).astype(np.int32)
    plain = pa.array(numbers.tolist(), pa.int64())
    expected = table.encode(plain.cast(pa.string()) if table.reads_text else plain, PLACE)
    found = table.encode(pa.array(numbers), PLACE)
    assert found.dtype == np.int32 and found.tolist() == expected.tolist()
    assert table.encode(pa.array(numbers).slice(1000, 7), PLACE).tolist() == expected[1000:1007].tolist()


def test_a_number_that_is_no_row_is_named() -> None:
    numbers, offsets = np.arange(1000, dtype=np.int32), np.array([*range(8), 600, 1000])
    with pytest.raises(ValueError, match=r"log: column 'column', data row 9: 900 is out of range; ids: identity allows 0 \.\. 899"):
        Identity(size=900, null="error").encode(pa.array(numbers), PLACE.with_offsets(offsets))


def test_what_is_learned_does_not_depend_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    column = pa.array([",".join(map(str, generator.zipf(1.3, 40) % 10**6)) for _ in range(300)])
    found = []
    for way in ("decimals", "text"):
        if way == "text":
            monkeypatch.setattr(decimals, "_function", lambda: None)
        values, _ = explode(column, separator=",", max_len=30, keep="last")
        assert pa.types.is_int32(values.type) == (way == "decimals")
        fit = VocabularyFit("seq", VocabularyIds(by="vocabulary"), kind="string")
        fit.update(values, PLACE)
        vocabulary = fit.finish()
        found.append((vocabulary.values.to_pylist(), vocabulary.encode(values, PLACE).tolist()))
    assert found[0] == found[1]


def test_no_table_for_a_few_large_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request with an id near a million does not wait for a million rows to be looked up."""
    table = Hash(buckets=1000, seed=3, kind="string", null="token")
    asked: list[int] = []
    real = ids.hash_strings
    monkeypatch.setattr(ids, "hash_strings", lambda values, seed: (asked.append(len(values)), real(values, seed))[1])
    table.encode(pa.array(np.array([999_999] * 50, np.int32)), PLACE)
    assert asked == [50]
