"""Missing values of the raw columns: counted as rows are written, shown by `trm data stats`; equal to what the raw rows say."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from torchrec_models.pipelines.cli import main
from torchrec_models.pipelines.config import parse
from torchrec_models.pipelines.data.checksums import checksum_of_json
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.inspection.statistics import statistics

NUM_ROWS = 5000
CATEGORICAL: dict[str, Any] = {"kind": "categorical", "dim": 4}
FEATURES: dict[str, Any] = {
    "age": {"kind": "numeric", "steps": [{"fill": "mean"}]},
    "visits": {"kind": "numeric", "steps": [{"fill": 0}]},
    "no_visits": {"kind": "numeric", "column": "visits", "steps": ["is_missing"]},
    "device": {**CATEGORICAL, "ids": {"by": "hash", "buckets": 20}},
    "tags": {**CATEGORICAL, "max_len": 3},
    "history": {"kind": "sequence", "separator": ",", "max_len": 4, "dim": 4},
}
MISSING = {"age": 0.3, "visits": 0.2, "device": 0.1, "tags": 0.15, "history": 0.25, "shop": 0.05, "click": 0.02}


def rows(*, seed: int = 0) -> pa.Table:
    """`age` has nulls and NaN; a row of `tags` and `history` may also be there and empty, and tags have nulls within."""
    random = np.random.default_rng(seed)
    gone = {name: random.random(NUM_ROWS) < rate for name, rate in MISSING.items()}

    def column(name: str, values: Any) -> pa.Array:
        return pa.array([None if missing else value for value, missing in zip(values, gone[name])])

    age = random.normal(40, 9, NUM_ROWS)
    age[random.random(NUM_ROWS) < 0.1] = np.nan
    return pa.table(
        {
            "age": pa.array(age, mask=gone["age"]),
            "visits": column("visits", random.integers(0, 9, NUM_ROWS).tolist()),
            "device": column("device", random.choice(["ios", "web", ""], NUM_ROWS).tolist()).dictionary_encode(),
            "tags": column("tags", [["a", None, "b"][:n] for n in random.integers(0, 4, NUM_ROWS)]),
            "history": column("history", [",".join(map(str, range(n))) for n in random.integers(0, 60, NUM_ROWS)]),
            "shop": column("shop", random.choice(["x", "y"], NUM_ROWS).tolist()),
            "day": np.arange(NUM_ROWS) % 10,
            "click": column("click", random.integers(0, 2, NUM_ROWS).tolist()),
        }
    )


def config(folder: Path, **data: Any) -> dict[str, Any]:
    given = {"train": str(folder / "rows.parquet"), "rows_per_shard": 700, "slices": ["shop"], "cache": str(folder / "cache")}
    labels = {"click": {"null": "mask"}}
    return {"data": {**given, **data}, "features": FEATURES, "labels": labels, "model": {"name": "deepfm"}}


def counted(table: pa.Table, *columns: str) -> dict[str, int]:
    """By pyarrow, of the whole columns."""
    names = ("age", "visits", "device", "tags", "history", "click", "shop", *columns)
    return {name: pc.sum(pc.is_null(table[name], nan_is_null=True)).as_py() for name in names}


def test_every_raw_column_of_every_split(tmp_path: Path) -> None:
    """Long texts are cut in the first pass here, and what the second pass reads of them has no nulls any more."""
    table, other = rows(), rows(seed=1).slice(0, 900)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=800)
    pq.write_table(other, tmp_path / "valid.parquet")
    raw = config(tmp_path, valid=str(tmp_path / "valid.parquet"), memory_budget_mib=16)
    cache = prepare(parse(raw), progress=False, workers=2)
    assert dict(cache.split("train").missing or {}) == counted(table)
    assert dict(cache.split("valid").missing or {}) == counted(other)
    by_shard = [shard.missing or {} for shard in cache.split("train").shards]
    assert by_shard == [counted(table.slice(start, 700)) for start in range(0, NUM_ROWS, 700)]
    found = statistics(cache)["train"]
    assert found.missing_share("age") == counted(table)["age"] / NUM_ROWS > MISSING["age"]


def test_splits_of_one_file(tmp_path: Path) -> None:
    table = rows()
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=800)
    split = {"by": "time", "column": "day", "valid_from": 6, "test_from": 8}
    cache = prepare(parse(config(tmp_path, split=split)), progress=False)
    for name, (low, high) in {"train": (0, 5), "valid": (6, 7), "test": (8, 9)}.items():
        of_split = table.filter(pc.and_(pc.greater_equal(table["day"], low), pc.less_equal(table["day"], high)))
        assert dict(cache.split(name).missing or {}) == counted(of_split, "day"), name


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("click,age,device\n1,,ios\n0,nan,\n1,4,NULL\n0,5,web\n")
    raw = config(tmp_path, train=str(tmp_path / "rows.csv"), slices=[], null_values=["", "NULL"])
    raw["features"] = {name: FEATURES[name] for name in ("age", "device")}
    assert prepare(parse(raw), progress=False).split("train").missing == {"age": 2, "device": 2, "click": 0}


def test_what_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = rows()
    pq.write_table(table, tmp_path / "rows.parquet")
    pq.write_table(table.slice(0, 500), tmp_path / "valid.parquet")
    cache = prepare(parse(config(tmp_path, valid=str(tmp_path / "valid.parquet"), row_id="day")), progress=False)
    assert main(["data", "stats", str(cache.folder)]) == 0
    out = capsys.readouterr().out
    shares = [f"{counted(part)['age'] / part.num_rows:.2%}" for part in (table, table.slice(0, 500))]
    assert re.search(rf"^age +{shares[0]} +{shares[1]}$", out, flags=re.MULTILINE)
    assert "nothing is missing of 1 columns: day" in out
    page = Path(re.search(r"wrote (.+)", out)[1]).read_text()
    assert f"<td>age</td><td>{shares[0]}</td><td>{shares[1]}</td>" in page and "<td>day</td><td>0.00%</td>" in page

    assert main(["data", "stats", str(cache.folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert found["missing"]["age"] == {"rows": counted(table)["age"], "share": counted(table)["age"] / NUM_ROWS}
    assert found["num_rows"] == NUM_ROWS and found["ids"]["device"]["oov_share"] is None  # hashing knows every value

    forget(cache)
    assert main(["data", "stats", str(cache.folder)]) == 0
    out = capsys.readouterr().out
    assert "missing values of the raw columns: not recorded when this cache was prepared" in out
    assert "Not recorded when this cache was prepared" in Path(re.search(r"wrote (.+)", out)[1]).read_text()
    assert main(["data", "stats", str(cache.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["missing"] is None


def forget(cache: Cache) -> None:
    """As earlier releases wrote it."""
    path = cache.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            del shard["missing"]
    del manifest["checksum"]
    path.write_text(json.dumps({**manifest, "checksum": checksum_of_json(manifest)}))
