"""A table of any size through a trained model: rows stream in, predictions stream out in the same order."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from . import checkpoint
from .config import QueryConfig, RunConfig
from .config.masking import MASK
from .data.covisitation_state import CovisitationState, load_states, with_states
from .data.rows import BatchBuilder, Rows
from .data.snapshots import check_query_columns, snapshot_path, take_snapshot
from .data.sources import Source, open_source
from .data.store_files import LogEncoder, read_stores
from .data.stores import Join
from .data.transforms import Transforms
from .distributed import Built, Processes, build_task, processes
from .prediction_file import PredictionFile, check_not_input, check_output
from .scoring import evaluation_mode


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
    which: str = "best",
    batch_rows: int = 16_384,
    progress: bool = True,
) -> PredictResult:
    """Score raw rows with a run's best (or last) checkpoint, on any number of processes.

    Args:
        path: a run or checkpoint folder.
        inputs: files, globs or folders with the raw feature columns, or a query that gives them; labels are not needed. The rows of
            a query are read once, to a file beside the output that is removed in the end. Stores are read as their files are now.
        out: .parquet or .csv. Columns: the config's row id (or `row`, the position), then one per task: the probability
            (binary) or the value (regression). Written under another name and renamed when complete.
        batch_rows: rows scored at a time, over all processes.

    Raises:
        ValueError: wrong suffix, an output that is also an input, unreadable input, values that the transforms refuse; names
            file, column and row.
        CheckpointError: no usable checkpoint.
    """
    check_output(out)
    if batch_rows < 1:
        raise ValueError(f"batch_rows: given {batch_rows}; must be at least 1")
    start = time.perf_counter()
    with processes() as procs:
        folder = checkpoint.choose(path, which=which)
        config, schema = checkpoint.read_config(folder), checkpoint.read_schema(folder)
        if config.retrieval is not None:
            raise ValueError(f"{path} is a retrieval model: it gives vectors, not scores of rows; evaluate it, or export it")
        transforms = Transforms.load(folder / "transforms")
        built = build_task(config, schema, procs)
        checkpoint.load_weights(folder, built.state_dict(), averaged=config.train.ema > 0)
        row_id = [config.data.row_id] if config.data.row_id else []
        computed = load_states(folder / "transforms")
        encode, join = read_stores(config, transforms)
        given = [column for column in encode.columns if column not in computed]
        columns = list(dict.fromkeys([*given, *(column for state in computed.values() for column in state.columns), *row_id]))
        per_process = -(-batch_rows // procs.world_size)
        num_rows = 0
        with ExitStack() as stack:
            source = stack.enter_context(_opened(config, inputs, columns, out, procs, progress=progress))
            stack.enter_context(evaluation_mode(built))
            sink = PredictionFile(out, [t.name for t in schema.tasks], config.data.row_id, enabled=procs.is_first)
            writer = stack.enter_context(sink)
            hidden = not (progress and procs.is_first)
            bar = stack.enter_context(tqdm(total=source.num_rows, desc="predicting", unit="row", unit_scale=True, disable=hidden))
            binary = torch.tensor([t.kind == "binary" for t in schema.tasks], device=procs.device)
            scorer = _Scorer(built, encode, join, computed, BatchBuilder(schema), binary, procs)
            for chunk in _chunks(source, per_process * procs.world_size):
                scores = _score(chunk, scorer, per_process)
                if procs.is_first:
                    writer.write(chunk.column(config.data.row_id), scores, first_row=num_rows)
                num_rows += chunk.num_rows
                bar.update(chunk.num_rows)
    return PredictResult(num_rows, out, time.perf_counter() - start)


def query_of_run(path: Path, text: str, *, uri: str = "", which: str = "best") -> QueryConfig:
    """A query on a database, by default on the one that the run's test, validation or training rows came from.

    Raises:
        ValueError: no URI is given and the run's rows came from files.
        CheckpointError: no usable checkpoint.
    """
    if uri:
        return QueryConfig(uri=uri, query=text)
    data = checkpoint.read_config(checkpoint.choose(path, which=which)).data
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


def _chunks(source: Source, rows: int) -> Iterator[_Chunk]:
    """The source in pieces of exactly `rows` rows (the last one may be shorter), independent of files and row groups."""
    pieces: list[tuple[pa.RecordBatch, str, int]] = []
    have = 0
    for part in source.batches():
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


def _score(chunk: _Chunk, scorer: "_Scorer", per_process: int) -> np.ndarray:
    """[chunk rows, T] on every process: each encodes and scores its slice, short slices filled with a repeated row."""
    procs = scorer.procs
    share = min(per_process, -(-chunk.num_rows // procs.world_size))
    first = min(procs.rank * share, chunk.num_rows)
    mine = chunk.slice(first, min(first + share, chunk.num_rows)) or chunk.slice(0, 1)
    parts = []
    for raw, where, first_row in mine:
        batch = with_states(scorer.computed, raw, where=where, first_row=first_row)
        parts.append(scorer.join(scorer.encode(batch, where=where, first_row=first_row)))
    rows = Rows.cat(parts)
    index = torch.arange(share).clamp(max=rows.num_rows - 1)
    logits_BT = scorer.built.plain.model(scorer.build(rows.take(index), index).to(procs.device)).float()
    scores_BT = torch.where(scorer.binary, logits_BT.sigmoid(), logits_BT)
    return procs.gather_rows(scores_BT).cpu().numpy()[: chunk.num_rows]


@dataclass(frozen=True)
class _Scorer:
    built: Built
    encode: LogEncoder
    join: Join
    computed: dict[str, CovisitationState]
    build: BatchBuilder
    binary: torch.Tensor
    procs: Processes
