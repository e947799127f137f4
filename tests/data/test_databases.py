"""SQLite and DuckDB as sources, other drivers, and columns that no database has to be started for."""

import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_models.pipelines.config import ConfigError, QueryConfig, RunConfig, parse
from torchrec_models.pipelines.config.masking import masked
from torchrec_models.pipelines.data.database_types import storable
from torchrec_models.pipelines.data.prepare import check_data, open_prepared, prepare

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
