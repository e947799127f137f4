import collections
import warnings

import numpy as np
import pyarrow as pa
import pytest
from data_flow import fit, run_config
from hypothesis import given
from hypothesis import strategies as st

from torchrec_models.pipelines.data.fit import Fitter
from torchrec_models.pipelines.data.ids import Buckets, Vocabulary
from torchrec_models.pipelines.data.transforms import Transforms


def vocabulary(transforms: Transforms, table: str) -> list:
    found = transforms.tables[table]
    assert isinstance(found, Vocabulary)
    return found.values.to_pylist()


def counted(values: list, *, min_count: int, max_size: int, null: str) -> list:
    """The vocabulary by its definition: most frequent first, then by value, missing last."""
    counts = collections.Counter(v for v in values if v is not None or null == "token")
    kept = sorted((v for v, n in counts.items() if n >= min_count), key=lambda v: (-counts[v], v is None, v))
    return kept[: max_size or None]


SETTINGS = {
    "min_count": st.integers(1, 4),
    "max_size": st.integers(0, 5),
    "null": st.sampled_from(["token", "oov"]),
    "batch_rows": st.integers(1, 40),
}


TEXT = st.one_of(st.none(), st.sampled_from(["", "a", "b", "é", "zz", "10", "9"]))


@given(values=st.lists(TEXT, min_size=1, max_size=40), **SETTINGS)
def test_vocabulary_of_text_equals_a_counter(values: list, min_count: int, max_size: int, null: str, batch_rows: int) -> None:
    ids = {"by": "vocabulary", "min_count": min_count, "max_size": max_size, "null": null}
    table = pa.table({"x": pa.array(values, pa.string())})
    config = run_config({"x": {"kind": "categorical", "ids": ids}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty vocabulary warns
        transforms = fit(config, table, batch_rows=batch_rows)
        coded = fit(config, pa.table({"x": table["x"].dictionary_encode()}), batch_rows=batch_rows)
    expected = counted(values, min_count=min_count, max_size=max_size, null=null)
    assert vocabulary(transforms, "x") == vocabulary(coded, "x") == expected
    rows = {v: i + 1 for i, v in enumerate(expected)}
    assert transforms.encode(table).ids["x"][0].tolist() == [rows.get(v, 0) for v in values]
    assert transforms.num_rows("x") == len(expected) + 1 == transforms.schema.table("x").num_rows


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([0.5, -0.0, float("nan")])), min_size=1, max_size=40))
def test_vocabulary_of_numbers_equals_a_counter(values: list) -> None:
    """NaN is missing, -0.0 is 0, and 2.0 is 2."""
    table = pa.table({"x": pa.array([None if v is None else float(v) for v in values], pa.float64())})
    transforms = fit(run_config({"x": {"kind": "categorical"}}), table, batch_rows=7)
    clean = [None if v is None or v != v else v + 0 for v in values]
    assert vocabulary(transforms, "x") == counted(clean, min_count=1, max_size=0, null="token")
    type = transforms.tables["x"].values.type
    assert type == (pa.float64() if 0.5 in values else pa.int64())


def test_a_shared_table_learns_from_all_its_features() -> None:
    table = pa.table({"item": [1, 1, 2], "history": pa.array([[2, 3], None, [2, None]]), "other": [9.0, None, 2.0]})
    config = run_config(
        {"item": {"kind": "categorical"},
         "history": {"kind": "sequence", "table": "item"},
         "other": {"kind": "categorical", "table": "item"}},
    )  # fmt: skip
    transforms = fit(config, table)
    assert vocabulary(transforms, "item") == [2, 1, None, 3, 9]
    encoded = transforms.encode(table)
    assert encoded.ids["item"][0].tolist() == [2, 2, 1]
    assert encoded.ids["history"][0].tolist() == [1, 4, 1, 3]
    assert encoded.ids["other"][0].tolist() == [5, 3, 1]


def test_numbers_meet_text_as_text() -> None:
    """RecBole-style histories are text beside integer items."""
    table = pa.table({"item": [1, 22, 3], "history": ["1 22", "", None]})
    config = run_config({"item": {"kind": "categorical"}, "history": {"kind": "sequence", "table": "item", "separator": " "}})
    transforms = fit(config, table)
    assert vocabulary(transforms, "item") == ["1", "22", "3"]
    assert transforms.encode(table).ids["history"][0].tolist() == [1, 2]


def test_values_cut_off_by_max_len_get_no_row() -> None:
    """They would never be trained."""
    table = pa.table({"tags": [["a", "b", "c"], ["a", "d"]], "history": [["x", "y", "z"], ["z"]]})
    config = run_config({"tags": {"kind": "categorical", "max_len": 2}, "history": {"kind": "sequence", "max_len": 1}})
    transforms = fit(config, table)
    assert vocabulary(transforms, "tags") == ["a", "b", "d"]
    assert vocabulary(transforms, "history") == ["z"]


