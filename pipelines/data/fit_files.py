"""What a process has learned from its share of the rows, on the way to the one that fits the transforms: a file per statistic."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from .durable import naming

_KEYS = "keys.json"


def write_state(folder: Path, state: Iterable[tuple[dict[str, Any], pa.Table]]) -> None:
    """Writes what `Fitter.state` gives.

    Raises:
        OSError: with the path, if the disk refuses.
    """
    folder.mkdir(parents=True)
    keys = []
    for number, (key, table) in enumerate(state):
        keys.append(key)
        path = folder / f"{number}.arrow"
        with naming(path), pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with naming(folder):
        (folder / _KEYS).write_text(json.dumps(keys))


def read_state(folder: Path) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """For `Fitter.merge`; one table at a time."""
    for number, key in enumerate(json.loads((folder / _KEYS).read_text())):
        with pa.OSFile(str(folder / f"{number}.arrow")) as source:
            yield key, pa.ipc.open_file(source).read_all()
