"""`trm prepare`: raw files become a cache of shards. Streams, and can be killed and started again at any moment.

Pass 1 (as often as the transforms need it) fits on the training rows; the last pass encodes every row and writes shards. The work
goes on in `<cache>.partial-<fingerprint>/`:

    lock             held while a process works here
    journal.jsonl    the steps that are done, with checksums
    pieces/          long texts that pass 1 has cut up (see pieces.py)
    cache/           becomes `<cache>` by one rename, after its manifest is on the disk
"""

import fcntl
import itertools
import os
import shutil
import sys
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from torchrec_models.pipelines.config import DataConfig, FoldSplit, QueryConfig, RunConfig, TimeFoldSplit

from .covisitation import with_covisitation
from .covisitation_state import save_states
from .fingerprint import differences, files_of, fingerprint_of, settings_of, versions
from .fit import Fitter, Lesson
from .folds import check_rows, fold_of_cache
from .journal import Journal
from .parallel import in_order
from .pieces import Pieces
from .row_writer import RowWriter, Share, Written, pick
from .shard_writer import fsync, write_manifest
from .shards import MANIFEST, Cache, FileEntry, read_manifest
from .snapshots import check_query_columns, drop_other_snapshots, first_rows, take_snapshot, telling_when_read
from .sources import Source, SourceBatch, open_source, wanted_columns
from .splits import SPLITS, Splitter, stored_names
from .store_files import LogEncoder, StoreSource, open_stores, store_features, with_stores
from .store_writer import count_unknown, write_stores
from .targets import side_columns
from .transforms import Transforms

_MOST_DIFFERENCES = 8


def prepare(config: RunConfig, *, progress: bool = True, force: bool = False, workers: int = 0) -> Cache:
    """Makes the cache at `config.data.cache`, or returns the finished one that is there.

    A finished cache of the same settings and source files is reused. An interrupted one is completed: finished shards are
    kept and give, byte for byte, what an uninterrupted run gives. Memory is bounded by `data.memory_budget_mib`, not by the data.

    With folds, the splits that come back are those of `data.split.fold`; the cache is the same for all of them.

    Rows of a query are read once and kept in `<cache>.rows/` (see snapshots.py); a finished cache is reused without asking the
    database.

    Args:
        progress: progress bars and messages on stderr.
        force: replace a cache made with other settings or of other files, or an altered one; run queries again.
        workers: threads that decode and encode; 0: one per core that this process may use. The cache does not depend on it.

    Raises:
        ValueError: for data that does not fit the config (file, column and row are named); for a cache of other settings
            (saying which); for a split that was asked for and got no row; if another process prepares the same cache.
        OSError: with the path, where the disk refuses; start again when there is room, and finished shards are kept.
    """
    if workers < 0:
        raise ValueError(f"workers must be 1 or more, or 0 for one per core; given {workers}")
    workers = workers or len(os.sched_getaffinity(0))
    folder = Path(config.data.cache)
    side_columns(config.data)
    inputs = {"settings": settings_of(config), "files": files_of(config)}
    finished = None if force else _finished(folder, inputs)
    partial = folder.with_name(f"{folder.name}.partial-{fingerprint_of(inputs)[:12]}")
    if finished is None:
        _check_replaceable(folder)
        with _locked(partial):
            finished = None if force else _finished(folder, inputs)  # a process that we waited for may have made it
            if finished is None:
                try:
                    snapshots = _snapshots(config, again=force, progress=progress)
                    with telling_when_read(snapshots):
                        described = inputs | ({"snapshots": snapshots} if snapshots else {})
                        _build(partial, config, described, workers=workers, progress=progress)
                except ValueError:  # the same files and settings would fail again: nothing here is worth keeping
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
                _publish(partial / "cache", folder)
    else:
        _say(
            progress,
            f"{folder} is up to date: reused ({', '.join(f'{n}: {s.num_rows:,}' for n, s in finished.splits.items())} rows)",
        )
    shutil.rmtree(partial, ignore_errors=True)
    drop_other_snapshots(config)
    for other in folder.parent.glob(f"{folder.name}.partial-*"):
        _say(progress, f"{other} is left over from an interrupted run with other settings; delete it if you don't need it")
    return _chosen_fold(finished or Cache.open(folder), config.data)


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr)


