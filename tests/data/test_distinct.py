"""The native and the pyarrow way through text columns give the same values, whatever lies in them."""

import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_models.pipelines.data import distinct
from torchrec_models.pipelines.data.ids import Hash, Vocabulary
from torchrec_models.pipelines.data.values import Place, explode

PLACE = Place("log", "column")
ROWS = st.lists(st.none() | st.text(alphabet="ab,7\0é", max_size=200) | st.text(max_size=20), min_size=1, max_size=30)


@pytest.fixture(autouse=True)
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distinct, "_LEAST_BYTES", 0)
    assert distinct._library() is not None, "these tests need a C compiler"


def lists(values: pa.Array, offsets: np.ndarray) -> list[list]:
    plain = values.to_pylist()
    return [plain[start:end] for start, end in pairwise(offsets)]


def by_pyarrow(column: pa.Array, max_len: int, keep: str) -> list[list]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct, "_library", lambda: None)
        return lists(*explode(column, separator=",", max_len=max_len, keep=keep))


@settings(deadline=None, max_examples=150)
@given(rows=ROWS, start=st.integers(0, 3), max_len=st.sampled_from([1, 2, 7, 1000]), keep=st.sampled_from(["first", "last"]))
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_pieces(rows: list, start: int, max_len: int, keep: str, kind: pa.DataType) -> None:
    column = pa.array([*rows, "x" * 70 + ",end", "," * 200 + "1"], kind).slice(start)
    found = distinct.split(column, separator=",", max_len=max_len, keep=keep)
    assert found is not None
    pieces, offsets = found
    assert lists(pieces, offsets) == by_pyarrow(column, max_len, keep)
    assert len(set(pieces.dictionary.to_pylist())) == len(pieces.dictionary)
    pieces.dictionary.validate(full=True)


@settings(deadline=None, max_examples=100)
@given(values=st.lists(st.none() | st.text(max_size=12) | st.sampled_from(["a" * 8, "a" * 9, "\0", ""]), min_size=1, max_size=60))
def test_texts(values: list) -> None:
    column = pa.array([*values, "z"], pa.string())
    coded = distinct.encoded(column)
    assert pa.types.is_dictionary(coded.type) and coded.to_pylist() == column.to_pylist()
    assert distinct.counts(coded).tolist() == [column.to_pylist().count(v) for v in coded.dictionary.to_pylist()]
    lengths = np.array([len(v) for v in coded.dictionary.to_pylist()], np.int32)
    assert distinct.look_up(coded, lengths, of_null=-5).tolist() == [-5 if v is None else len(v) for v in column.to_pylist()]


@settings(deadline=None, max_examples=50)
@given(values=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2), min_size=1, max_size=60))
def test_integers(values: list) -> None:
    column = pa.array([9, *values], pa.int64()).slice(1)
    coded = distinct.encoded(column)
    assert coded.to_pylist() == values
    assert len(coded.dictionary) == len({v for v in values if v is not None})


@pytest.mark.parametrize("null", ["token", "oov"])
@pytest.mark.parametrize("kind", ["text", "integers", "sparse integers"])
def test_rows_of_a_vocabulary(null: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    known = np.unique(generator.integers(0, 1 << (40 if kind == "sparse integers" else 12), 3000))
    asked = np.concatenate([generator.choice(known, 4000), generator.integers(0, 1 << 40, 1000)])
    vocabulary, column = pa.array(generator.permutation(known)), pa.array(asked, mask=generator.random(5000) < 0.1)
    if kind == "text":
        vocabulary, column = vocabulary.cast(pa.string()), column.cast(pa.string())
    if null == "token":
        vocabulary = pa.concat_arrays([vocabulary[:7], pa.nulls(1, vocabulary.type), vocabulary[7:]])
    of_value = {v: i + 1 for i, v in enumerate(vocabulary.to_pylist())}
    expected = [of_value.get(v, 0) for v in column.to_pylist()]
    assert Vocabulary(values=vocabulary, null=null).encode(column, PLACE).tolist() == expected
    monkeypatch.setattr(distinct, "_library", lambda: None)
    assert Vocabulary(values=vocabulary, null=null).encode(column, PLACE).tolist() == expected


def test_a_missing_value_that_is_refused_is_named_by_its_row() -> None:
    column = pa.array(["a"] * 700 + [None] + ["b"] * 700)
    for table in (Vocabulary(values=pa.array(["a", "b"]), null="error"), Hash(buckets=9, seed=1, kind="string", null="error")):
        with pytest.raises(ValueError, match="log: column 'column', data row 701: the value is missing"):
            table.encode(column, PLACE)


def test_without_a_compiler_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    distinct._library.cache_clear()
    caplog.set_level(logging.INFO)
    try:
        values, offsets = explode(pa.array(["1,2", "3"] * 3), separator=",", max_len=9, keep="last")
        assert values.to_pylist() == ["1", "2", "3"] * 3 and offsets.tolist() == [0, 2, 3, 5, 6, 8, 9]
        assert "columns are taken apart by pyarrow, which is slower: there is no C compiler" in caplog.text
    finally:
        distinct._library.cache_clear()


def test_many_values_and_long_ones() -> None:
    """The table grows many times, and texts that start alike are told apart."""
    texts = [f"{'prefix' * (i % 5)}{i % 20_011}" for i in range(60_000)]
    coded = distinct.encoded(pa.array(texts))
    assert coded.to_pylist() == texts and len(coded.dictionary) == len(set(texts))
    joined = pa.array([",".join(texts[i : i + 100]) for i in range(0, 60_000, 100)])
    pieces, offsets = explode(joined, separator=",", max_len=1000, keep="last")
    assert pieces.to_pylist() == texts and offsets.tolist() == list(range(0, 60_001, 100))
    assert pc.count_distinct(pieces.dictionary).as_py() == len(pieces.dictionary)


@pytest.mark.parametrize("kind", ["text", "integers"])
def test_rows_of_a_vocabulary_one_by_one(kind: str) -> None:
    """What requests ask: plain values, found without a dict of the whole vocabulary, those found remembered."""
    values: list = [None, -7, 0, 2**53 + 1, 2**63 - 1, *range(100, 120)]
    vocabulary = pa.array(values, pa.int64())
    vocabulary = vocabulary.cast(pa.string()) if kind == "text" else vocabulary
    table = Vocabulary(null="token", values=vocabulary)
    assert table._finder is not None and len(table.known) == 0
    asked: list = [None, -7, 0, -0.0, 2**53 + 1, 2**63 - 1, 7.0, 110.0, 110.5, 2.0**63, 1e300, "110", "é", "-7"]
    asked += [float("inf"), float("nan")]
    for value in [*asked, *asked] if kind == "text" else [v for v in asked if v != "é"] * 2:
        assert table.known[value] == table.encode(pa.array([value]), PLACE)[0], value
    assert set(table.known.values()) <= set(range(1, len(values) + 1)) and len(table.known) < 16
