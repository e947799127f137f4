"""SQLite and DuckDB as sources, other drivers, and columns that no database has to be started for."""

import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_models.pipelines import cli
from torchrec_models.pipelines.config import ConfigError, QueryConfig, RunConfig, parse
from torchrec_models.pipelines.config.masking import masked
from torchrec_models.pipelines.data.database_types import storable
from torchrec_models.pipelines.data.prepare import check_data, open_prepared, prepare
from torchrec_models.pipelines.train import train

ROWS = [(i, f"u{i % 7}", i / 4 if i % 5 else None, i % 2) for i in range(300)]


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    """The URI of a database with 300 rows in the table `log`."""
    pytest.importorskip("adbc_driver_sqlite", reason="needs the extra sqlite")
    with sqlite3.connect(tmp_path / "log.db") as connection:
        connection.execute("CREATE TABLE log (id INTEGER, user TEXT, price REAL, label INTEGER)")
        connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?)", ROWS)
    connection.close()
    return f"sqlite:///{tmp_path / 'log.db'}"


def config_of(folder: Path, train: Any, *, cache: str = "cache", **data: Any) -> RunConfig:
    return parse(
        {
            "data": {"train": train, "cache": str(folder / cache)} | data,
            "features": {
                "user": {"kind": "categorical", "dim": 4},
                "price": {"kind": "numeric", "steps": [{"fill": "mean"}]},
            },
            "labels": {"label": {}},
            "model": {"name": "deepfm"},
        }
    )


def write_parquet(path: Path) -> str:
    ids, users, prices, labels = zip(*ROWS)
    pq.write_table(pa.table({"id": ids, "user": users, "price": prices, "label": labels}), path)
    return str(path)


def arrays_below(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_sqlite_gives_the_cache_of_the_same_rows(tmp_path: Path, sqlite: str) -> None:
    config = config_of(tmp_path, {"uri": sqlite, "query": "SELECT * FROM log ORDER BY id"})
    check_data(config)
    by_file = prepare(config_of(tmp_path, write_parquet(tmp_path / "log.parquet"), cache="by_file"), progress=False)
    assert arrays_below(prepare(config, progress=False).folder) == arrays_below(by_file.folder)
    open_prepared(config)
    with sqlite3.connect(tmp_path / "log.db") as connection:
        connection.execute("INSERT INTO log SELECT * FROM log")
    connection.close()
    with pytest.raises(ValueError, match=r"files\.train\..*log\.db.*: was "):
        open_prepared(config)
    assert prepare(config, progress=False, force=True).split("train").num_rows == 600


def test_any_adbc_driver_by_the_name_of_its_module(tmp_path: Path, sqlite: str) -> None:
    query = {"uri": f"file:{tmp_path / 'log.db'}?mode=ro", "query": "SELECT * FROM log", "driver": "adbc_driver_sqlite"}
    assert prepare(config_of(tmp_path, query), progress=False).split("train").num_rows == 300
    with pytest.raises(ValueError, match=r"adbc_driver_nowhere.* is not installed: pip install adbc-driver-nowhere"):
        prepare(config_of(tmp_path, query | {"driver": "adbc_driver_nowhere"}, cache="other"), progress=False)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
            "SELECT 'u' AS user, CASE WHEN i > 19000 THEN 'dear' ELSE 1.5 END AS price, 1 AS label FROM n",
            "Type mismatch.*CAST the column to one type",
        ),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELECT user FROM log", "no column 'price', 'label'; columns: user"),
        ("DELETE FROM log", "readonly"),
    ],
)
def test_what_sqlite_refuses(tmp_path: Path, sqlite: str, query: str, words: str) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=words):
        prepare(config_of(tmp_path, {"uri": sqlite, "query": query}), progress=False)
    assert sorted(tmp_path.iterdir()) == before


