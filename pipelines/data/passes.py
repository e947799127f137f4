"""The passes over the rows: those that fit transforms, and the one that writes."""

import itertools
from collections.abc import Generator
from contextlib import closing

import numpy as np
import pyarrow as pa

from torchrec_models.pipelines.config import RunConfig

from .asked_splits import no_rows
from .fit import Fitter, Lesson
from .parallel import in_order
from .pieces import Pieces
from .progress import progress_bar, say
from .row_writer import RowWriter, Share, Written, pick
from .sources import Source, SourceBatch
from .splits import Splitter, stored_names
from .store_files import StoreSource, with_stores
from .transforms import Transforms


def _batches(
    config: RunConfig, split: str, source: Source, splitter: Splitter, pieces: Pieces | None = None, *, workers: int
) -> Generator[tuple[SourceBatch, np.ndarray], None, None]:
    """Batches of the files of a split, and [N] what each row is stored in (index in `stored_names`)."""
    for batch in source.batches(num_threads=_num_decoders(workers)):
        if pieces:
            batch = pieces.restored(batch)
        if split == "train":
            yield batch, splitter.assign(batch)
        else:
            yield batch, np.full(batch.batch.num_rows, stored_names(config.data.split).index(split), np.int8)


def _num_decoders(workers: int) -> int:
    """Decoding a batch takes about as long as encoding it."""
    return 0 if workers == 1 else -(-workers // 2)


def fit_rows(
    config: RunConfig,
    source: Source,
    stores: list[StoreSource],
    splitter: Splitter,
    pieces: Pieces,
    *,
    workers: int,
    progress: bool,
) -> Transforms:
    fitter = Fitter(config, with_stores(source.arrow_schema, stores))

    def look_at(item: tuple[SourceBatch, np.ndarray]) -> tuple[int, int, Lesson]:
        batch, codes = item
        index = np.flatnonzero(np.isin(codes, splitter.fitted))
        picked, rows = pick(batch, index)

        def keep(column: str, values: pa.Array, offsets: np.ndarray) -> None:
            if column in pieces.columns:
                pieces.keep(column, batch.global_row, values, offsets)

        lesson = fitter.look_at(picked, where=str(batch.path), first_row=batch.first_row, rows=rows, on_cut=keep)
        return len(codes), len(index), lesson

    for number in range(fitter.num_passes):
        seen = 0
        columns = [*fitter.columns(), *splitter.columns]
        needed = source.only(columns) if columns else source
        with (
            progress_bar(f"fit {number + 1}/{fitter.num_passes}", source.num_rows, progress=progress) as bar,
            closing(_batches(config, "train", needed, splitter, workers=workers)) as batches,
            closing(in_order(look_at, batches, num_threads=workers)) as lessons,
        ):
            for num_rows, num_fitted, lesson in lessons:
                fitter.learn(lesson)
                seen += num_fitted
                bar.update(num_rows)
        if not seen:
            raise ValueError(no_rows(config.data, "train", {"train": 0}))
        for store in stores:
            for batch in store.batches():
                fitter.update(batch.batch, where=batch.path, first_row=batch.first_row, store=store.name)
        fitter.end_pass()
    return fitter.finish()


def write_rows(
    writer: RowWriter,
    config: RunConfig,
    sources: dict[str, Source],
    splitter: Splitter,
    pieces: Pieces | None,
    *,
    workers: int,
    progress: bool,
) -> None:
    if any(writer.num_rows.values()):
        kept = ", ".join(f"{split}: {num_rows:,}" for split, num_rows in writer.num_rows.items())
        say(progress, f"going on where an interrupted run stopped; rows kept: {kept}")

    def encode(share: Share) -> tuple[int, Written]:
        return share.batch.batch.num_rows, writer.encode(share)

    for split, source in sources.items():
        cut = pieces if split == "train" and pieces and pieces.columns else None
        wanted = source.only(set(source.arrow_schema.names) - cut.columns) if cut else source
        with (
            progress_bar(f"write {split if config.data.split is None else 'splits'}", source.num_rows, progress=progress) as bar,
            closing(_batches(config, split, wanted, splitter, cut, workers=workers)) as batches,
            closing(in_order(encode, itertools.starmap(writer.share, batches), num_threads=workers)) as encoded,
        ):
            for num_rows, written in encoded:
                writer.append(written)
                bar.update(num_rows)
        of_train = [name for name in writer.splits if name not in sources or name == "train"]
        for done in of_train if split == "train" else (split,):
            writer.close(done)
