"""Queries on databases as streams of Arrow record batches: PostgreSQL and SQLite through ADBC, DuckDB, any other ADBC driver.

ADBC (Arrow Database Connectivity) drivers make Arrow columns of the wire format themselves; PostgreSQL streams by binary COPY.
"""

import importlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa

from ..config import QueryConfig
from ..config.masking import MASK, masked
from .files import FileInfo

_EXTRAS = {"adbc_driver_postgresql": "postgresql", "adbc_driver_sqlite": "sqlite", "duckdb": "duckdb"}
_SQLITE_TYPED_ROWS = 16_384  # SQLite columns have no fixed type: the driver goes by so many rows
_DUCKDB_BATCH_ROWS = 65_536
_SHARE_OF_BUDGET = 16


@contextmanager
def open_query(query: QueryConfig, *, memory_budget_bytes: int, scratch: Path | None = None) -> Iterator[pa.RecordBatchReader]:
    """Run a query; its rows come as the database sends them. Nothing that a query does to the database is kept.

    Args:
        memory_budget_bytes: batches take about a sixteenth (PostgreSQL); DuckDB may use all of it, and then the disk.
        scratch: folder in which DuckDB may write what does not fit.

    Raises:
        ValueError: whatever the database refuses, with its own words, also while rows are read; never with a password.
    """
    uri = query.resolved_uri()
    scheme = uri.partition("://")[0] if not query.driver else ""
    with _explained(query, uri), ExitStack() as stack:
        if scheme == "duckdb":
            reader = _duckdb(stack, query, uri, memory_budget_bytes, scratch)
        else:
            reader = _adbc(stack, query, uri, scheme, memory_budget_bytes)
        if not reader.schema.names:
            raise ValueError(f"{query.place}: the statement gives no columns; write a SELECT")
        yield reader


def database_file(query: QueryConfig) -> FileInfo | None:
    """The file of an SQLite or DuckDB database; None for databases that are not one file.

    Raises:
        ValueError: if there is no such file.
    """
    if query.driver or query.scheme not in ("sqlite", "duckdb"):
        return None
    path = _path(query.resolved_uri())
    if path == ":memory:":
        return None
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such database file (from {query.place}; four slashes begin an absolute path)")
    logs = (p for p in (Path(path + "-wal"), Path(path + ".wal")) if p.exists() and p.stat().st_size)  # changes not merged yet
    stats = [p.stat() for p in (Path(path), *logs)]
    return FileInfo(path, sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats))


def _path(uri: str) -> str:
    parts = urlsplit(uri)
    return unquote(parts.path.removeprefix("/")) or ":memory:"


def _statement(query: QueryConfig) -> str:
    """As it can stand inside COPY ( ... ): no semicolon, and an end of line behind a last comment."""
    return query.query.strip().rstrip(";").rstrip() + "\n"


def _adbc(stack: ExitStack, query: QueryConfig, uri: str, scheme: str, budget_bytes: int) -> pa.RecordBatchReader:
    options: dict[str, str] = {}
    if query.driver:
        driver = query.driver
    elif scheme in ("postgresql", "postgres"):
        driver = "adbc_driver_postgresql"
        options = {"adbc.postgresql.batch_size_hint_bytes": str(budget_bytes // _SHARE_OF_BUDGET)}
    elif scheme == "sqlite":
        driver = "adbc_driver_sqlite"
        file = database_file(query)
        path = file.path if file else _path(uri)
        uri = f"file:{quote(path)}?mode=ro"
        options = {"adbc.sqlite.query.batch_rows": str(_SQLITE_TYPED_ROWS)}
    else:
        raise ValueError(f"{query.place}: the scheme {scheme!r} tells no database; set `driver`")
    connection = stack.enter_context(_module(f"{driver}.dbapi").connect(uri))  # a transaction that is never committed
    cursor = stack.enter_context(connection.cursor())
    if scheme in ("postgresql", "postgres"):
        cursor.execute("SET TRANSACTION READ ONLY")
    cursor.adbc_statement.set_options(**options)
    cursor.execute(_statement(query))
    return stack.enter_context(cursor.fetch_record_batch())


def _duckdb(stack: ExitStack, query: QueryConfig, uri: str, budget_bytes: int, scratch: Path | None) -> pa.RecordBatchReader:
    duckdb = _module("duckdb")
    path = _path(uri)
    if file := database_file(query):
        path = file.path
    settings = {"memory_limit": f"{budget_bytes // 2**20}MiB"}
    if scratch is not None:
        settings["temp_directory"] = str(scratch / "duckdb")
    connection = stack.enter_context(duckdb.connect(path, read_only=path != ":memory:", config=settings))
    connection.sql("SET enable_progress_bar = false")  # it would write to standard output
    relation = connection.sql(_statement(query))
    if relation is None:
        raise ValueError(f"{query.place}: the statement gives no rows; write a SELECT")
    return stack.enter_context(relation.to_arrow_reader(_DUCKDB_BATCH_ROWS))


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        extra = _EXTRAS.get(package)
        how = f"pip install 'torchrec-models[{extra}]'" if extra else f"pip install {package.replace('_', '-')}"
        raise ValueError(f"the Python module {error.name} is not installed: {how}") from None


@contextmanager
def _explained(query: QueryConfig, uri: str) -> Iterator[None]:
    """Errors of drivers, which have no common base, as ValueError with the database's own words and no password."""
    try:
        yield
    except Exception as error:
        of_driver = isinstance(error, pa.ArrowException | OSError) or type(error).__module__.startswith(("adbc", "_duckdb"))
        if not of_driver or (isinstance(error, OSError) and error.filename is not None):  # with a name: a file of ours
            raise
        words = " ".join(_without_secrets(str(error), uri).split())
        raise ValueError(f"{query.place}: {words}{_hint(words)}") from None


def _without_secrets(text: str, uri: str) -> str:
    """libpq may quote a piece of the URI that it cannot read: the password goes, percent-encoded or not."""
    text = masked(text.replace(uri, masked(uri)))
    user_and_password = uri.partition("://")[2].rpartition("@")[0]
    password = user_and_password.partition(":")[2]
    for secret in (password, unquote(password)):
        text = text.replace(secret, MASK) if secret else text
    return text


_HINTS = {  # words of a database -> what to do
    r"password": "check user and password, ${NAME} takes them from the environment",
    r"closed the connection|terminating connection": "the rows read so far are dropped, run the command again",
    r"Type mismatch": "CAST the column to one type in the query, such as CAST(x AS TEXT)",
    r"Out of Memory": "raise data.memory_budget_mib",
}


def _hint(words: str) -> str:
    return next((f"; {hint}" for pattern, hint in _HINTS.items() if re.search(pattern, words)), "")
