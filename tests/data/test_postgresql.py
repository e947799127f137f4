"""Rows from a real PostgreSQL server, started here: the same cache as from Parquet, and what happens when things go wrong."""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from torchrec_models.pipelines import cli
from torchrec_models.pipelines.config import QueryConfig, RunConfig, parse
from torchrec_models.pipelines.data.prepare import check_data, open_prepared, prepare
from torchrec_models.pipelines.data.snapshots import snapshot_path
from torchrec_models.pipelines.data.synthetic import click_log

PASSWORD = "sesame/7@x"  # with characters that a URI must escape
NUM_ROWS = 1500


def binaries() -> Path:
    """The folder of initdb and pg_ctl; Debian keeps it out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    return found[-1].parent if found else Path(on_path or "").resolve().parent


def other_user() -> dict[str, Any]:
    """How to start processes as somebody else than root, whom the server refuses."""
    if os.geteuid():
        return {}
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    name = next((n for n in ("postgres", "nobody") if n in names), None)
    if name is None:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """`postgresql://trm:{}@127.0.0.1:PORT/postgres` of a new server, the password left open."""
    pytest.importorskip("adbc_driver_postgresql", reason="needs the extra postgresql")
    folder, who = binaries(), other_user()
    home = Path(tempfile.mkdtemp(prefix="trm-postgresql-"))
    try:
        (home / "password").write_text(PASSWORD)
        for path in (home, home / "password"):
            shutil.chown(path, who.get("user", os.geteuid()))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        init = [folder / "initdb", "-D", home / "data", "-U", "trm", "-A", "scram-sha-256", "--pwfile", home / "password"]
        subprocess.run([*init, "-E", "UTF8", "--no-locale", "-N"], check=True, capture_output=True, cwd=home, **who)
        options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off -c shared_buffers=16MB"
        control = [folder / "pg_ctl", "-D", home / "data", "-w"]
        start = [*control, "-l", home / "log", "-o", options, "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home, **who)
        try:
            yield f"postgresql://trm:{{}}@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd=home, **who)
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def uri(server: str) -> str:
    """Of a server that holds a click log in the table `log`, its rows numbered by `at`."""
    uri = server.format(PASSWORD.replace("/", "%2F").replace("@", "%40"))
    run(uri, "CREATE TABLE nothing (x int)")
    rows = click_log(NUM_ROWS, seed=4).table
    with connect(uri) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("log", rows.append_column("at", pa.array(range(NUM_ROWS))), mode="create")
        connection.commit()
    return uri


def connect(uri: str) -> Any:
    import adbc_driver_postgresql.dbapi

    return adbc_driver_postgresql.dbapi.connect(uri)


def run(uri: str, statement: str) -> pa.Table:
    with connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        table = cursor.fetch_arrow_table()
        connection.commit()
        return table


def raw_config(folder: Path, train: Any, *, cache: str = "cache", **data: Any) -> dict:
    return {
        "data": {
            "train": train,
            "split": {"by": "time", "column": "time", "valid_from": 9_000, "test_from": 12_000},
            "group": "user",
            "slices": ["device"],
            "cache": str(folder / cache),
            "rows_per_shard": 400,
        }
        | data,
        "features": {
            "user": {"kind": "categorical", "dim": 4, "ids": {"by": "hash", "buckets": 64}},
            "item": {"kind": "categorical", "dim": 4},
            "device": {"kind": "categorical", "dim": 4},
            "age": {"kind": "numeric", "steps": [{"fill": "mean"}, "standard"]},
            "price": {"kind": "numeric"},
            "tags": {"kind": "categorical", "dim": 4, "max_len": 3},
            "history": {"kind": "sequence", "table": "item", "max_len": 5},
        },
        "labels": {"label": {}},
        "model": {"name": "deepfm", "hidden_units": [8]},
        "run": str(folder / "run"),
        "train": {"batch_size": 256, "steps": 3},
    }


def config_of(folder: Path, train: Any, *, cache: str = "cache", **data: Any) -> RunConfig:
    return parse(raw_config(folder, train, cache=cache, **data))


def small(folder: Path, uri: str, query: str, *, features: dict | None = None, **data: Any) -> RunConfig:
    """A config with no split and, if not told otherwise, one feature `x`."""
    raw = {"data": {"train": {"uri": uri, "query": query}, "cache": str(folder / "cache")} | data}
    return parse(raw | {"features": features or {"x": {"kind": "categorical"}}, "labels": {"y": {}}, "model": {"name": "deepfm"}})


def arrays_below(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_job_from_the_database(tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """prepare and train through the command line; the cache is that of the same rows in Parquet; the password is nowhere."""
    monkeypatch.setenv("TRM_TEST_PASSWORD", PASSWORD)
    rows = click_log(NUM_ROWS, seed=4).table
    pq.write_table(rows, tmp_path / "log.parquet", row_group_size=512)
    by_file = prepare(config_of(tmp_path, str(tmp_path / "log.parquet"), cache="by_file"), progress=False)

    with_variable = uri.partition("trm:")[0] + "trm:${TRM_TEST_PASSWORD}@" + uri.partition("@")[2]
    for name, address in (("plain", uri), ("variable", with_variable)):
        config = tmp_path / f"{name}.yaml"
        query = {"uri": address, "query": "SELECT * FROM log -- all\nORDER BY at;\n"}
        config.write_text(yaml.safe_dump(raw_config(tmp_path, query, cache=name), sort_keys=False))
        assert cli.main(["check", str(config)]) == 0
        assert not (tmp_path / name).exists() and not (tmp_path / f"{name}.rows").exists(), "check writes nothing"
        assert cli.main(["prepare", str(config)]) == 0
        assert arrays_below(tmp_path / name) == arrays_below(by_file.folder)
    assert cli.main(["train", str(tmp_path / "plain.yaml")]) == 0
    assert cli.main(["export", str(tmp_path / "run")]) == 0  # compares with real rows: those that were kept

    said = "".join(capsys.readouterr())
    assert f"{NUM_ROWS:,} rows of postgresql://trm:***@127.0.0.1" in said
    texts = [said.encode(), *(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "plain.yaml")]
    for secret in (PASSWORD, uri.partition("trm:")[2].partition("@")[0]):
        assert not any(secret.encode() in text for text in texts)


def test_folds_and_predictions_of_queries(tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Folds are those of the same rows in a file; a run predicts the rows of another query on the database that it came from."""
    monkeypatch.setenv("TRM_TEST_PASSWORD", PASSWORD)
    pq.write_table(click_log(NUM_ROWS, seed=4).table, tmp_path / "log.parquet")
    split = {"by": "fold", "num_folds": 3, "group": "user", "stratify": "label"}
    by_file = prepare(config_of(tmp_path, str(tmp_path / "log.parquet"), cache="by_file", split=split), progress=False)
    with_variable = uri.partition("trm:")[0] + "trm:${TRM_TEST_PASSWORD}@" + uri.partition("@")[2]
    query = {"uri": with_variable, "query": "SELECT * FROM log ORDER BY at"}
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(raw_config(tmp_path, query, split=split), sort_keys=False))
    assert cli.main(["prepare", str(config)]) == 0
    assert arrays_below(tmp_path / "cache") == arrays_below(by_file.folder)
    for fold in (0, 2):
        run_folder = tmp_path / f"run{fold}"
        assert cli.main(["train", str(config), f"data.split.fold={fold}", f"run={run_folder}"]) == 0
    pq.write_table(click_log(NUM_ROWS, seed=4).table.slice(300, 400), tmp_path / "some.parquet")
    out, expected = tmp_path / "p.parquet", tmp_path / "expected.parquet"
    assert cli.main(["predict", str(run_folder), str(tmp_path / "some.parquet"), "--out", str(expected)]) == 0
    wanted = "SELECT * FROM log WHERE at >= 300 AND at < 700 ORDER BY at"
    assert cli.main(["predict", str(run_folder), "--query", wanted, "--out", str(out), "--uri", with_variable]) == 0
    np.testing.assert_allclose(pq.read_table(out)["label"], pq.read_table(expected)["label"], rtol=1e-5)
    assert left_in(tmp_path) == ["by_file", "c.yaml", "cache", "cache.rows", "expected.parquet", "log.parquet", "p.parquet",
                                 "run0", "run2", "some.parquet"]  # fmt: skip
    assert cli.main(["predict", str(run_folder), "--query", wanted, "--out", str(tmp_path / "q.parquet")]) == 2
    assert "--uri: required, for a run keeps no password (postgresql://trm:***@" in capsys.readouterr().err
    monkeypatch.setenv("TRM_TEST_PASSWORD", "wrong")
    arguments = ["predict", str(run_folder), "--query", wanted, "--out", str(tmp_path / "q.parquet"), "--uri", with_variable]
    assert cli.main(arguments) == 2
    assert "password authentication failed" in capsys.readouterr().err
    assert not list(tmp_path.glob("q.parquet*"))


