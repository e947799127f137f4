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
from .fit_progress import FitProgress, Reached
from .parallel import in_order
from .pieces import Pieces
from .progress import progress_bar, say
from .row_writer import Begin, RowWriter, Written, pick
from .row_writer import Share as RowShare
from .shares import Share
from .sources import Source, SourceBatch
from .splits import Splitter, stored_names
from .store_files import StoreSource, with_stores
from .transforms import Transforms


def _batches(
    config: RunConfig,
    split: str,
    source: Source,
    parts: range,
    splitter: Splitter,
    *,
    rows_before: int | None = None,
    replicas: Replicas,
    workers: int,
) -> Generator[tuple[SourceBatch, np.ndarray], None, None]:
    """Batches of the files of a split, and [N] what each row is stored in (index in `stored_names`)."""
    alone = replicas.world_size == 1 and parts == range(len(source.parts))
    for batch in source.batches(None if alone else parts, rows_before=rows_before, num_threads=_num_decoders(workers)):
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
    saved: FitProgress,
    *,
    replicas: Replicas,
    workers: int,
    progress: bool,
) -> Transforms | None:
    """The transforms, on the first process; it alone learns everything.

    Args:
        exchange: folder that all processes see.
        saved: where an interrupted run stood, and where this one stands.

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

    start = Reached(0, share.own.start, source.num_rows_of(range(share.own.start)) or 0, 0)
    at = _go_on(fitter, start, saved, replicas, progress=progress)
    pieces.first_part = at.part if not at.number else share.own.stop
    for number in range(at.number, fitter.num_passes):
        own, seen, part = range(at.part, share.own.stop), at.num_fitted, -1
        columns = [*fitter.columns(), *splitter.columns]
        needed = source.only(columns) if columns else source
        with (
            progress_bar(f"fit {number + 1}/{fitter.num_passes}", source.num_rows_of(own), progress=progress) as bar,
            closing(
                _batches(config, "train", needed, own, splitter, rows_before=at.row, replicas=replicas, workers=workers)
            ) as batches,
            closing(in_order(look_at, batches, num_threads=workers)) as lessons,
        ):
            for batch, num_fitted, lesson in lessons:
                if batch.part != part:
                    if part >= 0 and saved.is_due():
                        saved.save(fitter, Reached(number, batch.part, batch.global_row, seen))
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
            at = replace(start, number=number + 1)
            if replicas.is_first:
                saved.save(fitter, at)
            steps = replicas.from_first("steps", fitter.fitted_steps)
            if not replicas.is_first:
                fitter.take_steps(steps)
    return fitter.finish() if replicas.is_first else None


def _go_on(fitter: Fitter, start: Reached, saved: FitProgress, replicas: Replicas, *, progress: bool) -> Reached:
    """Where an interrupted run stood, and what it had learned; `start` if there was none. All processes are in the same pass."""
    found = saved.read()
    number, steps = replicas.from_first("reached", lambda: [found[0].number, found[1]] if found else [0, {}])
    if number:
        fitter.take_steps(steps, num_passes=number)
    if found is None or found[0].number != number:
        return replace(start, number=number)
    saved.restore(fitter)
    say(progress, f"going on where an interrupted run stopped: fit {number + 1}/{fitter.num_passes}, row {found[0].row:,}")
    return found[0]


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

    def encode(cut: Pieces | None, share: RowShare) -> tuple[Begin, int, Written]:
        if cut:
            share = replace(share, batch=cut.restored(share.batch))
        return share.begin, share.batch.batch.num_rows, writer.encode(share)

    for split, source in sources.items():
        of_train = [name for name in writer.splits if name not in sources or name == "train"]
        stored = of_train if split == "train" else [split]
        parts, rows_before = shares[split].to_read(writer.needed(stored))
        row = None
        if shares[split].counts is None and (begin := writer.begin(split, stored)):
            parts, row = range(begin.part, parts.stop), begin.row
            rows_before = {code: begin.rows_before[code] for code in rows_before}
        writer.start_behind(rows_before)
        cut = pieces if split == "train" and pieces and pieces.columns else None

        def stretch(
            parts: range, wanted: Source, split: str = split, row: int | None = None
        ) -> Generator[tuple[SourceBatch, np.ndarray], None, None]:
            return _batches(config, split, wanted, parts, splitter, rows_before=row, replicas=replicas, workers=workers)

        uncut = source.only(set(source.arrow_schema.names) - cut.columns) if cut else source
        stretches = [stretch(parts, source, row=row)]
        if cut:  # of its own parts only, behind those that an interrupted run had learned from
            first, last = (min(max(border, parts.start), parts.stop) for border in (cut.first_part, shares[split].own.stop))
            borders = (range(parts.start, first), source), (range(first, last), uncut), (range(last, parts.stop), source)
            stretches = [stretch(of_parts, wanted) for of_parts, wanted in borders if of_parts]
        with (
            progress_bar(
                f"write {split if config.data.split is None else 'splits'}", source.num_rows_of(parts), progress=progress
            ) as bar,
            closing(_chained(stretches)) as batches,
            closing(in_order(partial(encode, cut), itertools.starmap(writer.share, batches), num_threads=workers)) as encoded,
        ):
            part = -1
            for begin, num_rows, written in encoded:
                if begin.part != part:
                    if part >= 0:
                        writer.save(split, begin)
                    part = begin.part
                writer.append(written)
                bar.update(num_rows)
        for done in stored:
            writer.close(done)


def _chained(stretches: list[Generator[tuple[SourceBatch, np.ndarray], None, None]]) -> Generator:
    for stretch in stretches:
        with closing(stretch):
            yield from stretch
