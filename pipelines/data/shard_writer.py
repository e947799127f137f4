"""Writing shards: appended to as rows arrive, so memory holds one batch and never a shard."""

import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from mmap import mmap
from pathlib import Path

import numpy as np
import pyarrow as pa

from torchrec_models.schema import Schema

from .checksums import FileEntry
from .durable import fsync, naming
from .growing_arrays import GrowingArray, buffers_for
from .missing import Missing, added
from .rows import Rows, list_valued
from .shards import NPY_HEADER_BYTES, SIDECARS, Shard, array_files

EVERY_SHARD = range(2**31)
_MOST_INCOMPLETE = 2  # shards of a split that wait for the disk
_SIDECAR_CHUNK_ROWS = 1 << 16  # side columns are cut here, whatever batches they came in, so that equal rows give equal files


class _OpenShard:
    """A shard under way, in a folder whose name says so."""

    def __init__(self, folder: Path, schema: Schema, sidecar_schema: pa.Schema, buffers: list[mmap], pool: Executor | None) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.schema = schema
        self.num_rows = 0
        self.missing: dict[str, int] | None = {}
        self.files: dict[str, FileEntry] = {}
        """The arrays, when they are closed."""
        self.arrays = {
            name: GrowingArray(folder / name, *kind, buffer=buffer, pool=pool)
            for (name, kind), buffer in zip(array_files(schema).items(), buffers, strict=True)
        }
        self.ends = [0] * len(list_valued(schema))
        for i in range(len(self.ends)):
            self.arrays[f"list_{i:03d}.offsets.npy"].append(np.zeros(1, np.int64))
        self.sidecars = pa.ipc.new_file(str(folder / SIDECARS), sidecar_schema)
        self.pending: list[pa.Table] = []

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
        self.pending = [table.slice(num_rows)]

    def close(self) -> None:
        self._write_sidecars(all_of_them=True)
        with naming(self.folder / SIDECARS):
            self.sidecars.close()
        self.files = {name: array.close() for name, array in self.arrays.items()}


class ShardWriter:
    """Writes one split as shards of `rows_per_shard` rows each (the last one may be shorter).

    A shard grows in `<split>/<number>.tmp`; when full it is forced to the disk and renamed, and `on_finished` is told.
    An interrupted writer thus leaves whole shards and at most one `.tmp`, which the next writer removes.

    Args:
        folder: of the split.
        numbers: of the shards that this writer writes, from the first on; the others are left alone.
        finished: those of them that an earlier writer finished; this one goes on behind them.
        on_finished: called with each shard that is complete on disk; with a pool, by one of its threads.
        pool: writes arrays while more rows come, and forces shards to the disk while the next ones grow; None: it is done
            before going on.
    """

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        sidecar_schema: pa.Schema,
        *,
        rows_per_shard: int,
        numbers: range = EVERY_SHARD,
        finished: tuple[Shard, ...] = (),
        on_finished: Callable[[Shard], None] | None = None,
        pool: Executor | None = None,
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.sidecar_schema = sidecar_schema
        self.rows_per_shard = rows_per_shard
        self.num_rows = sum(shard.num_rows for shard in finished)
        """Rows in finished shards and in the one under way."""
        self._numbers = numbers
        self._finished: list[Shard | Future[Shard]] = list(finished)
        self._on_finished = on_finished
        self._pool = pool
        self._open: _OpenShard | None = None
        self._buffers = buffers_for(len(array_files(schema)))
        keep = {shard.folder.name for shard in finished}
        for left_over in folder.iterdir() if folder.exists() else ():
            if left_over.name not in keep and int(left_over.stem) in numbers:
                shutil.rmtree(left_over)

    @property
    def shards(self) -> list[Shard]:
        """All that are finished, when they are complete on disk.

        Raises:
            OSError: with the path, if the disk refused.
        """
        self._finished = [one if isinstance(one, Shard) else one.result() for one in self._finished]
        return [one for one in self._finished if isinstance(one, Shard)]

    def append(self, rows: Rows, sidecars: pa.Table, missing: Missing | None = None) -> None:
        """Adds N rows and their side columns.

        Args:
            missing: what was missing of the raw rows; None where they are not known, and then nothing is recorded of the shard.

        Raises:
            OSError: with the path, if the disk refuses; finished shards stay usable.
        """
        assert sidecars.num_rows == rows.num_rows or not sidecars.num_columns, (sidecars.num_rows, rows.num_rows)
        start = 0
        while start < rows.num_rows:
            if self._open is None:
                number = self._numbers[len(self._finished)]
                self._open = _OpenShard(
                    self.folder / f"{number:05d}.tmp", self.schema, self.sidecar_schema, self._buffers, self._pool
                )
            stop = min(rows.num_rows, start + self.rows_per_shard - self._open.num_rows)
            counts = missing.counts(start, stop) if missing else None
            self._open.append(rows.slice(start, stop), sidecars.slice(start, stop - start), counts)
            self.num_rows += stop - start
            start = stop
            if self._open.num_rows == self.rows_per_shard:
                self._finish()

    def close(self) -> None:
        """Finishes the last shard."""
        if self._open is not None:
            self._finish()

    def _finish(self) -> None:
        assert self._open is not None
        under_way, self._open = self._open, None
        under_way.close()
        if self._pool is None:
            self._finished.append(self._complete(under_way))
            return
        for earlier in self._finished[:-_MOST_INCOMPLETE]:  # the disk sets the pace; and what it refused is told here
            if isinstance(earlier, Future):
                earlier.result()
        self._finished.append(self._pool.submit(self._complete, under_way))

    def _written(self, written: _OpenShard, name: str) -> np.ndarray:
        """A matrix of a shard, float64. `np.load` parses its header as Python, in which CPython 3.11 now and then fails in threads
        ("AST constructor recursion depth mismatch")."""
        dtype, columns = array_files(self.schema)[name]
        assert columns is not None, name
        numbers = np.fromfile(written.folder / name, dtype, offset=NPY_HEADER_BYTES)
        return numbers.reshape(written.num_rows, columns).astype(np.float64)

    def _complete(self, written: _OpenShard) -> Shard:
        labels, weights = (self._written(written, name) for name in ("labels.npy", "weights.npy"))
        files = {}
        for path in sorted(written.folder.iterdir()):
            fsync(path)
            files[path.name] = written.files.get(path.name) or FileEntry.of(path)
        num_tasks = labels.shape[1]
        shard = Shard(
            folder=self.folder / written.folder.stem,
            num_rows=written.num_rows,
            files=files,
            label_sums=tuple((weights[:, :num_tasks] * labels).sum(0).tolist()),
            weight_sums=tuple(weights.sum(0).tolist()),
            missing=written.missing,
        )
        fsync(written.folder)
        written.folder.rename(shard.folder)
        fsync(self.folder)
        if self._on_finished is not None:
            self._on_finished(shard)
        return shard
