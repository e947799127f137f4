"""Raw rows through the data room without a cache: config, sources, split, fit (`from data_flow import ...`)."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from torchrec_models.pipelines.config import RunConfig
from torchrec_models.pipelines.data.fit import Fitter
from torchrec_models.pipelines.data.sources import Source, SourceBatch, open_source
from torchrec_models.pipelines.data.splits import Splitter
from torchrec_models.pipelines.data.transforms import Encoded, Transforms

REAL_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


def run_config(features: dict[str, Any], *, tables: dict[str, Any] | None = None, labels: Any = (), **data: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "features": features,
            "tables": tables or {},
            "labels": {name: {} for name in labels},
            "model": {"name": "deepfm"},
            "data": {"train": ["unused"], "cache": "unused", **data},
        }
    )


def fit(config: RunConfig, table: pa.Table, *, batch_rows: int = 1 << 30) -> Transforms:
    """Fit on all rows of a table, cut into batches."""
    fitter = Fitter(config, table.schema)
    for _ in range(fitter.num_passes):
        row = 0
        for batch in table.to_batches(max_chunksize=batch_rows):
            fitter.update(batch, where="train", first_row=row)
            row += batch.num_rows
        fitter.end_pass()
    return fitter.finish()


def prepare_in_memory(config: RunConfig) -> tuple[Source, Transforms, list[tuple[SourceBatch, np.ndarray, Encoded]]]:
    """Everything that preparing does to raw rows: read, split, fit on train, encode all."""
    source = open_source(config, config.data.train)
    splitter = Splitter(config.data.split)
    fitter = Fitter(config, source.arrow_schema)
    for _ in range(fitter.num_passes):
        for batch in source.batches():
            train = np.flatnonzero(splitter.assign(batch) == 0)
            fitter.update(batch.batch.take(pa.array(train)), where=batch.path, first_row=0, rows=batch.first_row + train)
        fitter.end_pass()
    transforms = fitter.finish()
    encoded = [(b, splitter.assign(b), transforms.encode(b.batch, where=b.path, first_row=b.first_row)) for b in source.batches()]
    return source, transforms, encoded
