"""Writing shards: appended to as rows arrive, so memory holds one batch and never a shard."""

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from torchrec_models.schema import Schema

from .checksums import FileEntry
from .durable import fsync
from .growing_arrays import buffers_for
from .missing import Missing
from .open_shard import OpenShard
from .rows import Rows
from .shards import NPY_HEADER_BYTES, Shard, array_files

EVERY_SHARD = range(2**31)
_MOST_INCOMPLETE = 2  # shards of a split that wait for the disk


class ShardWriter:
    """Writes one split as shards of `rows_per_shard` rows each (the last one may be shorter).

    A shard grows in `<split>/<number>.tmp`; when full it is forced to the disk and renamed, and `on_finished` is told.
    An interrupted writer thus leaves whole shards and some `.tmp`. The next writer goes on with the first one if it was saved, and
    removes the others.

    Args:
        folder: of the split.
        numbers: of the shards that this writer writes, from the first on; the others are left alone.
        finished: those of them that an earlier writer finished; this one goes on behind them.
        saved: what `OpenShard.save` told of the one behind them; None: it begins anew, as it does if its files are not like that.
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
        saved: Mapping[str, Any] | None = None,
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
        self._buffers = buffers_for(len(array_files(schema)))
        self.under_way: OpenShard | None = None if saved is None else self._opened(saved)
        self.being_saved: Future[None] | None = None
        """What must be done before the shard under way may be finished."""
        keep = {shard.folder.name for shard in finished}
        if self.under_way:
            self.num_rows += self.under_way.num_rows
            keep.add(self.under_way.folder.name)
        for left_over in folder.iterdir() if folder.exists() else ():
            if left_over.name not in keep and int(left_over.stem) in numbers:
                shutil.rmtree(left_over)

    def _opened(self, saved: Mapping[str, Any] | None) -> OpenShard | None:
        folder = self.folder / f"{self._numbers[len(self._finished)]:05d}.tmp"
        try:
            return OpenShard(folder, self.schema, self.sidecar_schema, self._buffers, self._pool, saved=saved)
        except (ValueError, FileNotFoundError):
            if saved is None:
                raise
            return None

    @property
    def unfinished(self) -> list[Future[Shard]]:
        """Shards that are full, and wait for the disk."""
        return [one for one in self._finished if isinstance(one, Future) and not one.done()]

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
            self.under_way = self.under_way or self._opened(None)
            assert self.under_way
            stop = min(rows.num_rows, start + self.rows_per_shard - self.under_way.num_rows)
            counts = missing.counts(start, stop) if missing else None
            self.under_way.append(rows.slice(start, stop), sidecars.slice(start, stop - start), counts)
            self.num_rows += stop - start
            start = stop
            if self.under_way.num_rows == self.rows_per_shard:
                self._finish()

    def close(self) -> None:
        """Finishes the last shard."""
        if self.under_way is not None:
            self._finish()

    def _finish(self) -> None:
        assert self.under_way is not None
        if self.being_saved is not None:
            self.being_saved.result()
        under_way, self.under_way, self.being_saved = self.under_way, None, None
        under_way.close()
        if self._pool is None:
            self._finished.append(self._complete(under_way))
            return
        for earlier in self._finished[:-_MOST_INCOMPLETE]:  # the disk sets the pace; and what it refused is told here
            if isinstance(earlier, Future):
                earlier.result()
        self._finished.append(self._pool.submit(self._complete, under_way))

    def _written(self, written: OpenShard, name: str) -> np.ndarray:
        """A matrix of a shard, float64. `np.load` parses its header as Python, in which CPython 3.11 now and then fails in threads
        ("AST constructor recursion depth mismatch")."""
        dtype, columns = array_files(self.schema)[name]
        assert columns is not None, name
        numbers = np.fromfile(written.folder / name, dtype, offset=NPY_HEADER_BYTES)
        return numbers.reshape(written.num_rows, columns).astype(np.float64)

    def _complete(self, written: OpenShard) -> Shard:
        labels, weights = (self._written(written, name) for name in ("labels.npy", "weights.npy"))
        files = {}
        for path in written.files_of_shard():
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
        written.forget()
        fsync(written.folder)
        written.folder.rename(shard.folder)
        fsync(self.folder)
        if self._on_finished is not None:
            self._on_finished(shard)
        return shard
