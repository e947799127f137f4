"""What a process has learned from some of the rows, in one file: for another process, or for a later one."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from .durable import naming

_KEY = b"key"


def write_state(path: Path, state: Iterable[tuple[dict[str, Any], pa.Table]]) -> None:
    """Writes what `Fitter.state` gives: Arrow streams, one behind the other.

    Raises:
        OSError: with the path, if the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), pa.OSFile(str(path), "wb") as sink:
        for key, table in state:
            keyed = table.replace_schema_metadata({**(table.schema.metadata or {}), _KEY: json.dumps(key)})
            with pa.ipc.new_stream(sink, keyed.schema) as writer:
                writer.write_table(keyed)


def read_state(path: Path) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """For `Fitter.merge`; one table at a time."""
    with pa.OSFile(str(path)) as source:
        while source.tell() < source.size():
            table = pa.ipc.open_stream(source).read_all()
            yield json.loads(table.schema.metadata[_KEY]), table
