import datetime as dt
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from data_flow import fit, run_config
from hypothesis import given
from hypothesis import strategies as st

from torchrec_models.pipelines.data.transforms import Encoded, Transforms

FEATURES = {
    "user": {"kind": "categorical", "ids": {"by": "hash", "buckets": 20}},
    "item": {"kind": "categorical", "ids": {"by": "vocabulary", "min_count": 2}},
    "age": {"kind": "numeric", "steps": [{"fill": "mean"}, "standard"]},
    "age_bucket": {"kind": "categorical", "column": "age", "ids": {"by": "bucketize", "num_buckets": 4}},
    "tags": {"kind": "categorical", "max_len": 2, "separator": "|"},
    "last_tags": {"kind": "categorical", "max_len": 2, "separator": "|", "keep": "last", "column": "tags"},
    "history": {"kind": "sequence", "max_len": 3, "table": "item"},
    "first": {"kind": "sequence", "max_len": 2, "keep": "first", "column": "history", "table": "item"},
    "city": {"kind": "categorical", "ids": {"by": "identity", "num_rows": 8}},
    "price": {"kind": "numeric", "steps": ["log1p", {"quantile": 5}]},
}


def raw(rows: int, *, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    lists = [None if i % 7 == 0 else rng.integers(0, 30, i % 6).tolist() for i in range(rows)]
    return pa.table(
        {
            "user": pa.array([None if i % 11 == 0 else f"u{i}" for i in rng.integers(0, 90, rows)]),
            "item": rng.integers(0, 30, rows),
            "age": pa.array(np.where(rng.random(rows) < 0.2, np.nan, rng.normal(30, 9, rows)), from_pandas=True),
            "tags": pa.array(["|".join(f"t{j}" for j in row or ()) or None for row in lists]),
            "history": pa.array(lists, pa.list_(pa.int32())),
            "city": rng.integers(0, 8, rows).astype(np.int8),
            "price": rng.exponential(size=rows),
        }
    )


@pytest.fixture(scope="module")
def transforms() -> Transforms:
    return fit(run_config(FEATURES), raw(300), batch_rows=64)


def same(one: Encoded, other: Encoded) -> None:
    np.testing.assert_array_equal(one.dense, other.dense)
    assert one.num_rows == other.num_rows
    assert one.ids.keys() == other.ids.keys()
    for name, (values, offsets) in one.ids.items():
        np.testing.assert_array_equal(values, other.ids[name][0], err_msg=name)
        assert (offsets is None) == (other.ids[name][1] is None)
        if offsets is not None:
            np.testing.assert_array_equal(offsets, other.ids[name][1], err_msg=name)


def joined(parts: list[Encoded]) -> Encoded:
    ids = {}
    for name, (_, offsets) in parts[0].ids.items():
        values = np.concatenate([p.ids[name][0] for p in parts])
        if offsets is not None:
            offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(p.ids[name][1]) for p in parts]))])
        ids[name] = (values, offsets)
    return Encoded(dense=np.concatenate([p.dense for p in parts]), ids=ids, num_rows=sum(p.num_rows for p in parts))


@given(cuts=st.lists(st.integers(0, 120), max_size=5))
def test_encoding_does_not_depend_on_batches(transforms: Transforms, cuts: list[int]) -> None:
    table = raw(120, seed=1)
    edges = [0, *sorted(cuts), 120]
    parts = [transforms.encode(table.slice(a, b - a)) for a, b in itertools.pairwise(edges)]
    same(joined(parts), transforms.encode(table))


def as_type(table: pa.Table, column: str, type: pa.DataType) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, table[column].combine_chunks().cast(type))


@pytest.mark.parametrize(
    ("column", "type"),
    [
        ("user", pa.large_string()),
        ("user", pa.dictionary(pa.int8(), pa.string())),
        ("user", pa.binary()),
        ("item", pa.uint8()),
        ("item", pa.float64()),
        ("item", pa.string()),
        ("item", pa.decimal128(20, 0)),
        ("age", pa.string()),
        ("history", pa.large_list(pa.int64())),
        ("history", pa.list_(pa.string())),
        ("history", pa.list_(pa.float64())),
        ("city", pa.string()),
        ("city", pa.float32()),
    ],
    ids=str,
)
def test_the_same_values_in_another_type_are_the_same_rows(transforms: Transforms, column: str, type: pa.DataType) -> None:
    table = raw(50, seed=2)
    same(transforms.encode(as_type(table, column, type)), transforms.encode(table))


def test_lists_keep_the_right_end(transforms: Transforms) -> None:
    table = raw(8, seed=3)
    encoded = transforms.encode(table)
    vocabulary = transforms.tables["item"].values.to_pylist()
    for name, keep in (("history", slice(-3, None)), ("first", slice(0, 2))):
        values, offsets = encoded.ids[name]
        for i, row in enumerate(table["history"].to_pylist()):
            expected = [vocabulary.index(v) + 1 if v in vocabulary else 0 for v in (row or [])[keep]]
            assert values[offsets[i] : offsets[i + 1]].tolist() == expected


def test_bags_keep_the_end_that_is_asked_for(transforms: Transforms) -> None:
    table = raw(8, seed=3)
    encoded = transforms.encode(table)
    for name, keep in (("tags", slice(0, 2)), ("last_tags", slice(-2, None))):
        vocabulary = transforms.tables[name].values.to_pylist()
        values, offsets = encoded.ids[name]
        for i, row in enumerate(table["tags"].to_pylist()):
            expected = [vocabulary.index(v) + 1 if v in vocabulary else 0 for v in (row or "").split("|")[keep] if v]
            assert values[offsets[i] : offsets[i + 1]].tolist() == expected


