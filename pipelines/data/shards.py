"""The prepared data on disk: shards of plain .npy files, Arrow side columns, and a manifest that vouches for all of them.

    <cache>/manifest.json                     written last; a folder without it is not a cache
    <cache>/transforms/                       the fitted transforms (see transforms.py)
    <cache>/<split>/<00000>/dense.npy         [N, D] float32
                            ids.npy           [N, K] int32, one column per single-valued categorical
                            list_<i>.values.npy, list_<i>.offsets.npy   int32 [n], int64 [N + 1], per multi-valued feature
                            labels.npy, weights.npy                     [N, T], [N, max(T, 1)] float32
                            sidecars.arrow    Arrow IPC: group, timestamp, row_id and slice columns, as they were
    <cache>/stores/<name>/                    feature stores, whose rows the splits name (see stores.py)

`np.load` and `pyarrow.ipc` read every file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from torchrec_models.pipelines.config.errors import nearest
from torchrec_models.schema import Schema

from .checksums import FileEntry
from .manifest import read_manifest
from .missing import added
from .rows import Rows, list_valued, single_valued
from .stores import Join, Store, stored_schema

if TYPE_CHECKING:
    from .transforms import Transforms

SIDECARS = "sidecars.arrow"
NPY_HEADER_BYTES = 128  # what numpy writes for every shape of ours; the shard writer asserts it


def array_files(schema: Schema) -> dict[str, tuple[np.dtype, int | None]]:
    """File name -> (dtype, columns) of every array in a shard; columns is None for one-dimensional arrays."""
    num_tasks = len(schema.tasks)
    files: dict[str, tuple[np.dtype, int | None]] = {
        "dense.npy": (np.dtype("<f4"), len(schema.dense)),
        "ids.npy": (np.dtype("<i4"), len(single_valued(schema))),
        "labels.npy": (np.dtype("<f4"), num_tasks),
        "weights.npy": (np.dtype("<f4"), max(num_tasks, 1)),
    }
    for i in range(len(list_valued(schema))):
        files[f"list_{i:03d}.values.npy"] = (np.dtype("<i4"), None)
        files[f"list_{i:03d}.offsets.npy"] = (np.dtype("<i8"), None)
    return files


@dataclass(frozen=True)
class Shard:
    """A run of rows of one split, in a folder of its own.

    Attributes:
        label_sums, weight_sums: per task, the sums of weight * label and of weight.
        missing: raw column -> rows whose value was missing (see missing.py); None in caches of earlier releases.
    """

    folder: Path
    num_rows: int
    files: Mapping[str, FileEntry]
    label_sums: tuple[float, ...]
    weight_sums: tuple[float, ...]
    missing: Mapping[str, int] | None = None

    @classmethod
    def from_json(cls, folder: Path, raw: Mapping[str, Any]) -> "Shard":
        files = {name: FileEntry(**entry) for name, entry in raw["files"].items()}
        sums = tuple(raw["label_sums"]), tuple(raw["weight_sums"])
        return cls(folder, raw["num_rows"], files, *sums, raw.get("missing"))

    def to_json(self) -> dict[str, Any]:
        return {
            "num_rows": self.num_rows,
            "files": {name: vars(entry) for name, entry in sorted(self.files.items())},
            "label_sums": list(self.label_sums),
            "weight_sums": list(self.weight_sums),
            **({} if self.missing is None else {"missing": dict(self.missing)}),
        }

    @property
    def num_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())

    def verify(self) -> None:
        """Raises ValueError naming the first file that is missing or altered."""
        for name, entry in self.files.items():
            entry.check(self.folder / name)


@dataclass(frozen=True)
class StoreData:
    """A feature store of a cache.

    Attributes:
        features: that are read from it, in the order of the model's schema.
        num_rows: ids that it knows.
        column: of the data, which holds its ids.
        unknown_rows: split -> rows whose id it lacks.
    """

    name: str
    folder: Path
    features: tuple[str, ...]
    num_rows: int
    column: str
    unknown_rows: Mapping[str, int]
    files: Mapping[str, FileEntry]

    @classmethod
    def from_json(cls, name: str, folder: Path, raw: Mapping[str, Any]) -> "StoreData":
        files = {file: FileEntry(**entry) for file, entry in raw["files"].items()}
        return cls(name, folder, tuple(raw["features"]), raw["num_rows"], raw["column"], raw["unknown_rows"], files)

    def to_json(self) -> dict[str, Any]:
        return {
            "features": list(self.features),
            "num_rows": self.num_rows,
            "column": self.column,
            "unknown_rows": dict(self.unknown_rows),
            "files": {name: vars(entry) for name, entry in sorted(self.files.items())},
        }

    @cached_property
    def store(self) -> Store:
        """Its rows, mapped into memory."""
        return Store(self.name, self.features, _mapped(self.folder / "dense.npy"), _mapped(self.folder / "ids.npy"))

    def verify(self) -> None:
        """Raises ValueError naming the first file that is missing or altered."""
        for name, entry in self.files.items():
            entry.check(self.folder / name)


@dataclass(frozen=True)
class SplitData:
    """One split of a cache.

    Attributes:
        schema: of its rows as a model reads them.
        stores: that its rows name.
    """

    name: str
    schema: Schema
    shards: tuple[Shard, ...]
    stores: tuple[StoreData, ...] = ()

    @cached_property
    def stored_schema(self) -> Schema:
        """Of its rows as they are in the shards."""
        return stored_schema(self.schema, {store.name: store.features for store in self.stores})

    @cached_property
    def join(self) -> Join:
        """Makes rows of `schema` of rows of `stored_schema`."""
        return Join(self.schema, [data.store for data in self.stores])

    @cached_property
    def num_rows(self) -> int:
        return sum(shard.num_rows for shard in self.shards)

    @cached_property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @cached_property
    def label_mean(self) -> dict[str, float]:
        """Task name -> weighted mean of the label; masked labels do not count. NaN where all weights are 0."""
        means = {}
        for i, task in enumerate(self.schema.tasks):
            total = sum(shard.weight_sums[i] for shard in self.shards)
            means[task.name] = sum(shard.label_sums[i] for shard in self.shards) / total if total else float("nan")
        return means

    @cached_property
    def missing(self) -> Mapping[str, int] | None:
        """Raw column -> rows whose value was missing; None where no count was recorded."""
        total: dict[str, int] | None = {}
        for shard in self.shards:
            total = added(total, shard.missing)
        return total or None

    def verify(self) -> None:
        """Reads every byte. Raises ValueError naming the first file that is missing or altered."""
        for shard in self.shards:
            shard.verify()
        for store in self.stores:
            store.verify()

    def read(self, shard: int, start: int, stop: int) -> Rows:
        """Rows start .. stop - 1 of a shard as a model reads them, in new memory (read, not mapped: page faults cost 3 times a
        read, measured)."""
        folder = self.shards[shard].folder
        widths = array_files(self.stored_schema)

        def array(name: str, first: int, last: int) -> torch.Tensor:
            dtype, columns = widths[name]
            per_row = 1 if columns is None else columns
            out = _read(folder / name, dtype, NPY_HEADER_BYTES + first * per_row * dtype.itemsize, (last - first) * per_row)
            return out if columns is None else out.view(last - first, columns)

        lists = []
        for i in range(len(list_valued(self.stored_schema))):
            offsets = array(f"list_{i:03d}.offsets.npy", start, stop + 1)
            first, last = int(offsets[0]), int(offsets[-1])
            lists.append((array(f"list_{i:03d}.values.npy", first, last), offsets - first))
        dense, ids, labels, weights = (array(f"{n}.npy", start, stop) for n in ("dense", "ids", "labels", "weights"))
        return self.join(Rows(dense, ids, tuple(lists), labels, weights))

    def labels(self) -> np.ndarray:
        """[num_rows, T] float32."""
        return np.concatenate([np.load(shard.folder / "labels.npy") for shard in self.shards])

    def weights(self) -> np.ndarray:
        """[num_rows, max(T, 1)] float32; 0 marks a masked label."""
        return np.concatenate([np.load(shard.folder / "weights.npy") for shard in self.shards])

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The side columns kept: "group", "timestamp", "row_id" where the config names them, and the slice columns."""
        with pa.ipc.open_file(pa.memory_map(str(self.shards[0].folder / SIDECARS))) as reader:
            return tuple(reader.schema.names)

    def column(self, name: str) -> pa.ChunkedArray:
        """One value per row of a side column, memory-mapped.

        Raises:
            ValueError: if the column was not kept.
        """
        if name not in self.columns:
            kept = ", ".join(self.columns) or "none"
            raise ValueError(
                f"split {self.name!r} has no column {name!r}; kept: {kept}. "
                "Name it in data.group, data.timestamp, data.row_id or data.slices and prepare again"
            )
        chunks: list[pa.Array] = []
        for shard in self.shards:
            table = pa.ipc.open_file(pa.memory_map(str(shard.folder / SIDECARS))).read_all()
            chunks += table.column(name).chunks
            kind = table.schema.field(name).type
        return pa.chunked_array(chunks, type=kind)


