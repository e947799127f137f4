"""`trm prepare`: raw files become a cache of shards. Streams, and can be killed and started again at any moment.

Pass 1 (as often as the transforms need it) fits on the training rows; the last pass encodes every row and writes shards. The work
goes on in `<cache>.partial-<fingerprint>/`:

    lock             held while a process works here
    journal.jsonl    the steps that are done, with checksums
    pieces/          long texts that pass 1 has cut up (see pieces.py)
    cache/           becomes `<cache>` by one rename, after its manifest is on the disk
"""

import json
import os
import shutil
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from torchrec_models.pipelines.config import DataConfig, FoldSplit, QueryConfig, RunConfig, TimeFoldSplit
from torchrec_models.pipelines.replicas import ALONE, ReplicaFailed, Replicas

from .build import build
from .cache_folder import check_replaceable, finished, locked, publish
from .fingerprint import differences, files_of, fingerprint_of, settings_of, versions
from .fit import Fitter
from .folds import fold_of_cache
from .progress import say
from .shards import Cache
from .snapshots import check_query_columns, drop_other_snapshots, first_rows, take_snapshot, telling_when_read
from .sources import open_source, wanted_columns
from .splits import SPLITS
from .store_files import open_stores, with_stores
from .targets import labels_without_contrast, side_columns


def prepare(
    config: RunConfig, *, progress: bool = True, force: bool = False, workers: int = 0, replicas: Replicas = ALONE
) -> Cache:
    """Makes the cache at `config.data.cache`, or returns the finished one that is there.

    A finished cache of the same settings and source files is reused. An interrupted one is completed from where it
    last saved, and is, byte for byte, what an uninterrupted run gives. Memory is bounded by `data.memory_budget_mib`, not by
    the data.

    With folds, the splits that come back are those of `data.split.fold`; the cache is the same for all of them.

    Rows of a query are read once and kept in `<cache>.rows/` (see snapshots.py); a finished cache is reused without asking the
    database.

    Args:
        progress: progress bars and messages on stderr.
        force: replace a cache made with other settings or of other files, or an altered one; run queries again.
        workers: threads that decode and encode; 0: one per core that this process may use. The cache does not depend on it.
        replicas: the processes that make this cache together, all of which call this. They see the same files and the folder of
            the cache under the same paths. Nor does the cache depend on their number.

    Raises:
        ValueError: for data that does not fit the config (file, column and row are named); for a cache of other settings
            (saying which); for a split that was asked for and got no row; if another process prepares the same cache.
        OSError: with the path, where the disk refuses; start again when there is room, and what was saved is kept.
        ReplicaFailed: if another process has stopped.
    """
    if workers < 0:
        raise ValueError(f"workers must be 1 or more, or 0 for one per core; given {workers}")
    workers = workers or len(os.sched_getaffinity(0))
    side_columns(config.data)
    with replicas.together():
        if replicas.world_size > 1:
            _check_alike(config, replicas)
        _prepare(config, replicas, progress=progress and replicas.is_first, force=force, workers=workers)
    cache = _chosen_fold(Cache.open(config.data.cache), config.data)
    for text in labels_without_contrast(cache.schema, cache.split("train").label_mean):
        say(progress and replicas.is_first, f"warning: {text}")
    return cache


def _prepare(config: RunConfig, replicas: Replicas, *, progress: bool, force: bool, workers: int) -> None:
    folder = Path(config.data.cache)
    inputs = {"settings": settings_of(config), "files": files_of(config)}
    partial = folder.with_name(f"{folder.name}.partial-{fingerprint_of(inputs)[:12]}")

    def found() -> bool:
        check_replaceable(folder)
        return not force and finished(folder, inputs) is not None

    if not replicas.from_first("found", found):
        with ExitStack() as lock:
            if replicas.is_first:
                lock.enter_context(locked(partial))
            if not replicas.from_first("found meanwhile", found):  # a process that we waited for may have made it
                if not replicas.is_first:
                    lock.enter_context(locked(partial, rank=replicas.rank))
                try:
                    _build(partial, config, inputs, replicas, force=force, workers=workers, progress=progress)
                except (ValueError, ReplicaFailed) as error:
                    replicas.stop(error)
                    if replicas.is_first and getattr(error, "wrong_input", True):
                        shutil.rmtree(partial, ignore_errors=True)  # nothing is worth keeping: it would fail again
                    raise
    elif replicas.is_first:
        num_rows = {name: split.num_rows for name, split in Cache.open(folder).splits.items()}
        say(progress, f"{folder} is up to date: reused ({', '.join(f'{n}: {rows:,}' for n, rows in num_rows.items())} rows)")
    if replicas.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        drop_other_snapshots(config)
        for other in folder.parent.glob(f"{folder.name}.partial-*"):
            say(progress, f"{other} is left over from an interrupted run with other settings; delete it if you don't need it")


def _build(
    partial: Path, config: RunConfig, inputs: dict[str, Any], replicas: Replicas, *, force: bool, workers: int, progress: bool
) -> None:
    snapshots = replicas.from_first("snapshots", lambda: _snapshots(config, again=force, progress=progress))
    with telling_when_read(snapshots):
        described = inputs | ({"snapshots": snapshots} if snapshots else {})
        build(partial, config, described, replicas=replicas, workers=workers, progress=progress)
    if replicas.is_first:
        publish(partial / "cache", Path(config.data.cache))
    replicas.barrier("published")


def _check_alike(config: RunConfig, replicas: Replicas) -> None:
    """Raises ValueError where processes see other settings, files or packages than the first one does."""
    seen = {"settings": settings_of(config), "files": files_of(config), "packages": versions()}
    first = replicas.from_first("inputs", lambda: seen)
    changes = [line for part in seen for line in differences(first[part], json.loads(json.dumps(seen[part])), part)]
    if changes:
        raise ValueError(
            f"process {replicas.rank + 1} of {replicas.world_size} does not see what the first one sees (was: the first one):\n"
            + "\n".join(f"  {line}" for line in changes[:8])
        )


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
            say(progress, f"data.{split}: {out[split]['num_rows']:,} rows of {query.place}, read at {out[split]['read_at']}")
    return out


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
    cache = finished(folder, inputs)
    if cache is None:
        raise ValueError(f"no cache at {folder}; run `trm prepare CONFIG` first")
    return _chosen_fold(cache, config.data)


def _chosen_fold(cache: Cache, data: DataConfig) -> Cache:
    return fold_of_cache(cache, data.split) if isinstance(data.split, FoldSplit | TimeFoldSplit) else cache
