"""The stores of a cache: encoded and written once, before the rows that name them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..config import RunConfig
from .checksums import FileEntry
from .durable import fsync, naming
from .rows import single_valued
from .shards import Shard, StoreData
from .store_files import KEYS, Keys, StoreSource, encode_store, store_features
from .stores import reference, stored_schema
from .transforms import Transforms


def write_stores(
    folder: Path, config: RunConfig, transforms: Transforms, sources: Sequence[StoreSource]
) -> tuple[list[StoreData], list[Keys]]:
    """Write each store into a folder of its own. What an interrupted run left there is replaced: stores are small beside the rows.

    Raises:
        ValueError: for values that the transforms cannot take, and ids that are missing or stand in two rows (file, row).
        OSError: with the path, where the disk refuses.
    """
    shutil.rmtree(folder, ignore_errors=True)
    written, all_keys = [], []
    for source in sources:
        keys = Keys.of(source)
        store = encode_store(source, transforms, store_features(config)[source.name], num_rows=len(keys.values))
        here = folder / source.name
        here.mkdir(parents=True)
        with naming(here):
            np.save(here / "dense.npy", store.dense.numpy())
            np.save(here / "ids.npy", store.ids.numpy())
            keys.save(here / KEYS)
        files = {}
        for path in sorted(here.iterdir()):
            fsync(path)
            files[path.name] = FileEntry.of(path)
        fsync(here)
        written.append(StoreData(source.name, here, store.features, len(keys.values), keys.column, {}, files))
        all_keys.append(keys)
    return written, all_keys


def read_keys(folder: Path, config: RunConfig) -> list[Keys]:
    """The ids of the stores that `write_stores` has written."""
    return [Keys.load(name, store, folder / name / KEYS) for name, store in config.data.stores.items()]


def count_unknown(
    stores: Sequence[StoreData], transforms: Transforms, shards: Mapping[str, Sequence[Shard]]
) -> tuple[StoreData, ...]:
    """The stores, with the number of rows of each split whose id they lack.

    Raises:
        ValueError: if a store knows the id of no training row: key and column then hold different things.
    """
    schema = stored_schema(transforms.schema, {store.name: store.features for store in stores})
    columns = [f.name for f in single_valued(schema)]
    out = []
    for store in stores:
        column = columns.index(reference(store.name))
        unknown = {
            split: sum(int((np.load(shard.folder / "ids.npy", mmap_mode="r")[:, column] == 0).sum()) for shard in of_split)
            for split, of_split in shards.items()
        }
        num_rows = sum(shard.num_rows for of_split in shards.values() for shard in of_split)
        if sum(unknown.values()) == num_rows:
            raise ValueError(
                f"data.stores.{store.name}: it knows the id of no row of the data; do its key and the data's column "
                f"{store.column!r} hold the same ids?"
            )
        out.append(replace(store, unknown_rows=unknown))
    return tuple(out)