def test_separated_text_drops_empty_pieces(transforms: Transforms) -> None:
    table = raw(4).set_column(3, "tags", pa.array(["|t1||t2|t3", "", "|", "t2"]))
    values, offsets = transforms.encode(table).ids["tags"]
    assert offsets.tolist() == [0, 2, 2, 2, 3]
    assert values[0] != values[1] and values[1] == values[2]


def test_fixed_size_and_view_lists() -> None:
    table = pa.table({"h": pa.array([[1, 2], None, [3, 1]], pa.list_(pa.int64(), 2))})
    transforms = fit(run_config({"h": {"kind": "sequence"}}), table)
    expected = transforms.encode(table)
    assert expected.ids["h"][1].tolist() == [0, 2, 2, 4]
    view = pa.table({"h": pa.array([[1, 2], None, [3, 1]], pa.list_view(pa.int64()))})
    same(transforms.encode(view), expected)
    same(transforms.encode(pa.table({"h": pa.array([[1, 2], None, [3, 1]], pa.list_(pa.int64()))})), expected)


def test_zero_rows(transforms: Transforms) -> None:
    encoded = transforms.encode(raw(9).slice(0, 0))
    assert encoded.num_rows == 0 and encoded.dense.shape == (0, 2)
    assert encoded.ids["history"][1].tolist() == [0] and len(encoded.ids["user"][0]) == 0


def test_all_null_columns_at_serving(transforms: Transforms) -> None:
    """JSON requests have columns with nothing but nulls."""
    nulls = {column: pa.nulls(2) for column in ("user", "item", "age", "tags", "history")}
    table = pa.table({"city": [0, 1], "price": [1.0, 2.0], **nulls})
    encoded = transforms.encode(table)
    assert encoded.ids["history"][1].tolist() == [0, 0, 0]
    assert encoded.ids["item"][0].tolist() == [0, 0]
    assert encoded.dense[:, 0] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", [["a"]], "'user': the column holds lists (list<item: string>); the feature takes one value"),
        ("user", [{"a": 1}], "'user': a column of type struct<a: int64> cannot be read"),
        ("history", [7], "'history': the feature takes lists, and the column has type int64; use kind: categorical"),
        ("history", ["1 2"], "'history': the feature takes lists, and the column has type string; set separator"),
        ("history", [["1", "x"]], "'history', data row 5: 'x' is not a number"),
        ("tags", [["a"]], "'tags': separator '|' needs a text column, and this one has type list<item: string>"),
        ("age", ["old"], "'age', data row 5: 'old' is not a number"),
        ("age", [[1.0]], "'age': the column holds lists (list<item: double>), and the feature is numeric"),
        ("age", [dt.date(2024, 1, 1)], "'age': the column has type date32[day], where numbers are needed"),
        ("price", [-1.0], "'price', data row 5: log1p has no value at -1; put {clip: [0, null]} before log1p"),
        ("city", [8], "'city', data row 5: 8 is out of range; ids: identity allows 0 .. 7"),
        ("city", [None], "'city', data row 5: the value is missing, and ids.null is error"),
    ],
)
def test_refused_values_are_named(transforms: Transforms, column: str, values: list, message: str) -> None:
    table = raw(1, seed=5)
    table = table.set_column(table.column_names.index(column), column, pa.array(values))
    for options in ({"first_row": 4}, {"rows": np.array([4])}):
        with pytest.raises(ValueError) as error:
            transforms.encode(table, where="day.parquet", **options)
        assert f"day.parquet: column {message}" in str(error.value)


def test_missing_and_doubled_columns_are_named(transforms: Transforms) -> None:
    table = raw(1)
    with pytest.raises(ValueError, match=r"input: missing columns user; there are: usr, .*; did you mean 'usr' for 'user'"):
        transforms.encode(table.rename_columns(["usr", *table.column_names[1:]]))
    with pytest.raises(ValueError, match="input: columns given twice: user"):
        transforms.encode(table.append_column("user", table["user"]))


def test_saved_and_loaded_is_the_same(transforms: Transforms, tmp_path: Path) -> None:
    transforms.save(tmp_path)
    loaded = Transforms.load(tmp_path)
    same(loaded.encode(raw(80, seed=4)), transforms.encode(raw(80, seed=4)))
    assert json.dumps(loaded.to_json()) == json.dumps(transforms.to_json())
    assert loaded.schema == transforms.schema
    assert loaded.columns["age_bucket"] == "age"


def test_tables_with_any_name_are_saved(tmp_path: Path) -> None:
    table = pa.table({"user_id:token": ["a"], "a/b": ["c"]})
    fit(run_config({name: {"kind": "categorical"} for name in table.column_names}), table).save(tmp_path)
    assert Transforms.load(tmp_path).encode(table).ids["a/b"][0].tolist() == [1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "transforms.json").unlink(), "transforms.json: no such file"),
        (lambda f: (f / "transforms.json").write_text("{"), "not JSON"),
        (lambda f: (f / "transforms.json").write_text('{"format_version": 99}'), "format version 99; this release reads 1"),
        (lambda f: (f / "vocabularies" / "tags.arrow").unlink(), "the vocabulary of table 'tags' cannot be read"),
        (lambda f: (f / "vocabularies" / "tags.arrow").write_bytes(b"ARROW1"), "the vocabulary of table 'tags' cannot be read"),
        (
            lambda f: feather.write_feather(pa.table({"value": ["t1"]}), f / "vocabularies" / "tags.arrow"),
            "the files do not belong together",
        ),
    ],
)
def test_damaged_files_are_named(transforms: Transforms, tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    transforms.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        Transforms.load(tmp_path)


def test_a_bundle_needs_neither_torch_nor_pydantic() -> None:
    code = "import sys, torchrec_models.pipelines.data.transforms; print({'torch', 'pydantic', 'yaml', 'tqdm'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
