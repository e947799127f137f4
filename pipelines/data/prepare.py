"""`trm prepare`: raw files become a cache of shards. Streams, and can be killed and started again at any moment.

Pass 1 (as often as the transforms need it) fits on the training rows; the last pass encodes every row and writes shards. The work
goes on in `<cache>.partial-<fingerprint>/`:

    lock             held while a process works here
    journal.jsonl    the steps that are done, with checksums
    pieces/          long texts that pass 1 has cut up (see pieces.py)
    cache/           becomes `<cache>` by one rename, after its manifest is on the disk
"""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa

from torchrec_models.pipelines.config import DataConfig, FoldSplit, QueryConfig, RunConfig, TimeFoldSplit

from .build import build
from .cache_folder import check_replaceable, finished, locked, publish
from .fingerprint import files_of, fingerprint_of, settings_of
from .fit import Fitter
from .folds import fold_of_cache
from .progress import say
from .shards import Cache
from .snapshots import check_query_columns, drop_other_snapshots, first_rows, take_snapshot, telling_when_read
from .sources import open_source, wanted_columns
from .splits import SPLITS
from .store_files import open_stores, with_stores
from .targets import side_columns


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
    found = None if force else finished(folder, inputs)
    partial = folder.with_name(f"{folder.name}.partial-{fingerprint_of(inputs)[:12]}")
    if found is None:
        check_replaceable(folder)
        with locked(partial):
            found = None if force else finished(folder, inputs)  # a process that we waited for may have made it
            if found is None:
                try:
                    snapshots = _snapshots(config, again=force, progress=progress)
                    with telling_when_read(snapshots):
                        described = inputs | ({"snapshots": snapshots} if snapshots else {})
                        build(partial, config, described, workers=workers, progress=progress)
                except ValueError:  # the same files and settings would fail again: nothing here is worth keeping
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
                publish(partial / "cache", folder)
    else:
        say(
            progress,
            f"{folder} is up to date: reused ({', '.join(f'{n}: {s.num_rows:,}' for n, s in found.splits.items())} rows)",
        )
    shutil.rmtree(partial, ignore_errors=True)
    drop_other_snapshots(config)
    for other in folder.parent.glob(f"{folder.name}.partial-*"):
        say(progress, f"{other} is left over from an interrupted run with other settings; delete it if you don't need it")
    return _chosen_fold(found or Cache.open(folder), config.data)


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