def _mapped(path: Path) -> torch.Tensor:
    """An array in memory that all processes share."""
    # mode c: torch wants memory that can be written, though nothing writes; an array without columns cannot be mapped
    return torch.from_numpy(np.load(path, mmap_mode="c" if path.stat().st_size > NPY_HEADER_BYTES else None))


def _read(path: Path, dtype: np.dtype, offset_bytes: int, count: int) -> torch.Tensor:
    values = np.fromfile(path, dtype=dtype, count=count, offset=offset_bytes)
    if len(values) != count:
        raise ValueError(f"{path}: ended early; it was altered after it was prepared. Prepare again with --force")
    return torch.from_numpy(values)


@dataclass(frozen=True)
class Cache:
    """A finished cache folder. Make one with `prepare`, read it with `Loader`."""

    folder: Path
    manifest: Mapping[str, Any]
    schema: Schema
    splits: Mapping[str, SplitData]
    stores: tuple[StoreData, ...] = ()

    @classmethod
    def open(cls, folder: str | Path) -> "Cache":
        """Reads the manifest and compares the size of every file with it; `verify` compares every byte.

        Raises:
            ValueError: if the folder holds no finished cache, one of another format version, or an altered one.
        """
        cache = cls.without_looking_at_files(folder)
        for path, entry in cache.files():
            entry.check_size(path)
        return cache

    @classmethod
    def without_looking_at_files(cls, folder: str | Path) -> "Cache":
        """What the manifest says, for those who then look at the files themselves.

        Raises:
            ValueError: as `open`, but for the files.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        schema = Schema.from_dict(manifest["schema"])
        of_stores = manifest.get("stores", {}).items()
        stores = tuple(StoreData.from_json(name, folder / "stores" / name, raw) for name, raw in of_stores)
        splits = {}
        for name, raw in manifest["splits"].items():
            shards = (Shard.from_json(folder / name / f"{i:05d}", one) for i, one in enumerate(raw["shards"]))
            splits[name] = SplitData(name, schema, tuple(shards), stores)
        return cls(folder, manifest, schema, splits, stores)

    @property
    def fingerprint(self) -> str:
        """Changes with any source file and any setting that the cached rows depend on."""
        return self.manifest["fingerprint"]

    @cached_property
    def transforms(self) -> "Transforms":
        from .transforms import Transforms

        return Transforms.load(self.folder / "transforms")

    @property
    def num_bytes(self) -> int:
        return sum(entry.bytes for _, entry in self.files())

    def split(self, name: str) -> SplitData:
        """Raises ValueError if there is no such split."""
        if name not in self.splits:
            there = f"{self.folder} has no split {name!r}; it has: {', '.join(self.splits)}"
            if name in ("valid", "test") and "train" in self.splits:
                there += f". Name one of these with --split; or give files in data.{name} or a data.split, and prepare again"
            raise ValueError(there + nearest(name, self.splits))
        return self.splits[name]

    def files(self) -> Iterator[tuple[Path, FileEntry]]:
        for name, entry in self.manifest["transforms"].items():
            yield self.folder / "transforms" / name, FileEntry(**entry)
        for split in self.splits.values():
            for shard in split.shards:
                for name, file_entry in shard.files.items():
                    yield shard.folder / name, file_entry
        for store in self.stores:
            for name, file_entry in store.files.items():
                yield store.folder / name, file_entry

    def verify(self) -> None:
        """Reads every byte. Raises ValueError naming the first file that is missing or altered."""
        for path, entry in self.files():
            entry.check(path)
