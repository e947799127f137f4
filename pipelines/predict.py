"""A table of any size through a trained model: rows stream in, predictions stream out in the same order."""

import logging
import os
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from torchrec_models.batch import Batch
from torchrec_models.schema import Schema

from . import checkpoint, checkpoint_folder
from .config import QueryConfig, RunConfig
from .config.masking import MASK
from .data.ids import Vocabulary
from .data.parallel import in_order
from .data.rows import BatchBuilder, Rows, single_valued
from .data.snapshots import check_query_columns, snapshot_path, take_snapshot
from .data.sources import Source, open_source
from .data.store_files import LogEncoder, read_stores
from .data.stores import Join
from .data.transforms import Transforms
from .distributed import Built, Processes, build_task, processes
from .prediction_file import PredictionFile, check_not_input, check_output
from .scoring import evaluation_mode

logger = logging.getLogger(__name__)
FEWEST_ROWS_TO_WARN = 100  # of fewer, all may well be new


@dataclass(frozen=True)
class PredictResult:
    num_rows: int
    out: Path
    seconds: float


def predict(
    path: Path,
    inputs: Sequence[str] | QueryConfig,
    out: Path,
    *,
    row_id: str = "",
    columns: Sequence[str] = (),
    which: str = "best",
    batch_rows: int = 16_384,
    workers: int = 0,
    progress: bool = True,
) -> PredictResult:
    """Score raw rows with a run's best (or last) checkpoint, on any number of processes.

    Rows are decoded and encoded by threads while earlier ones are scored and written; memory holds a few batches.

    Args:
        path: a run or checkpoint folder.
        inputs: files, globs or folders with the raw feature columns, or a query that gives them; labels are not needed. The rows of
            a query are read once, to a file beside the output that is removed in the end. Stores are read as their files are now.
        out: .parquet or .csv. Columns: the row id (or `row`, the position), then one per task: the probability
            (binary) or the value (regression). Written under another name and renamed when complete.
        row_id: column of the rows that identifies them; default: the config's `data.row_id`.
        columns: names for the output's columns, one for each; default: that of the row id, and those of the tasks.
        batch_rows: rows scored at a time, over all processes.
        workers: threads that encode; 0: one per core, shared by the processes.

    Raises:
        ValueError: wrong suffix, wrong number of column names, an output that is also an input, unreadable input, values that
            the transforms refuse; names file, column and row.
        CheckpointError: no usable checkpoint.
    """
    check_output(out)
    if batch_rows < 1:
        raise ValueError(f"batch_rows: given {batch_rows}; must be at least 1")
    start = time.perf_counter()
    with processes() as procs:
        folder = checkpoint_folder.choose(path, which=which)
        config, schema = checkpoint_folder.read_config(folder), checkpoint_folder.read_schema(folder)
        if config.retrieval is not None:
            raise ValueError(f"{path} is a retrieval model: it gives vectors, not scores of rows; evaluate it, or export it")
        transforms = Transforms.load(folder / "transforms", after_log=True)
        built = build_task(config, schema, procs)
        checkpoint.load_weights(folder, built.state_dict(), averaged=config.train.ema > 0)
        row_id = row_id or config.data.row_id
        sink = PredictionFile(out, [t.name for t in schema.tasks], row_id, columns=columns, enabled=procs.is_first)
        encode, join = read_stores(config, transforms)
        read = list(dict.fromkeys([*encode.columns, *([row_id] if row_id else [])]))
        per_process = -(-batch_rows // procs.world_size)
        workers = workers or max(1, len(os.sched_getaffinity(0)) // procs.world_size)
        num_rows, known = 0, _KnownIds(schema, transforms)
        with ExitStack() as stack:
            source = stack.enter_context(_opened(config, inputs, read, out, procs, progress=progress))
            stack.enter_context(evaluation_mode(built))
            writer = stack.enter_context(sink)
            hidden = not (progress and procs.is_first)
            bar = stack.enter_context(tqdm(total=source.num_rows, desc="predicting", unit="row", unit_scale=True, disable=hidden))
            binary = torch.tensor([t.kind == "binary" for t in schema.tasks], device=procs.device)
            encoder = _Encoder(encode, join, BatchBuilder(schema), procs, per_process)
            chunks = stack.enter_context(closing(_chunks(source, per_process * procs.world_size, workers=workers)))
            encoded = stack.enter_context(closing(in_order(encoder, chunks, num_threads=workers)))
            for chunk, batch, rows in encoded:
                known.add(rows)
                scores = _score(batch, built, binary, procs)[: chunk.num_rows]
                if procs.is_first:
                    writer.write(chunk.column(row_id), scores, first_row=num_rows)
                num_rows += chunk.num_rows
                bar.update(chunk.num_rows)
            known.warn(num_rows, procs)
    return PredictResult(num_rows, out, time.perf_counter() - start)


def query_of_run(path: Path, text: str, *, uri: str = "", which: str = "best") -> QueryConfig:
    """A query on a database, by default on the one that the run's test, validation or training rows came from.

    Raises:
        ValueError: no URI is given and the run's rows came from files.
        CheckpointError: no usable checkpoint.
    """
    if uri:
        return QueryConfig(uri=uri, query=text)
    data = checkpoint_folder.read_config(checkpoint_folder.choose(path, which=which)).data
    for rows in (data.test, data.valid, data.train):
        if isinstance(rows, QueryConfig):
            if MASK in rows.uri:
                raise ValueError(
                    f"--uri: required, for a run keeps no password ({rows.place}); write ${{NAME}} where the password stands: "
                    "it is taken from the environment variable NAME"
                )
            return rows.model_copy(update={"query": text})
    raise ValueError(f"--uri: required, for the rows of {path} came from files")


@contextmanager
def _opened(
    config: RunConfig,
    inputs: Sequence[str] | QueryConfig,
    columns: list[str],
    out: Path,
    procs: Processes,
    *,
    progress: bool,
) -> Iterator[Source]:
    """The rows to score, the same for every process."""
    if not isinstance(inputs, QueryConfig):
        source = open_source(config, list(inputs), columns=columns)
        check_not_input(out, [file.path for file in source.files])
        yield source
        return
    query = inputs
    beside = config.model_copy(update={"data": config.data.model_copy(update={"cache": str(out)})})
    kept = snapshot_path(out, query)
    try:
        if procs.is_first:

            def check(found: pa.Schema) -> None:
                check_query_columns(query, found, columns)

            take_snapshot(beside, query, check=check, again=True, progress=progress)
        procs.broadcast(None)  # the rows are there
        yield open_source(beside, query, columns=columns)
    except ValueError as error:
        raise ValueError(f"{error} (rows of the query on {query.place})" if str(kept) in str(error) else str(error)) from None
    finally:
        if procs.is_first:
            shutil.rmtree(kept.parent, ignore_errors=True)


@dataclass(frozen=True)
class _Chunk:
    """Rows that are scored together, with the place where each piece was read."""

    pieces: list[tuple[pa.RecordBatch, str, int]]

    @property
    def num_rows(self) -> int:
        return sum(batch.num_rows for batch, _, _ in self.pieces)

    def column(self, name: str) -> pa.ChunkedArray | None:
        """A column of all pieces; None for no name."""
        return pa.chunked_array([batch.column(name) for batch, _, _ in self.pieces]) if name else None

    def slice(self, start: int, stop: int) -> list[tuple[pa.RecordBatch, str, int]]:
        out, at = [], 0
        for batch, where, first_row in self.pieces:
            low, high = max(start - at, 0), min(stop - at, batch.num_rows)
            if low < high:
                out.append((batch.slice(low, high - low), where, first_row + low))
            at += batch.num_rows
        return out


def _chunks(source: Source, rows: int, *, workers: int) -> Generator[_Chunk, None, None]:
    """The source in pieces of exactly `rows` rows (the last one may be shorter), independent of files and row groups."""
    pieces: list[tuple[pa.RecordBatch, str, int]] = []
    have = 0
    for part in source.batches(num_threads=0 if workers == 1 else -(-workers // 2)):
        start = 0
        while start < part.batch.num_rows:
            take = min(rows - have, part.batch.num_rows - start)
            pieces.append((part.batch.slice(start, take), part.path, part.first_row + start))
            have, start = have + take, start + take
            if have == rows:
                yield _Chunk(pieces)
                pieces, have = [], 0
    if pieces:
        yield _Chunk(pieces)


@dataclass(frozen=True)
class _Encoder:
    """What this process scores of a chunk: its slice, short slices filled with a repeated row."""

    encode: LogEncoder
    join: Join
    build: BatchBuilder
    procs: Processes
    per_process: int

    def __call__(self, chunk: _Chunk) -> tuple[_Chunk, Batch, Rows]:
        share = min(self.per_process, -(-chunk.num_rows // self.procs.world_size))
        first = min(self.procs.rank * share, chunk.num_rows)
        mine = chunk.slice(first, min(first + share, chunk.num_rows)) or chunk.slice(0, 1)
        parts = []
        for raw, where, first_row in mine:
            parts.append(self.join(self.encode(raw, where=where, first_row=first_row)))
        rows = Rows.cat(parts)
        index = torch.arange(share)
        if rows.num_rows < share:
            rows = rows.take(index.clamp(max=rows.num_rows - 1))
        return chunk, self.build(rows, index), rows


class _KnownIds:
    """Which vocabularies know any value of the rows: none at all is a sign of another column, or of another type."""

    def __init__(self, schema: Schema, transforms: Transforms) -> None:
        features = enumerate(single_valued(schema))
        self._names = {i: f.name for i, f in features if isinstance(transforms.tables[f.table], Vocabulary)}
        self._known = torch.zeros(len(self._names), dtype=torch.bool)

    def add(self, rows: Rows) -> None:
        if not self._known.all():
            self._known |= (rows.ids[:, list(self._names)] != 0).any(0)

    def warn(self, num_rows: int, procs: Processes) -> None:
        if not self._names:
            return
        known = procs.gather_rows(self._known[None].to(procs.device, torch.int32)).any(0).tolist()
        for name, is_known in zip(self._names.values(), known):
            if not is_known and procs.is_first and num_rows >= FEWEST_ROWS_TO_WARN:
                logger.warning(
                    "features.%s: not one of the %s rows has a value that was seen in training; "
                    "is its column the same, and of the same type, as there?",
                    name,
                    f"{num_rows:,}",
                )


def _score(batch: Batch, built: Built, binary: torch.Tensor, procs: Processes) -> np.ndarray:
    """[rows of all processes, T] on every process."""
    logits_BT = built.plain.model(batch.to(procs.device)).float()
    scores_BT = torch.where(binary, logits_BT.sigmoid(), logits_BT)
    return procs.gather_rows(scores_BT).cpu().numpy()
