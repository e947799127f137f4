"""What `prepare` does between the lock and the rename: fit, write, and the manifest at last."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torchrec_models.pipelines.config import FoldSplit, RunConfig, TimeFoldSplit

from .asked_splits import is_asked_for, is_piece, no_rows
from .checksums import FileEntry
from .covisitation import with_covisitation
from .covisitation_state import save_states
from .durable import fsync
from .fingerprint import fingerprint_of, versions
from .folds import check_rows
from .journal import Journal
from .manifest import write_manifest
from .passes import fit_rows, write_rows
from .pieces import Pieces
from .progress import progress_bar
from .row_writer import RowWriter
from .sources import Source, open_source
from .splits import SPLITS, Splitter
from .store_files import LogEncoder, open_stores, store_features
from .store_writer import count_unknown, write_stores
from .transforms import Transforms


def build(partial: Path, config: RunConfig, inputs: dict[str, Any], *, workers: int, progress: bool) -> None:
    """Makes `partial/cache` complete, from whatever an earlier run left there."""
    sources, covisitations = with_covisitation(config, _sources(config), partial / "covisitation")
    stores = open_stores(config)
    splitter = _splitter(config, progress=progress)
    fingerprint = fingerprint_of(inputs)
    journal = Journal(partial / "journal.jsonl", {"fingerprint": fingerprint, "versions": versions()})
    work = partial / "cache"
    folder = work / "transforms"
    shutil.rmtree(partial / "pieces", ignore_errors=True)
    pieces: Pieces | None = None
    if not journal.fitted(folder):
        shutil.rmtree(work, ignore_errors=True)
        pieces = Pieces.of(config, sources["train"], partial / "pieces")
        fitted = fit_rows(config, sources["train"], stores, splitter, pieces, workers=workers, progress=progress)
        folder.mkdir(parents=True)
        fitted.save(folder)
        save_states(covisitations, folder)
        entries = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            fsync(path)
            entries[str(path.relative_to(folder))] = vars(FileEntry.of(path))
        journal.add({"fitted": entries})
    transforms = Transforms.load(folder)
    written, keys = write_stores(work / "stores", config, transforms, stores)
    encode = LogEncoder(transforms, keys, store_features(config))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="finish")) if workers > 1 else None
        writer = RowWriter(work, journal, config, encode, sources["train"].arrow_schema, pool=pool)
        write_rows(writer, config, sources, splitter, pieces, workers=workers, progress=progress)
        finished = writer.shards
    if isinstance(config.data.split, FoldSplit | TimeFoldSplit):
        check_rows(config.data.split, writer.num_rows)
    asked = [split for split in writer.splits if is_asked_for(config.data, split)]
    for split in asked:
        if not writer.num_rows[split] and not is_piece(config.data, split):
            raise ValueError(no_rows(config.data, split, writer.num_rows))
    shards = {split: finished[split] for split in asked}
    write_manifest(
        work,
        schema=transforms.schema,
        shards=shards,
        fingerprint=fingerprint,
        inputs=inputs,
        versions=versions(),
        stores=count_unknown(written, transforms, shards),
    )


def _sources(config: RunConfig) -> dict[str, Source]:
    return {split: open_source(config, paths) for split in SPLITS if (paths := getattr(config.data, split))}


def _splitter(config: RunConfig, *, progress: bool) -> Splitter:
    """Ready to assign rows; folds may need a look at all of them first, which reads the columns of the split only."""
    splitter = Splitter(config.data.split)
    if splitter.plan:
        source = open_source(config, config.data.train, columns=splitter.columns)
        with progress_bar("folds", source.num_rows, progress=progress) as bar:
            for batch in source.batches():
                splitter.plan.count(batch)
                bar.update(batch.batch.num_rows)
        splitter.plan.deal()
    return splitter
