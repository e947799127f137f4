"""What `prepare` does between the lock and the rename: fit, write, and the manifest at last."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torchrec_models.pipelines.config import FoldSplit, RunConfig, TimeFoldSplit
from torchrec_models.pipelines.replicas import Replicas

from .asked_splits import is_asked_for, is_piece, no_rows
from .checksums import FileEntry
from .covisitation import opened_covisitation, with_covisitation
from .covisitation_state import CovisitationState, save_states
from .durable import fsync
from .fingerprint import fingerprint_of, versions
from .fit_progress import FitProgress
from .folds import check_rows
from .journal import Journal
from .manifest import write_manifest
from .passes import fit_rows, write_rows
from .pieces import Pieces
from .progress import progress_bar
from .row_writer import RowWriter
from .shards import Shard, StoreData
from .shares import Share, dealt, share_of, with_counts
from .sources import Source, open_source
from .splits import SPLITS, Splitter, stored_names
from .store_files import Keys, LogEncoder, open_stores, store_features
from .store_writer import count_unknown, read_keys, write_stores
from .transforms import Transforms


def build(partial: Path, config: RunConfig, inputs: dict[str, Any], *, replicas: Replicas, workers: int, progress: bool) -> None:
    """Makes `partial/cache` complete, from whatever an earlier run left there.

    Every process learns from its share of the rows and writes its share of the shards. The first one does what cannot be divided:
    co-visitation, the transforms made of all that was learned, feature stores, the manifest.
    """
    fingerprint, work, fitted = fingerprint_of(inputs), partial / "cache", partial / "cache" / "transforms"
    journal = _journal(partial, {"fingerprint": fingerprint, "versions": versions()}, replicas)
    sources, covisitations = _sources(config, partial / "covisitation", replicas)
    stores = open_stores(config)
    splitter = _splitter(config, sources["train"], replicas, progress=progress)
    shares = {split: share_of(source, split, config.data, splitter, replicas) for split, source in sources.items()}
    pieces: Pieces | None = None
    if not replicas.from_first("fitted", lambda: journal.fitted(fitted)):
        pieces = Pieces.of(config, sources["train"], partial / "pieces" / str(replicas.rank))
        own = shares["train"].own
        share = own.start, own.stop, replicas.world_size, config.data.memory_budget_mib
        transforms = fit_rows(
            config,
            sources["train"],
            shares["train"],
            stores,
            splitter,
            pieces,
            partial / "learned",
            FitProgress(partial / "progress" / str(replicas.rank), journal, share=share, is_first=replicas.is_first),
            replicas=replicas,
            workers=workers,
            progress=progress,
        )
        if transforms:
            _save(transforms, covisitations, fitted, journal)
    transforms, written, keys = _stores(config, work, replicas)
    encode = LogEncoder(transforms, keys, store_features(config))
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2 * workers, thread_name_prefix="finish")) if workers > 1 else None
        numbers = _shards(config, shares)
        writer = RowWriter(work, journal, config, encode, sources["train"].arrow_schema, shards=numbers, pool=pool)
        write_rows(writer, config, sources, shares, splitter, pieces, replicas=replicas, workers=workers, progress=progress)
        made_here = {split: [shard.to_json() for shard in of_split] for split, of_split in writer.shards.items()}
    made = replicas.gather("shards", made_here)
    if replicas.is_first:
        shards = _asked_shards(config, work, made)
        write_manifest(
            work,
            schema=transforms.schema,
            shards=shards,
            fingerprint=fingerprint,
            inputs=inputs,
            versions=versions(),
            stores=count_unknown(written, transforms, shards),
        )


def _journal(partial: Path, identity: dict[str, Any], replicas: Replicas) -> Journal:
    """This process's own, which knows of the shards in the others', whoever wrote them."""
    own = partial / ("journal.jsonl" if replicas.is_first else f"journal-{replicas.rank}.jsonl")
    journal = Journal(own, identity)
    if replicas.is_first:
        for passing in ("pieces", "learned"):
            shutil.rmtree(partial / passing, ignore_errors=True)
        if not journal.fitted(partial / "cache" / "transforms"):
            shutil.rmtree(partial / "cache", ignore_errors=True)
    replicas.barrier("journals")
    journal.read_too(sorted(path for path in partial.glob("journal*.jsonl") if path != own))
    return journal


def _sources(config: RunConfig, folder: Path, replicas: Replicas) -> tuple[dict[str, Source], dict[str, CovisitationState]]:
    """The files of each split, with the columns that are computed of all rows, and what these leave behind."""
    sources = {split: open_source(config, paths) for split in SPLITS if (paths := getattr(config.data, split))}
    if replicas.world_size > 1:
        sources = {split: with_counts(source, replicas) for split, source in sources.items()}
    states: dict[str, CovisitationState] = {}
    if replicas.is_first:
        sources, states = with_covisitation(config, sources, folder)
    replicas.barrier("co-visitation")
    return (sources if replicas.is_first else opened_covisitation(config, sources, folder)), states


def _splitter(config: RunConfig, source: Source, replicas: Replicas, *, progress: bool) -> Splitter:
    """Ready to assign rows; folds may need a look at all of them first, which reads the columns of the split only."""
    splitter = Splitter(config.data.split)
    if splitter.plan:
        own = dealt(source.parts, replicas.world_size)[replicas.rank]
        with progress_bar("folds", source.num_rows_of(own), progress=progress) as bar:
            for batch in source.only(splitter.columns).batches(own):
                replicas.check()
                splitter.plan.count(batch)
                bar.update(batch.batch.num_rows)
        for rank, counts in enumerate(replicas.gather("folds", splitter.plan.counts())):
            if rank != replicas.rank:
                splitter.plan.add_counts(counts)
        splitter.plan.deal()
    return splitter


def _save(transforms: Transforms, covisitations: dict[str, CovisitationState], folder: Path, journal: Journal) -> None:
    folder.mkdir(parents=True)
    transforms.save(folder)
    save_states(covisitations, folder)
    entries = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        fsync(path)
        entries[str(path.relative_to(folder))] = vars(FileEntry.of(path))
    journal.add({"fitted": entries})


def _stores(config: RunConfig, work: Path, replicas: Replicas) -> tuple[Transforms, list[StoreData], list[Keys]]:
    """The fitted transforms, the feature stores as they were written (on the first process), and their keys."""
    if replicas.is_first:
        transforms = Transforms.load(work / "transforms")
        written, keys = write_stores(work / "stores", config, transforms, open_stores(config))
        replicas.barrier("ready to write")
        return transforms, written, keys
    replicas.barrier("ready to write")
    return Transforms.load(work / "transforms"), [], read_keys(work / "stores", config)


def _shards(config: RunConfig, shares: dict[str, Share]) -> dict[str, range]:
    """Stored split -> numbers of the shards that this process writes."""
    names = stored_names(config.data.split)
    of = {name: shares[name if name in shares else "train"] for name in names}
    return {name: of[name].shards(code, rows_per_shard=config.data.rows_per_shard) for code, name in enumerate(names)}


def _asked_shards(config: RunConfig, work: Path, made: list[dict[str, list[dict[str, Any]]]]) -> dict[str, list[Shard]]:
    """The shards of all processes, by split.

    Raises:
        ValueError: for a split that was asked for and got no row.
    """
    shards = {}
    for split in made[0]:
        of_split = [raw for by_one in made for raw in by_one[split]]
        shards[split] = [Shard.from_json(work / split / f"{i:05d}", raw) for i, raw in enumerate(of_split)]
    num_rows = {split: sum(shard.num_rows for shard in of_split) for split, of_split in shards.items()}
    if isinstance(config.data.split, FoldSplit | TimeFoldSplit):
        check_rows(config.data.split, num_rows)
    asked = [split for split in shards if is_asked_for(config.data, split)]
    for split in asked:
        if not num_rows[split] and not is_piece(config.data, split):
            raise ValueError(no_rows(config.data, split, num_rows))
    return {split: shards[split] for split in asked}