@given(st.lists(st.integers(-100, 100), min_size=1, max_size=60), st.integers(2, 8))
def test_quantile_buckets_are_cut_at_numpys_quantiles(values: list[int], num_buckets: int) -> None:
    table = pa.table({"x": [float(v) for v in values]})
    config = run_config({"x": {"kind": "categorical", "ids": {"by": "bucketize", "num_buckets": num_buckets}}})
    buckets = fit(config, table, batch_rows=11).tables["x"]
    assert isinstance(buckets, Buckets)
    expected = np.unique(np.quantile(values, np.arange(1, num_buckets) / num_buckets))
    np.testing.assert_allclose(buckets.boundaries, expected, rtol=1e-12, atol=1e-12)


def test_the_schema_follows_the_config() -> None:
    config = run_config(
        {"price": {"kind": "numeric"},
         "history": {"kind": "sequence", "table": "item", "max_len": 7},
         "item": {"kind": "categorical", "dim": 24, "init_std": 0.5},
         "tags": {"kind": "categorical", "max_len": 3, "pooling": "mean", "table": "tag"}},
        tables={"tag": {"dim": 4, "ids": {"by": "hash", "buckets": 10}}},
        labels=["click", "buy"],
    )  # fmt: skip
    table = pa.table({"price": [1.0], "history": [["a"]], "item": ["b"], "tags": [["t"]]})
    schema = fit(config, table).schema
    assert [f.name for f in schema.features] == ["price", "history", "item", "tags"]
    assert [(t.name, t.num_rows, t.dim, t.init_std) for t in schema.tables] == [("tag", 11, 4, 0.01), ("item", 3, 24, 0.5)]
    read = [(f.table, f.max_len, f.pooling) for f in schema.features[1:]]
    assert read == [("item", 7, "sum"), ("item", 1, "sum"), ("tag", 3, "mean")]
    assert [t.name for t in schema.tasks] == ["click", "buy"]


def test_columns_that_do_not_fit_are_all_named_at_once() -> None:
    config = run_config(
        {"user": {"kind": "categorical"},
         "tags": {"kind": "categorical"},
         "history": {"kind": "sequence"},
         "bag": {"kind": "categorical", "max_len": 3},
         "words": {"kind": "sequence", "separator": " "},
         "when": {"kind": "numeric"},
         "blob": {"kind": "categorical"},
         "big": {"kind": "categorical", "ids": {"by": "hash", "buckets": 2**31}}},
    )  # fmt: skip
    row = pa.array([0], pa.timestamp("s"))
    table = pa.table(
        {"usr": [1], "tags": [["a"]], "history": ["a b"], "bag": [3], "words": [["a"]], "when": row, "blob": [{"x": 1}], "big": [1]}
    )
    with pytest.raises(ValueError) as error:
        Fitter(config, table.schema)
    assert str(error.value).splitlines() == [
        "the data does not fit the config:",
        "  features.user: no column 'user'; did you mean 'usr'?",
        "  features.tags: column 'tags' holds lists (list<item: string>); set max_len above 1, or use kind: sequence",
        "  features.history: column 'history' is text; set separator, for example separator: ' '",
        "  features.bag: column 'bag' has type int64, where lists or separated text are needed",
        "  features.words: separator ' ' has no effect, column 'words' holds lists",
        "  features.when: column 'when' has type timestamp[s], where one number per row is needed",
        "  features.blob: column 'blob': a column of type struct<x: int64> cannot be read; numbers, text, dates and lists can",
        "  tables.big: more than 2^31 - 1 rows",
    ]


def test_row_samples_share_the_memory_budget() -> None:
    """16 MiB for 40 sampled features: each may hold 6,553 rows, not a million."""
    features = {f"x{i}": {"kind": "numeric", "steps": [{"quantile": 3}]} for i in range(40)}
    config = run_config(features, memory_budget_mib=16)
    rows = 20_000
    table = pa.table({name: np.random.default_rng(0).uniform(size=rows) for name in features})
    fitter = Fitter(config, table.schema)
    for batch in table.to_batches(max_chunksize=2000):
        fitter.update(batch, where="", first_row=0)
    held = sum(len(part) for fit in fitter._numeric.values() for s in fit._statistics.values() for part in s._values)
    assert held * 16 <= 8 * 2**20
    fitter.end_pass()
    assert fitter.finish().features["x0"].steps[0].quantiles[1] == pytest.approx(0.5, abs=0.02)


def test_an_empty_vocabulary_warns() -> None:
    config = run_config({"x": {"kind": "categorical", "ids": {"by": "vocabulary", "min_count": 2}}})
    with pytest.warns(UserWarning, match="table 'x': no value was seen 2 times or more in training"):
        fit(config, pa.table({"x": ["a", "b"]}))


def test_nothing_to_learn_needs_no_pass() -> None:
    config = run_config({"x": {"kind": "categorical", "ids": {"by": "identity", "num_rows": 3}}, "y": {"kind": "numeric"}})
    fitter = Fitter(config, pa.schema({"x": pa.int64(), "y": pa.float64()}))
    assert fitter.num_passes == 0
    assert fitter.finish().encode(pa.table({"x": [2], "y": [1.5]})).dense.tolist() == [[1.5]]
