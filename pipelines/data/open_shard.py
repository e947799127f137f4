"""A shard under way: appended to as rows arrive, and saved now and then, so that who is killed loses seconds of it."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from torchrec_models.schema import Schema

from .checksums import FileEntry
from .durable import fsync, naming
from .growing_arrays import GrowingArray, Saved
from .missing import added
from .rows import Rows, list_valued
from .shards import SIDECARS, array_files

_SIDECAR_CHUNK_ROWS = 1 << 16  # side columns are cut here, whatever batches they came in, so that equal rows give equal files
_MAGIC_BYTES = 8  # an Arrow file is a stream behind them
_WAITING = "waiting-*.arrow"


class OpenShard:
    """A shard under way, in a folder whose name says so.

    Args:
        saved: what `save` told of it in an interrupted run, which it goes on behind; None: it begins.

    Raises:
        ValueError: where the files are not as they were saved.
    """

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        sidecar_schema: pa.Schema,
        buffers: list[mmap],
        pool: Executor | None,
        *,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=saved is not None)
        self.folder = folder
        self.schema = schema
        self.num_rows: int = saved["num_rows"] if saved else 0
        self.missing: dict[str, int] | None = saved["missing"] if saved else {}
        self.files: dict[str, FileEntry] = {}
        """The arrays, when they are closed."""
        self.arrays = {
            name: GrowingArray(
                folder / name, *kind, buffer=buffer, pool=pool, behind=Saved(*saved["arrays"][name]) if saved else None
            )
            for (name, kind), buffer in zip(array_files(schema).items(), buffers, strict=True)
        }
        self.ends: list[int] = list(saved["ends"]) if saved else [0] * len(list_valued(schema))
        self.num_chunks = 0
        self.pending: list[pa.Table] = []
        if saved is None:
            for i in range(len(self.ends)):
                self.arrays[f"list_{i:03d}.offsets.npy"].append(np.zeros(1, np.int64))
            self.sidecars = pa.ipc.new_file(str(folder / SIDECARS), sidecar_schema)
        else:
            self._go_on_with_sidecars(saved, sidecar_schema)

    def _go_on_with_sidecars(self, saved: Mapping[str, Any], schema: pa.Schema) -> None:
        """The chunks written are written again, beside them first: the index of an Arrow file comes last, and is not there yet."""
        path, waiting, anew = self.folder / SIDECARS, self.folder / saved["waiting"], self.folder / f"{SIDECARS}.new"
        try:
            with pa.OSFile(str(waiting)) as source:
                self.pending = [pa.ipc.open_file(source).read_all()]
            chunks = list(_chunks(path, saved["num_chunks"]))
        except (OSError, pa.ArrowInvalid, StopIteration) as error:
            raise ValueError(f"{self.folder}: not as it was saved ({error})") from None
        with naming(anew):
            self.sidecars = pa.ipc.new_file(str(anew), schema)
            for chunk in chunks:
                self.sidecars.write_batch(chunk)
            anew.rename(path)
        self.num_chunks = saved["num_chunks"]

    def append(self, rows: Rows, sidecars: pa.Table, missing: dict[str, int] | None) -> None:
        self.num_rows += rows.num_rows
        self.missing = added(self.missing, missing)
        for name in ("dense", "ids", "labels", "weights"):
            self.arrays[f"{name}.npy"].append(getattr(rows, name).numpy())
        for i, (values, offsets) in enumerate(rows.lists):
            self.arrays[f"list_{i:03d}.values.npy"].append(values.numpy())
            self.arrays[f"list_{i:03d}.offsets.npy"].append((offsets[1:] + self.ends[i]).numpy())
            self.ends[i] += int(offsets[-1])
        self.pending.append(sidecars)
        if sum(table.num_rows for table in self.pending) >= _SIDECAR_CHUNK_ROWS:
            self._write_sidecars(all_of_them=False)

    def _write_sidecars(self, *, all_of_them: bool) -> None:
        table = pa.concat_tables(self.pending).combine_chunks()
        num_rows = table.num_rows if all_of_them else table.num_rows // _SIDECAR_CHUNK_ROWS * _SIDECAR_CHUNK_ROWS
        with naming(self.folder / SIDECARS):
            for start in range(0, num_rows, _SIDECAR_CHUNK_ROWS):
                index = pa.array(np.arange(start, min(start + _SIDECAR_CHUNK_ROWS, num_rows)))
                # take, not slice: a slice writes the bytes that lie around it too, so equal rows would not give equal files
                self.sidecars.write_table(table.take(index))
                self.num_chunks += 1
        self.pending = [table.slice(num_rows)]

    def save(self) -> dict[str, Any]:
        """Puts all that was appended into files. What is returned, as JSON, lets another one go on behind it, once `force` is done.

        Raises:
            OSError: with the path, if the disk refuses.
        """
        waiting = self.folder / _WAITING.replace("*", str(self.num_rows))
        table = pa.concat_tables(self.pending).combine_chunks()
        with naming(waiting), pa.OSFile(str(waiting), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return {
            "num_rows": self.num_rows,
            "missing": self.missing,
            "arrays": {name: list(vars(array.saved()).values()) for name, array in self.arrays.items()},
            "ends": list(self.ends),
            "num_chunks": self.num_chunks,
            "waiting": waiting.name,
        }

    def force(self) -> None:
        """Forces to the disk what `save` has put into files. Any thread may do this, while more is appended."""
        for path in (*self.folder.iterdir(), self.folder, self.folder.parent):
            fsync(path)

    def forget(self, *, but: str = "") -> None:
        """Deletes what was saved and is no part of a shard, except the file `but`."""
        for path in self.folder.glob(_WAITING):
            if path.name != but:
                path.unlink()

    def files_of_shard(self) -> list[Path]:
        """When it is closed."""
        return sorted((self.folder / SIDECARS, *(array.path for array in self.arrays.values())))

    def close(self) -> None:
        self._write_sidecars(all_of_them=True)
        with naming(self.folder / SIDECARS):
            self.sidecars.close()
        self.files = {name: array.close() for name, array in self.arrays.items()}


def _chunks(path: Path, number: int) -> Iterator[pa.RecordBatch]:
    """The first ones of an Arrow file that may lack its end."""
    if number:  # before there is one, nothing is in the file
        with pa.OSFile(str(path)) as source:
            source.seek(_MAGIC_BYTES)
            stream = pa.ipc.open_stream(source)
            for _ in range(number):
                yield stream.read_next_batch()