def test_a_query_without_rows_is_told_as_such(tmp_path: Path, sqlite: str) -> None:
    """SQLite has no types without rows: the text to cut would be called a number."""
    config = config_of(tmp_path, {"uri": sqlite, "query": "SELECT * FROM log WHERE id < 0"})
    config.features["user"] = config.features["user"].model_copy(update={"max_len": 3, "separator": ","})
    for look in (check_data, lambda config: prepare(config, progress=False)):
        with pytest.raises(ValueError, match=r"^data\.train: sqlite:///.*log\.db: the query gives no row$"):
            look(config)
    assert not list(tmp_path.glob("cache*/*"))


def test_a_database_file_that_is_not_there(tmp_path: Path) -> None:
    for scheme in ("sqlite", "duckdb"):
        query = {"uri": f"{scheme}:///{tmp_path / 'none.db'}", "query": "SELECT 1"}
        with pytest.raises(ValueError, match=r"none\.db: no such database file"):
            prepare(config_of(tmp_path, query), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_duckdb_reads_its_databases_and_other_files(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="needs the extra duckdb")
    file = write_parquet(tmp_path / "log.parquet")
    with duckdb.connect(str(tmp_path / "log.duckdb")) as connection:
        connection.execute(f"CREATE TABLE log AS SELECT * REPLACE (price::DECIMAL(9, 2) AS price) FROM '{file}'")
    expected = arrays_below(prepare(config_of(tmp_path, file, cache="by_file"), progress=False).folder)
    for name, query in {
        "database": {"uri": f"duckdb:///{tmp_path / 'log.duckdb'}", "query": "SELECT * FROM log ORDER BY id;"},
        "files": {"uri": "duckdb://", "query": f"SELECT * FROM '{file}' ORDER BY id -- through DuckDB"},
    }.items():
        assert arrays_below(prepare(config_of(tmp_path, query, cache=name), progress=False).folder) == expected
    for wrong, words in {
        "SELECT * FROM nowhere": "nowhere does not exist",
        "SELECT CASE WHEN i < 90000 THEN 'a' ELSE error('boom') END AS user, 1.0 AS price, 1 AS label "
        "FROM range(100000) t(i)": "boom",
        "SELECT {'a': 1} AS user, 1.0 AS price, 1 AS label": r"'user' \(struct<a: int32>\)",
    }.items():
        with pytest.raises(ValueError, match=words):
            prepare(config_of(tmp_path, {"uri": "duckdb://", "query": wrong}, cache="wrong"), progress=False)
        assert not list(tmp_path.glob("wrong*"))


def test_a_missing_driver_names_the_extra(tmp_path: Path) -> None:
    """In a fresh process in which the drivers cannot be imported."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['adbc_driver_postgresql', 'adbc_driver_sqlite', 'duckdb'])\n"
        "from torchrec_models.pipelines.config import QueryConfig\n"
        "from torchrec_models.pipelines.data.databases import open_query\n"
        "for uri in ('postgresql://h/d', 'sqlite://', 'duckdb://'):\n"
        "    try:\n"
        "        with open_query(QueryConfig(uri=uri, query='SELECT 1'), memory_budget_bytes=1 << 24): pass\n"
        "    except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for extra in ("postgresql", "sqlite", "duckdb"):
        assert f"pip install 'torchrec-models[{extra}]'" in done.stdout, done.stderr


def test_uuids_and_decimals_in_every_slice() -> None:
    """Arrays that begin somewhere inside their memory, with nulls."""
    ids = [uuid.UUID(int=i * 10**30 + 7) for i in range(5)]
    numeric = pa.opaque(pa.string(), type_name="numeric", vendor_name="PostgreSQL")
    texts = ["12.50", "7.00", "-0.10", None, "100", "nan", "1000.0", "0.000"]
    wanted = ["12.5", "7", "-0.1", None, "100", None, "1000", "0"]
    schema = pa.schema({"u": pa.uuid(), "d": numeric})
    stored, (of_uuid, of_decimal) = storable(schema)
    assert stored.types == [pa.string(), pa.string()]
    raw = pa.array([ids[0].bytes, ids[1].bytes, None, ids[3].bytes, ids[4].bytes], pa.binary(16))
    for start in range(4):
        got = of_uuid(pa.ExtensionArray.from_storage(pa.uuid(), raw.slice(start)))
        assert got.to_pylist() == [None if i == 2 else str(ids[i]) for i in range(start, 5)]
        decimals = of_decimal(pa.ExtensionArray.from_storage(numeric, pa.array(texts).slice(start)))
        assert decimals.to_pylist() == wanted[start:]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train": {"uri": "mysql://u:secret@h/d", "query": "x"}}, r"'mysql://u:\*\*\*@h/d'; must begin with one of postgresql://"),
        ({"train": {"uri": "postgresql://u:secret@h/d"}}, r"data\.train\.query: required"),
        ({"train": {"uri": "postgresql://u:secret@h/d", "query": " ; "}}, r"data\.train\.query: is empty"),
        ({"train": {"uri": "postgresql://u:secret@h/d", "qurey": "x"}}, "did you mean 'query'"),
        ({"train": [{"uri": "postgresql://u:secret@h/d"}]}, r"data\.train\[0\]: given .*u:\*\*\*@h/d"),
        ({"train": "x.csv", "vlaid": {"uri": "postgresql://u:sec ret@h/d"}}, r"u:\*\*\*@h/d.*did you mean 'valid'"),
        ({"train": {"uri": "sqlite:///d", "query": "x"}, "format": "csv"}, r"data\.format: has no effect on queries"),
        ({"train": {"uri": "sqlite:///d", "query": "x"}, "null_values": ["-"]}, r"data\.null_values: has no effect on queries"),
    ],
)
def test_mistakes_in_a_query(data: dict, words: str) -> None:
    raw = {"data": data | {"cache": "c"}, "features": {"a": {"kind": "categorical"}}, "labels": {"l": {}}}
    with pytest.raises(ConfigError, match=words) as caught:
        parse(raw | {"model": {"name": "deepfm"}})
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:p/w:x@y@h/d?a=1", "postgresql://u:***@h/d?a=1"),
        ("postgresql://h/d?user=u&password=p&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("duckdb:///md:db?motherduck_token=abc", "duckdb:///md:db?motherduck_token=***"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("given 'a://u:p@h', 'b://v:q@i'", "given 'a://u:***@h', 'b://v:***@i'"),
    ],
)
def test_masked(text: str, shown: str) -> None:
    assert masked(text) == shown == masked(shown)


def test_variables_in_a_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRM_TEST_SECRET", "a/b@c")
    monkeypatch.setenv("TRM_TEST_URI", "postgresql://u:p@h/d")
    assert QueryConfig(uri="postgresql://u:${TRM_TEST_SECRET}@h/d", query="q").resolved_uri() == "postgresql://u:a%2Fb%40c@h/d"
    whole = QueryConfig(uri="${TRM_TEST_URI}", query="q")
    assert whole.resolved_uri() == "postgresql://u:p@h/d" and whole.place == "${TRM_TEST_URI}"
    assert "p@h" not in repr(QueryConfig(uri="postgresql://u:p@h/d", query="q"))


FOLDS = [
    {"by": "fold", "num_folds": 3},
    {"by": "fold", "num_folds": 3, "group": "user", "stratify": "label"},
    {"by": "time_fold", "column": "id", "valid_from": [100, 200], "train_before": [90, 180], "group": "user", "group_share": 0.4},
]


@pytest.mark.parametrize("split", FOLDS, ids=str)
@pytest.mark.parametrize("database", ["sqlite", "duckdb"])
def test_folds_of_a_query_are_those_of_the_same_rows_in_a_file(
    tmp_path: Path, sqlite: str, split: dict[str, Any], database: str
) -> None:
    file = write_parquet(tmp_path / "log.parquet")
    query = {"uri": sqlite, "query": "SELECT * FROM log ORDER BY id"}
    if database == "duckdb":
        pytest.importorskip("duckdb", reason="needs the extra duckdb")
        query = {"uri": "duckdb://", "query": f"SELECT * FROM '{file}' ORDER BY id"}
    config = config_of(tmp_path, query, split=split, test=query | {"query": query["query"] + " LIMIT 50"})
    check_data(config)
    cache = prepare(config, progress=False)
    by_file = prepare(config_of(tmp_path, file, cache="by_file", split=split), progress=False)
    ours, theirs = arrays_below(cache.folder), arrays_below(by_file.folder)
    assert {path: data for path, data in ours.items() if not path.startswith("test")} == theirs
    assert cache.split("test").num_rows == 50
    for fold in range(2):
        chosen = {**split, "fold": fold}
        of_query = open_prepared(config_of(tmp_path, query, split=chosen, test=query | {"query": query["query"] + " LIMIT 50"}))
        of_file = open_prepared(config_of(tmp_path, file, cache="by_file", split=chosen))
        for name in ("train", "valid"):
            assert np.array_equal(of_query.split(name).labels(), of_file.split(name).labels())
    (tmp_path / "log.parquet").unlink(missing_ok=True)  # the cache stands on its own


@pytest.fixture
def run_of_query(tmp_path: Path, sqlite: str) -> None:
    config = config_of(tmp_path, {"uri": sqlite, "query": "SELECT * FROM log ORDER BY id"}, row_id="id")
    small = {"epochs": 1, "batch_size": 100, "tensorboard": False}
    raw = config.model_dump(mode="json", exclude_defaults=True) | {"run": str(tmp_path / "run"), "train": small}
    raw["features"] = {"user": {"kind": "categorical", "dim": 4}, "price": {"kind": "numeric", "steps": [{"fill": "mean"}]}}
    config = parse(raw | {"labels": {"label": {}}, "model": {"name": "deepfm", "hidden_units": [8]}})
    prepare(config, progress=False)
    train(config, progress=False)


@pytest.mark.usefixtures("run_of_query")
def test_predicting_the_rows_of_a_query(tmp_path: Path, sqlite: str, capsys: pytest.CaptureFixture) -> None:
    run = str(tmp_path / "run")
    file = write_parquet(tmp_path / "log.parquet")
    assert cli.main(["predict", run, file, "--out", str(tmp_path / "by_file.parquet")]) == 0
    expected = pq.read_table(tmp_path / "by_file.parquet")["label"].to_numpy()[120:]
    wanted = "SELECT user, price, id FROM log WHERE id >= 120 ORDER BY id"
    for name, more in {"a": [], "b": ["--uri", sqlite]}.items():
        out = tmp_path / f"{name}.parquet"
        assert cli.main(["predict", run, "--query", wanted, "--out", str(out), *more]) == 0, capsys.readouterr().err
        found = pq.read_table(out)
        assert found["id"].to_pylist() == list(range(120, 300))
        np.testing.assert_allclose(found["label"].to_numpy(), expected, rtol=1e-5)
        assert not (tmp_path / f"{name}.parquet.rows").exists()
    capsys.readouterr()
    for arguments, words in {
        ("--query", "SELECT user FROM log"): "no column 'price', 'id'; columns: user",
        ("--query", "SELECT * FROM nowhere"): "no such table: nowhere",
        ("--query", "DELETE FROM log"): "readonly",
        ("--query", "SELECT 'x' AS user, 'many' AS price, 1 AS id"): "'many' is not a number",
        ("--query", wanted, file): "give files to predict, or --query",
        ("--uri", sqlite, file): "--uri: has no effect without --query",
        (): "give files to predict, or --query",
    }.items():
        assert cli.main(["predict", run, *arguments, "--out", str(tmp_path / "c.parquet")]) == 2
        assert words in capsys.readouterr().err
        assert not list(tmp_path.glob("c.parquet*")), "something half is left"
