"""The benchmark's coded rows in this library's own forms: a schema, its rows, batches, a cache, a run's config."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from torchrec_models.batch import Batch
from torchrec_models.pipelines.config import RunConfig, TrainConfig
from torchrec_models.pipelines.data.manifest import write_manifest
from torchrec_models.pipelines.data.rows import BatchBuilder, Rows
from torchrec_models.pipelines.data.shard_writer import ShardWriter
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.schema import Feature, Schema, Table, Task

from .workloads import CodedRows


def schema_of(coded: CodedRows, *, dim: int, init_std: float) -> Schema:
    """One single-valued categorical and one table per column; row 0 of a table is out of vocabulary."""
    return Schema(
        features=tuple(Feature(name=name, kind="categorical", table=name) for name in coded.codes),
        tables=tuple(Table(name=name, num_rows=n + 1, dim=dim, init_std=init_std) for name, n in coded.cardinalities.items()),
        tasks=(Task(name="label"),),
    )


def rows_of(coded: CodedRows) -> Rows:
    ids_NK = np.stack(list(coded.codes.values()), axis=1) + 1
    return Rows(
        dense=torch.empty(coded.num_rows, 0),
        ids=torch.from_numpy(ids_NK.astype(np.int32)),
        lists=(),
        labels=torch.from_numpy(coded.labels)[:, None],
        weights=torch.ones(coded.num_rows, 1),
    )


def memory_batches(schema: Schema, coded: CodedRows, row_numbers: list[np.ndarray]) -> list[Batch]:
    """The same batches that the peer is given."""
    rows, build = rows_of(coded), BatchBuilder(schema)
    chosen = [torch.from_numpy(numbers) for numbers in row_numbers]
    return [build(rows.take(index), index) for index in chosen]


def write_cache(folder: Path, schema: Schema, coded: CodedRows) -> Cache:
    """A finished cache whose training split is `coded`, in its order."""
    writer = ShardWriter(folder / "train", schema, pa.schema([]), rows_per_shard=1_000_000)
    writer.append(rows_of(coded), pa.table({}))
    writer.close()
    write_manifest(folder, schema=schema, shards={"train": writer.shards}, fingerprint="benchmark", inputs={}, versions={})
    return Cache.open(folder)


def run_config(schema: Schema, *, deepfm: dict[str, Any], train: TrainConfig, folder: Path) -> RunConfig:
    """The run that `trm train` would be given, had the rows been prepared from files."""
    features = {
        f.name: {"kind": "categorical", "dim": t.dim, "init_std": t.init_std, "ids": {"by": "identity", "num_rows": t.num_rows}}
        for f, t in zip(schema.features, schema.tables, strict=True)
    }
    return RunConfig.model_validate(
        {
            "run": str(folder / "run"),
            "data": {"train": ["none"], "cache": str(folder / "cache")},
            "features": features,
            "labels": {task.name: {} for task in schema.tasks},
            "model": {"name": "deepfm", **deepfm},
            "train": train.model_dump(),
        }
    )
