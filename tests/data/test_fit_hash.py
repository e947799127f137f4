"""`ids: {by: hash, margin: 1.5}`: as many buckets as the training rows' distinct values ask for, however the rows are divided."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from data_flow import fit, run_config

from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.data import fit_hash
from torchrec_models.pipelines.data.ids import Hash
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.transforms import Transforms


def hashed(margin: float, **ids: Any) -> dict[str, Any]:
    return {"kind": "categorical", "ids": {"by": "hash", "margin": margin, **ids}}


def buckets(table: pa.Table, margin: float, *, batch_rows: int = 1 << 30, **ids: Any) -> int:
    found = fit(run_config({"x": hashed(margin, **ids)}), table, batch_rows=batch_rows).tables["x"]
    assert isinstance(found, Hash)
    return found.buckets


@pytest.mark.parametrize("margin, expected", [(1, 20), (1.1, 22), (1.26, 26), (3, 60)])
def test_buckets_are_margin_times_distinct_values_rounded_up(margin: float, expected: int) -> None:
    """20 values in 16,384 registers fall into one of their own each, with this seed."""
    table = pa.table({"x": np.arange(200) % 20})
    assert buckets(table, margin) == buckets(table, margin, batch_rows=7) == expected
    assert buckets(pa.table({"x": (np.arange(200) % 20).astype(str)}), margin, batch_rows=33) == expected


def test_what_counts_as_a_value() -> None:
    """2.0 is 2; a missing value is one under `null: token`, and none under `null: oov`; unused entries of a dictionary are none."""
    numbers = pa.table({"x": pa.array([1.0, 2.0, 2.5, None, -0.0, 0.0])})
    assert buckets(numbers, 1) == 5 and buckets(numbers, 1, null="oov") == 4
    coded = pa.table({"x": pa.DictionaryArray.from_arrays([0, 1, 0], ["a", "b", "c", "d"])})
    assert buckets(coded, 1) == 2
    config = run_config(
        {"item": {**hashed(1), "table": "item"}, "history": {"kind": "sequence", "table": "item", "max_len": 3}}
        | {"age": {"kind": "numeric", "steps": ["standard"]}}
    )
    rows = pa.table({"item": [1, 2, 2], "history": pa.array([[2, 3], [7.0], []]), "age": [1.0, 2.0, 3.0]})
    assert fit(config, rows).num_rows("item") == 1 + 4
    with pytest.warns(UserWarning, match=r"table 'x': no value was seen in training, so ids\.margin makes one bucket"):
        assert buckets(pa.table({"x": pa.array([None, None], pa.int64())}), 2, null="oov") == 1


def test_a_value_that_cannot_be_hashed_is_named_with_its_row() -> None:
    table = pa.table({"x": pa.array([1, 1, 2**64 - 1], pa.uint64())})
    with pytest.raises(ValueError, match=r"feature 'x': train: column 'x', data row 3: 18446744073709551615 is not a 64-bit"):
        buckets(table, 1)


def test_more_buckets_than_a_table_can_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_hash, "_MOST_BUCKETS", 30)
    with pytest.raises(ValueError, match=r"tables\.x: ids\.margin 2 x about 20 distinct values makes 40 buckets, .* at most 30"):
        buckets(pa.table({"x": np.arange(20)}), 2)


def test_what_is_saved_is_the_fitted_number_of_buckets_alone(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(50)})
    transforms = fit(run_config({"x": hashed(1.5, seed=3)}), table)
    transforms.save(tmp_path)
    given = fit(
        run_config({"x": {"kind": "categorical", "ids": {"by": "hash", "buckets": buckets(table, 1.5, seed=3), "seed": 3}}}), table
    )
    assert "margin" not in "".join(p.read_text() for p in tmp_path.rglob("*.json"))
    loaded = Transforms.load(tmp_path)
    assert np.array_equal(loaded.encode(table).ids["x"][0], given.encode(table).ids["x"][0])
    assert loaded.num_rows("x") == given.num_rows("x") == 1 + 75


def test_the_cache_does_not_depend_on_workers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    user = random.integers(0, 9000, 20_000)
    rows = {"user": user, "site": user.astype(str), "click": random.integers(0, 2, 20_000)}
    for i in range(4):
        part = {name: values[i * 5000 : (i + 1) * 5000] for name, values in rows.items()}
        pq.write_table(pa.table(part), tmp_path / f"rows-{i}.parquet", row_group_size=700)
    raw = {
        "run": str(tmp_path / "run"),
        "data": {"train": [str(tmp_path / "rows-*.parquet")]},
        "features": {"user": hashed(1.5), "site": hashed(1.5, seed=1)},
        "labels": {"click": {}},
        "model": {"name": "deepfm"},
    }
    sizes = []
    for workers in (1, 2):
        raw["data"]["cache"] = str(tmp_path / f"cache-{workers}")
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(raw))
        cache = prepare(C.load(path), workers=workers, progress=False)
        for table in cache.schema.tables:
            assert table.num_rows == 1 + cache.transforms.tables[table.name].buckets
        sizes.append({table.name: table.num_rows for table in cache.schema.tables})
    assert sizes[0] == sizes[1]
    for num_rows in sizes[0].values():
        assert num_rows == pytest.approx(1.5 * len(np.unique(user)), rel=0.03)