def check_data(config: RunConfig) -> None:
    """Look at the data without reading it all: every file opens, columns are there, and their types fit the features.

    Raises:
        ValueError: the faults of every split, each with file and column.
    """
    problems = []
    stores = open_stores(config)
    for split in SPLITS:
        if not (paths := getattr(config.data, split)):
            continue
        try:
            if isinstance(paths, QueryConfig):
                check_query_columns(paths, schema := first_rows(config, paths).schema, wanted_columns(config))
                Fitter(config, with_stores(schema, stores))
                continue
            source = open_source(config, paths)
            Fitter(config, with_stores(source.arrow_schema, stores))
            next(source.batches())
        except ValueError as error:
            problems.append(f"data.{split}: {error}")
    if problems:
        raise ValueError("\n".join(problems))


def _snapshots(config: RunConfig, *, again: bool, progress: bool) -> dict[str, dict[str, Any]]:
    """The rows of each split that comes from a database, on disk, and what they are; split -> description."""
    out = {}
    for split in SPLITS:
        if isinstance(query := getattr(config.data, split), QueryConfig):

            def check(schema: pa.Schema, query: QueryConfig = query) -> None:
                check_query_columns(query, schema, wanted_columns(config))
                Fitter(config, with_stores(schema, open_stores(config)))

            try:
                out[split] = take_snapshot(config, query, check=check, again=again, progress=progress)
            except ValueError as error:
                raise ValueError(f"data.{split}: {error}") from None
            _say(progress, f"data.{split}: {out[split]['num_rows']:,} rows of {query.place}, read at {out[split]['read_at']}")
    return out


def _sources(config: RunConfig) -> dict[str, Source]:
    return {split: open_source(config, paths) for split in SPLITS if (paths := getattr(config.data, split))}


def open_prepared(config: RunConfig) -> Cache:
    """The finished cache of a config, for those who do not want to make one (training, evaluation).

    Settings must be those of the cache; source files must be as they were, unless they are no longer there (a cache can be
    used where its sources are not).

    Raises:
        ValueError: if there is no finished cache, or one of other settings or of files that have changed since.
    """
    folder = Path(config.data.cache)
    inputs: dict[str, Any] = {"settings": settings_of(config)}
    try:
        inputs["files"] = files_of(config)
    except ValueError as error:
        warnings.warn(f"{folder} is used as it is, for its sources cannot be compared: {error}", stacklevel=2)
    cache = _finished(folder, inputs)
    if cache is None:
        raise ValueError(f"no cache at {folder}; run `trm prepare CONFIG` first")
    return _chosen_fold(cache, config.data)


def _chosen_fold(cache: Cache, data: DataConfig) -> Cache:
    return fold_of_cache(cache, data.split) if isinstance(data.split, FoldSplit | TimeFoldSplit) else cache