def test_a_finished_cache_asks_no_database_and_force_does(tmp_path: Path, uri: str) -> None:
    run(uri, "CREATE TABLE moving AS SELECT 'a' AS x, 1 AS y FROM generate_series(1, 3)")
    config = small(tmp_path, uri, "SELECT * FROM moving")
    assert prepare(config, progress=False).split("train").num_rows == 3
    run(uri, "INSERT INTO moving VALUES ('b', 0)")
    assert prepare(config, progress=False).split("train").num_rows == 3
    other = small(tmp_path, uri, "SELECT * FROM moving", features={"x": {"kind": "categorical", "dim": 4}})
    with pytest.raises(ValueError, match=r"tables\.x\.dim: was 16, now 4"):
        prepare(other, progress=False)
    newer = config.data.model_dump() | {"train": {"uri": uri, "query": "SELECT * FROM moving", "version": "2"}}
    with pytest.raises(ValueError, match=r"data\.train\.version: was '', now '2'"):
        prepare(config.model_copy(update={"data": type(config.data)(**newer)}), progress=False)
    assert prepare(config, progress=False, force=True).split("train").num_rows == 4
    run(uri, "DROP TABLE moving")
    assert open_prepared(config).split("train").num_rows == 4


def test_an_interrupted_prepare_goes_on_with_the_rows_that_were_read(tmp_path: Path, uri: str) -> None:
    """The table is emptied after the rows were read; a run that was stopped while fitting must not see that."""
    run(uri, "CREATE TABLE fading AS SELECT i::text AS x, i % 2 AS y FROM generate_series(1, 50) i")
    config = small(tmp_path, uri, "SELECT * FROM fading")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("torchrec_models.pipelines.data.build.fit_rows", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare(config, progress=False)
    run(uri, "TRUNCATE fading")
    assert prepare(config, progress=False).split("train").num_rows == 50


def test_types_of_postgresql(tmp_path: Path, uri: str) -> None:
    """Every plain type as a feature, with NULLs; ids are what a request would say."""
    run(uri, "CREATE TYPE mood AS ENUM ('sad', 'ok')")
    columns = (
        "1::int2 AS i2, 2::int8 AS i8, 1.5::float4 AS f4, true AS flag, 'z'::char(3) AS padded, 12.50::numeric(10,2) AS dec,"
        "12345678901234567890::numeric AS big, 7.00::numeric AS whole, timestamptz '2024-05-01 12:00+02' AS tz,"
        "timestamp '2024-05-01 10:00' AS ts, date '2024-05-01' AS day, '{a,b,NULL}'::text[] AS words, '{3,4}'::int[] AS ints,"
        "'{1.50,2}'::numeric[] AS decs, 'ok'::mood::text AS mood, '550e8400-e29b-41d4-a716-446655440000'::uuid AS uid,"
        "'{\"k\": 1}'::jsonb AS doc, 0.25::numeric AS price, 1 AS y"
    )
    names = ["i2", "i8", "f4", "flag", "padded", "dec", "big", "whole", "tz", "ts", "day", "mood", "uid", "doc"]
    lists = ["words", "ints", "decs"]
    blank = ", ".join(f"CASE WHEN i = 1 THEN {n} END AS {n}" for n in (*names, *lists, "price", "y"))
    query = f"SELECT {blank} FROM (SELECT {columns}) one, generate_series(1, 2) i ORDER BY i"
    features: dict[str, dict] = {name: {"kind": "categorical", "dim": 4} for name in names}
    features |= {name: {"kind": "sequence", "dim": 4, "max_len": 5} for name in lists}
    features["price"] = {"kind": "numeric", "steps": [{"fill": 9}]}
    raw = {"data": {"train": {"uri": uri, "query": query}, "cache": str(tmp_path / "cache"), "timestamp": "ts"}}
    raw |= {"features": features, "labels": {"y": {"null": "mask"}}, "model": {"name": "deepfm"}}
    cache = prepare(parse(raw), progress=False)
    told = {name: table.values.to_pylist() for name, table in cache.transforms.tables.items() if table.values is not None}
    first = {name: [v for v in values if v is not None] for name, values in told.items()}
    assert first == {
        "i2": [1], "i8": [2], "f4": [1.5], "flag": [1], "padded": ["z  "], "dec": ["12.5"], "big": ["12345678901234567890"],
        "whole": ["7"], "tz": ["2024-05-01 10:00:00.000000Z"], "ts": ["2024-05-01 10:00:00.000000"], "day": ["2024-05-01"],
        "mood": ["ok"], "uid": ["550e8400-e29b-41d4-a716-446655440000"], "doc": ['{"k": 1}'],
        "words": ["a", "b"], "ints": [3, 4], "decs": ["1.5", "2"],
    }  # fmt: skip
    split = cache.split("train")
    assert split.labels()[:1, 0].tolist() == [1.0] and split.num_rows == 2
    kept = pq.read_table(snapshot_path(tmp_path / "cache", parse(raw).data.train))
    assert kept.column("words").to_pylist() == [["a", "b", None], None]
    assert kept.column("decs").to_pylist() == [["1.5", "2"], None]
    assert kept.column("price").to_pylist() == ["0.25", None]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT * FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELECT x FROM log", 'column "x" does not exist'),
        ("SELECT 1 AS x", r"no column 'y'.*columns: x"),
        ("SELECT 'a' AS x, 1 AS y, 2 AS y", "gives 'y' more than once; rename with AS"),
        ("SELECT 'a' AS x, 1 AS y WHERE false", "the query gives no row"),
        ("SELECT '10.0.0.1'::inet AS x, '1'::money AS m, 1 AS y", r"'x' \(inet\), 'm' \(money\); cast them in the query"),
        ("SELECT '(1,2)'::point AS x, 1 AS y", r"'x' \(point\)"),
        ("CREATE TABLE made (x int)", "read-only transaction"),
        ("DELETE FROM log RETURNING item AS x, label AS y", "read-only transaction"),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT i AS x, 1 / (i - 90000) AS y FROM generate_series(1, 100000) i", "division by zero"),
        (
            "SELECT i AS x, NULL::int AS y FROM generate_series(1, 3) i",
            r"(?s)column 'y', data row 1.*was read from .*--force` reads",
        ),
    ],
)
def test_what_the_database_or_the_config_refuse(tmp_path: Path, uri: str, query: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        prepare(small(tmp_path, uri, query), progress=False)
    assert "trm:***@127.0.0.1" in str(caught.value) and PASSWORD not in str(caught.value)
    assert not [name for name in left_in(tmp_path) if name != "cache.rows"], "no half cache"
    assert not list(tmp_path.glob("cache.rows/*.partial"))


@pytest.mark.parametrize(
    ("password", "words"),
    [
        ("wrong", "password authentication failed for user .trm.; check user and password"),
        ("w r o n g", "unexpected spaces"),
        ("wr/ong", "must be written %2F"),
        ("${TRM_TEST_UNSET}", "environment variable TRM_TEST_UNSET, which is not set"),
    ],
)
def test_a_wrong_password(tmp_path: Path, server: str, password: str, words: str) -> None:
    config = small(tmp_path, server.format(password), "SELECT 1 AS x, 1 AS y")
    for attempt in (lambda: prepare(config, progress=False), lambda: check_data(config)):
        with pytest.raises(ValueError, match=words) as caught:
            attempt()
        assert "data.train" in str(caught.value)
        assert not any(part in str(caught.value).replace("postgresql", "") for part in ("wrong", "w r o", "wr/", "ong"))
    assert left_in(tmp_path) == []


def test_no_server(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can answer there
        uri = f"postgresql://trm:sesame@127.0.0.1:{closed.getsockname()[1]}/postgres"
        pytest.importorskip("adbc_driver_postgresql", reason="needs the extra postgresql")
        with pytest.raises(ValueError, match=r"trm:\*\*\*@.*Connection refused"):
            prepare(small(tmp_path, uri, "SELECT 1 AS x, 1 AS y"), progress=False)
    assert left_in(tmp_path) == []


def test_a_connection_that_is_lost_while_rows_are_read(tmp_path: Path, uri: str) -> None:
    """The server ends the connection in the middle: an error, nothing half; the next run makes the cache."""
    run(uri, "CREATE TABLE many AS SELECT 20000000 AS rows")
    numbers = "SELECT generate_series(1, (SELECT rows FROM many)) i"  # in the SELECT list: sent as they are made
    query = f"SELECT repeat('x', 90) || i AS x, 1 AS y FROM ({numbers}) made"
    config = small(tmp_path, uri, query, memory_budget_mib=16)

    def end_it() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any(p.stat().st_size > 2**16 for p in tmp_path.glob("cache.rows/*.partial")):
                break
            time.sleep(0.02)
        run(
            uri,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND pid <> pg_backend_pid()",
        )

    ending = threading.Thread(target=end_it)
    ending.start()
    try:
        with pytest.raises(ValueError, match=r"(closed|terminating) (the )?connection.*run the command again"):
            prepare(config, progress=False)
    finally:
        ending.join()
    assert left_in(tmp_path) == []
    run(uri, "UPDATE many SET rows = 20")
    assert prepare(config, progress=False).split("train").num_rows == 20


def test_a_column_that_changes_its_type(tmp_path: Path, uri: str) -> None:
    """From one split's query to the next: the transforms were fitted on numbers and meet text."""
    query = {"uri": uri, "query": "SELECT 'seven' AS x, 1 AS y"}
    with pytest.raises(ValueError, match="column 'x'"):
        prepare(small(tmp_path, uri, "SELECT 7 AS x, 1 AS y", test=query), progress=False)
    assert left_in(tmp_path) == ["cache.rows"]


def test_a_stored_config_knows_no_password(uri: str) -> None:
    query = QueryConfig(uri=uri, query="SELECT 1")
    stored = QueryConfig.model_validate_json(query.model_dump_json())
    assert stored.uri == query.place and snapshot_path("c", stored) == snapshot_path("c", query)
    with pytest.raises(ValueError, match="was masked when this config was stored"):
        stored.resolved_uri()
