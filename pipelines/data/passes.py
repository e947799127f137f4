"""The passes over the rows: those that fit transforms, and the one that writes."""

import itertools
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from torchrec_models.pipelines.config import RunConfig
from torchrec_models.pipelines.replicas import Replicas

from .asked_splits import no_rows
from .fit import Fitter, Lesson
from .fit_files import read_state, write_state
from .parallel import in_order
from .pieces import Pieces
from .progress import progress_bar, say
from .row_writer import RowWriter, Written, pick
from .row_writer import Share as RowShare
from .shares import Share
from .sources import Source, SourceBatch
from .splits import Splitter, stored_names
from .store_files import StoreSource, with_stores
from .transforms import Transforms


def _batches(
    config: RunConfig, split: str, source: Source, parts: range, splitter: Splitter, *, replicas: Replicas, workers: int
) -> Generator[tuple[SourceBatch, np.ndarray], None, None]:
    """Batches of the files of a split, and [N] what each row is stored in (index in `stored_names`)."""
    for batch in source.batches(None if replicas.world_size == 1 else parts, num_threads=_num_decoders(workers)):
        replicas.check()
        if split == "train":
            yield batch, splitter.assign(batch)
        else:
            yield batch, np.full(batch.batch.num_rows, stored_names(config.data.split).index(split), np.int8)


def _num_decoders(workers: int) -> int:
    """Decoding a batch takes longer than encoding it; who is ahead waits for the others, whose threads have its core then."""
    return 0 if workers == 1 else workers


def fit_rows(
    config: RunConfig,
    source: Source,
    share: Share,
    stores: list[StoreSource],
    splitter: Splitter,
    pieces: Pieces,
    exchange: Path,
    *,
    replicas: Replicas,
    workers: int,
    progress: bool,
) -> Transforms | None:
    """The transforms, on the first process; it alone learns everything.

    Args:
        exchange: folder that all processes see.

    Raises:
        ValueError: for rows that cannot be learned from (file, column, row), and if there are none.
    """
    fitter = Fitter(config, with_stores(source.arrow_schema, stores))

    def look_at(item: tuple[SourceBatch, np.ndarray]) -> tuple[SourceBatch, int, Lesson]:
        batch, codes = item
        index = np.flatnonzero(np.isin(codes, splitter.fitted))
        picked, rows = pick(batch, index)

        def keep(column: str, raw: pa.Array, values: pa.Array, offsets: np.ndarray) -> None:
            if column in pieces.columns:
                pieces.keep(column, batch.global_row, raw, values, offsets)

        lesson = fitter.look_at(picked, where=str(batch.path), first_row=batch.first_row, rows=rows, on_cut=keep)
        return batch, len(index), lesson

    for number in range(fitter.num_passes):
        seen, part = 0, -1
        columns = [*fitter.columns(), *splitter.columns]
        needed = source.only(columns) if columns else source
        with (
            progress_bar(f"fit {number + 1}/{fitter.num_passes}", source.num_rows_of(share.own), progress=progress) as bar,
            closing(_batches(config, "train", needed, share.own, splitter, replicas=replicas, workers=workers)) as batches,
            closing(in_order(look_at, batches, num_threads=workers)) as lessons,
        ):
            for batch, num_fitted, lesson in lessons:
                if batch.part != part:
                    part = batch.part
                    fitter.start_part(part)
                fitter.learn(lesson)
                seen += num_fitted
                bar.update(batch.batch.num_rows)
        if not sum(replicas.gather("rows learned from", seen)):
            raise ValueError(no_rows(config.data, "train", {"train": 0}))
        _join(fitter, exchange / str(number), replicas)
        if replicas.is_first:
            _learn_stores(fitter, stores, behind=len(source.parts))
            fitter.end_pass()
        if number + 1 < fitter.num_passes:
            steps = replicas.from_first("steps", fitter.fitted_steps)
            if not replicas.is_first:
                fitter.take_steps(steps)
    return fitter.finish() if replicas.is_first else None


def _join(fitter: Fitter, folder: Path, replicas: Replicas) -> None:
    """The first process learns what the others have learned."""
    if not replicas.is_first:
        write_state(folder / str(replicas.rank), fitter.state())
    replicas.barrier("learned")
    if replicas.is_first:
        for rank in range(1, replicas.world_size):
            for key, table in read_state(folder / str(rank)):
                fitter.merge(key, table)


def _learn_stores(fitter: Fitter, stores: list[StoreSource], *, behind: int) -> None:
    for number, store in enumerate(stores, behind):
        fitter.start_part(number)
        for batch in store.batches():
            fitter.update(batch.batch, where=batch.path, first_row=batch.first_row, store=store.name)


def write_rows(
    writer: RowWriter,
    config: RunConfig,
    sources: dict[str, Source],
    shares: dict[str, Share],
    splitter: Splitter,
    pieces: Pieces | None,
    *,
    replicas: Replicas,
    workers: int,
    progress: bool,
) -> None:
    """Every shard of this process that is not finished.

    Raises:
        ValueError: for rows that cannot be stored (file, column, row).
        OSError: with the path, where the disk refuses.
    """
    if any(writer.num_rows.values()):
        kept = ", ".join(f"{split}: {num_rows:,}" for split, num_rows in writer.num_rows.items())
        say(progress, f"going on where an interrupted run stopped; rows kept: {kept}")

    def encode(cut: Pieces | None, share: RowShare) -> tuple[int, Written]:
        if cut:
            share = replace(share, batch=cut.restored(share.batch))
        return share.batch.batch.num_rows, writer.encode(share)

    for split, source in sources.items():
        of_train = [name for name in writer.splits if name not in sources or name == "train"]
        stored = of_train if split == "train" else [split]
        parts, rows_before = shares[split].to_read(writer.needed(stored))
        writer.start_behind(rows_before)
        cut = pieces if split == "train" and pieces and pieces.columns else None

        def stretch(parts: range, wanted: Source, split: str = split) -> Generator[tuple[SourceBatch, np.ndarray], None, None]:
            return _batches(config, split, wanted, parts, splitter, replicas=replicas, workers=workers)

        uncut = source.only(set(source.arrow_schema.names) - cut.columns) if cut else source
        stretches = [stretch(parts, uncut)]
        if cut and parts.stop > shares[split].own.stop:  # of the parts behind its own, this process has cut nothing
            border = shares[split].own.stop
            stretches = [stretch(range(parts.start, border), uncut), stretch(range(border, parts.stop), source)]
        with (
            progress_bar(
                f"write {split if config.data.split is None else 'splits'}", source.num_rows_of(parts), progress=progress
            ) as bar,
            closing(_chained(stretches)) as batches,
            closing(in_order(partial(encode, cut), itertools.starmap(writer.share, batches), num_threads=workers)) as encoded,
        ):
            for num_rows, written in encoded:
                writer.append(written)
                bar.update(num_rows)
        for done in stored:
            writer.close(done)


def _chained(stretches: list[Generator[tuple[SourceBatch, np.ndarray], None, None]]) -> Generator:
    for stretch in stretches:
        with closing(stretch):
            yield from stretch