def _finished(folder: Path, inputs: dict[str, Any]) -> Cache | None:
    """The cache at `folder` if there is one of these inputs; None if there is none."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    old = read_manifest(folder)["inputs"]
    changes = [line for part in inputs for line in differences(old.get(part), inputs[part], "" if part == "settings" else part)]
    if changes:
        listed = "\n".join(f"  {line}" for line in changes[:_MOST_DIFFERENCES])
        more = f"\n  and {len(changes) - _MOST_DIFFERENCES} more" if len(changes) > _MOST_DIFFERENCES else ""
        raise ValueError(
            f"{folder} was prepared with other settings or from other files:\n{listed}{more}\n"
            "Run `trm prepare CONFIG --force` to replace it, or give data.cache another folder"
        )
    return Cache.open(folder)


def _check_replaceable(folder: Path) -> None:
    """Raises ValueError for a folder that holds something else than a cache: it would be lost."""
    if folder.exists() and not (folder.is_dir() and ((folder / MANIFEST).exists() or not any(folder.iterdir()))):
        raise ValueError(f"data.cache: {folder} exists and is not a cache; give another folder, or remove it yourself")


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is preparing this cache (in {partial}); wait for it, or stop it") from None
        yield


def _publish(complete: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        _check_replaceable(folder)
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    complete.rename(folder)
    fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _build(partial: Path, config: RunConfig, inputs: dict[str, Any], *, workers: int, progress: bool) -> None:
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
        fitted = _fit(config, sources["train"], stores, splitter, pieces, workers=workers, progress=progress)
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
        _write(writer, config, sources, splitter, pieces, workers=workers, progress=progress)
        finished = writer.shards
    if isinstance(config.data.split, FoldSplit | TimeFoldSplit):
        check_rows(config.data.split, writer.num_rows)
    asked = [split for split in writer.splits if _is_asked_for(config.data, split)]
    for split in asked:
        if not writer.num_rows[split] and not _is_piece(config.data, split):
            raise ValueError(_no_rows(config.data, split, writer.num_rows))
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


def _splitter(config: RunConfig, *, progress: bool) -> Splitter:
    """Ready to assign rows; folds may need a look at all of them first, which reads the columns of the split only."""
    splitter = Splitter(config.data.split)
    if splitter.plan:
        source = open_source(config, config.data.train, columns=splitter.columns)
        with _bar("folds", source.num_rows, progress=progress) as bar:
            for batch in source.batches():
                splitter.plan.count(batch)
                bar.update(batch.batch.num_rows)
        splitter.plan.deal()
    return splitter


def _is_piece(data: DataConfig, split: str) -> bool:
    """Of folds; some of these may be empty."""
    return isinstance(data.split, FoldSplit | TimeFoldSplit) and split not in SPLITS


def _is_asked_for(data: DataConfig, split: str) -> bool:
    if isinstance(data.split, FoldSplit | TimeFoldSplit):
        return split != "test" or bool(data.test)
    if split == "train" or data.split is None:
        return bool(getattr(data, split))
    if data.split.by == "time":
        return split == "valid" or data.split.test_from is not None
    return bool(getattr(data.split, split))


def _no_rows(data: DataConfig, split: str, num_rows: dict[str, int]) -> str:
    if data.split is None or (split == "train" and not sum(num_rows.values())):
        return f"split {split!r}: the files of data.{split} hold no row: {data.described(split)}"
    got = ", ".join(f"{name}: {count}" for name, count in num_rows.items())
    setting = {"time": f"{split}_from", "column": f"{split} (a list of values)"}.get(data.split.by, split)
    return f"split {split!r} got no row of data.train (rows: {got}); check data.split.{setting}, by: {data.split.by}"


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


def _bar(text: str, num_rows: int | None, *, progress: bool) -> tqdm:
    return tqdm(desc=text, total=num_rows, unit=" rows", unit_scale=True, disable=not progress, leave=progress)


def _fit(
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
            _bar(f"fit {number + 1}/{fitter.num_passes}", source.num_rows, progress=progress) as bar,
            closing(_batches(config, "train", needed, splitter, workers=workers)) as batches,
            closing(in_order(look_at, batches, num_threads=workers)) as lessons,
        ):
            for num_rows, num_fitted, lesson in lessons:
                fitter.learn(lesson)
                seen += num_fitted
                bar.update(num_rows)
        if not seen:
            raise ValueError(_no_rows(config.data, "train", {"train": 0}))
        for store in stores:
            for batch in store.batches():
                fitter.update(batch.batch, where=batch.path, first_row=batch.first_row, store=store.name)
        fitter.end_pass()
    return fitter.finish()


def _write(
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
        _say(progress, f"going on where an interrupted run stopped; rows kept: {kept}")

    def encode(share: Share) -> tuple[int, Written]:
        return share.batch.batch.num_rows, writer.encode(share)

    for split, source in sources.items():
        cut = pieces if split == "train" and pieces and pieces.columns else None
        wanted = source.only(set(source.arrow_schema.names) - cut.columns) if cut else source
        with (
            _bar(f"write {split if config.data.split is None else 'splits'}", source.num_rows, progress=progress) as bar,
            closing(_batches(config, split, wanted, splitter, cut, workers=workers)) as batches,
            closing(in_order(encode, itertools.starmap(writer.share, batches), num_threads=workers)) as encoded,
        ):
            for num_rows, written in encoded:
                writer.append(written)
                bar.update(num_rows)
        of_train = [name for name in writer.splits if name not in sources or name == "train"]
        for done in of_train if split == "train" else (split,):
            writer.close(done)
