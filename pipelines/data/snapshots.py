"""The rows of a query, read once and kept as one Parquet file in `<cache>.rows/`, from which everything else is made.

`prepare` reads its rows two times or more, and an interrupted one must find the same rows in the same order. A database promises
neither: rows change, and SELECT without ORDER BY has no order. So the query runs once, in one statement, which sees one state of
the database, and its rows stream to disk; fitting, writing, resuming, exports and other features with the same query read the file.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..config import QueryConfig, RunConfig
from .checksums import checksum_of_json
from .database_types import storable
from .databases import database_file, open_query
from .durable import fsync, naming
from .parquet_files import check_columns

_KEY = b"torchrec_models.query"
_SHARE_OF_BUDGET = 16
_MOST_ROWS = 1 << 17
_NO_ROW = "{}: the query gives no row"


def snapshot_path(cache: str | Path, query: QueryConfig) -> Path:
    """Where the rows of a query are kept: the name depends on URI (without password), query, version and driver."""
    folder = Path(cache)
    return folder.with_name(f"{folder.name}.rows") / f"{checksum_of_json(query.model_dump(mode='json'))[:12]}.parquet"


def open_snapshot(config: RunConfig, query: QueryConfig) -> Path:
    """The file with the rows of a query.

    Raises:
        ValueError: if there is none.
    """
    path = snapshot_path(config.data.cache, query)
    if not path.exists():
        raise ValueError(f"{path}: the rows of the query on {query.place} are not kept here; run `trm prepare CONFIG --force`")
    return path


def query_files(query: QueryConfig) -> dict[str, Any]:
    """What a cache remembers of a database beside the query: size and modification time where it is one file.

    Raises:
        ValueError: if that file does not exist.
    """
    file = database_file(query)
    return {} if file is None else {file.path: {"size_bytes": file.size_bytes, "mtime_ns": file.mtime_ns}}


def take_snapshot(
    config: RunConfig, query: QueryConfig, *, check: Callable[[pa.Schema], None], again: bool, progress: bool
) -> dict[str, Any]:
    """Make sure that the rows of a query are on disk. A finished snapshot is kept, a started one begins anew.

    Memory is bounded by `data.memory_budget_mib`.

    Args:
        check: raises ValueError for columns that do not fit the config, before rows are read.
        again: read the rows even if they are there.

    Returns:
        What the file is made of: place, number of rows, time of reading, size.

    Raises:
        ValueError: what the database or `check` refuse. Nothing half is left.
        OSError: with the path, where the disk refuses.
    """
    path, files = snapshot_path(config.data.cache, query), query_files(query)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        kept = None if again else _description(path)
        if kept is not None and kept["files"] == files:
            check(pq.read_schema(path))
        else:
            _read(config, query, path, files, check=check, progress=progress)
            kept = _description(path)
        assert kept is not None
        return kept | {"size_bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}


@contextmanager
def telling_when_read(snapshots: Mapping[str, dict[str, Any]]) -> Iterator[None]:
    """Adds to errors about rows that these were read some time ago: whoever mends the database must read them again."""
    try:
        yield
    except ValueError as error:
        if not snapshots:
            raise
        when = "; ".join(f"data.{split} was read from {told['place']} at {told['read_at']}" for split, told in snapshots.items())
        raise ValueError(f"{error}\n({when}; `trm prepare CONFIG --force` reads again)") from None


def drop_other_snapshots(config: RunConfig) -> None:
    """Remove the rows of queries that the config does not name any more."""
    queries = [q for q in (config.data.train, config.data.valid, config.data.test) if isinstance(q, QueryConfig)]
    named = {snapshot_path(config.data.cache, q) for q in queries}
    for path in Path(f"{Path(config.data.cache)}.rows").glob("*.parquet"):
        if path not in named:
            path.unlink(missing_ok=True)


def first_rows(config: RunConfig, query: QueryConfig) -> pa.Table:
    """Rows that the database sends first, in the types in which they would be kept; nothing is written.

    Raises:
        ValueError: what the database refuses, or if there is none.
    """
    with open_query(query, memory_budget_bytes=config.data.memory_budget_mib * 2**20) as reader:
        schema, makers = _stored_as(reader.schema, query)
        batch = next((batch for batch in reader if batch.num_rows), None)
        if batch is None:
            raise ValueError(_NO_ROW.format(query.place))
        return _made(batch, schema, makers)


def _read(
    config: RunConfig, query: QueryConfig, path: Path, files: dict, *, check: Callable[[pa.Schema], None], progress: bool
) -> None:
    partial = path.with_suffix(".partial")
    budget_bytes = config.data.memory_budget_mib * 2**20
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    num_rows = 0
    try:
        with open_query(query, memory_budget_bytes=budget_bytes, scratch=path.parent) as reader:
            schema, makers = _stored_as(reader.schema, query)
            try:
                check(schema)
            except ValueError:
                if not any(batch.num_rows for batch in reader):  # SQLite's types are those of its rows
                    raise ValueError(_NO_ROW.format(query.place)) from None
                raise
            with (
                tqdm(desc="read query", unit=" rows", unit_scale=True, disable=not progress) as bar,
                _writing(partial, schema) as writer,
            ):
                for table in _groups(reader, schema, makers, budget_bytes // _SHARE_OF_BUDGET):
                    with naming(partial):
                        writer.write_table(table)
                    num_rows += table.num_rows
                    bar.update(table.num_rows)
                told = {"place": query.place, "version": query.version, "num_rows": num_rows, "read_at": started, "files": files}
                writer.add_key_value_metadata({_KEY: json.dumps(told)})
        if not num_rows:
            raise ValueError(_NO_ROW.format(query.place))
        fsync(partial)
        os.replace(partial, path)
        fsync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    with naming(path):
        writer = pq.ParquetWriter(path, schema, compression="lz4", write_page_checksum=True)
    try:
        yield writer
    finally:
        with naming(path):
            writer.close()


def _stored_as(schema: pa.Schema, query: QueryConfig) -> tuple[pa.Schema, list[Callable[[pa.Array], pa.Array]]]:
    try:
        return storable(schema)
    except ValueError as error:
        raise ValueError(f"{query.place}: {error}") from None


def _made(batch: pa.RecordBatch, schema: pa.Schema, makers: list[Callable[[pa.Array], pa.Array]]) -> pa.Table:
    return pa.Table.from_arrays([make(column) for make, column in zip(makers, batch.columns)], schema=schema)


def _groups(reader: pa.RecordBatchReader, schema: pa.Schema, makers: list, group_bytes: int) -> Iterator[pa.Table]:
    """Batches joined to row groups of a fair size."""
    parts: list[pa.Table] = []
    for batch in reader:
        if batch.num_rows:
            parts.append(_made(batch, schema, makers))
        if sum(p.nbytes for p in parts) >= group_bytes or sum(p.num_rows for p in parts) >= _MOST_ROWS:
            yield pa.concat_tables(parts)
            parts = []
    if parts:
        yield pa.concat_tables(parts)


def _description(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        stored = pq.read_metadata(path).metadata or {}
    except (pa.ArrowInvalid, OSError):
        return None  # read it again
    return json.loads(stored[_KEY]) if _KEY in stored else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = path.with_name("lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is reading rows into {path.parent}; wait for it, or stop it") from None
        try:
            yield
        finally:
            if list(path.parent.iterdir()) == [lock]:  # nothing was read, nothing is left
                lock.unlink()
                path.parent.rmdir()


def check_query_columns(query: QueryConfig, schema: pa.Schema, columns: list[str]) -> None:
    """Raises ValueError for columns that the query does not give."""
    check_columns(f"the query on {query.place}", schema.names, columns)
