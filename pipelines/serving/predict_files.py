"""`trm predict BUNDLE`: files of any size through a bundle, with ONNX Runtime; no torch, no server."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from tqdm import tqdm

from ..data.ids import Buckets
from ..data.sources import Source
from ..data.transforms import NumericTransform, Transforms
from ..prediction_file import PredictionFile, check_not_input, check_output
from .bundle import Bundle
from .bundle_files import CONFIG, MANIFEST

_MEMORY_BUDGET_BYTES = 1 << 30


def is_bundle(path: Path) -> bool:
    """Whether `trm predict` was given a bundle, not a run."""
    return (path / MANIFEST).is_file()


def predict_files(
    path: Path,
    inputs: Sequence[str],
    out: Path,
    *,
    row_id: str = "",
    columns: Sequence[str] = (),
    batch_rows: int = 16_384,
    num_threads: int | None = None,
    progress: bool = True,
) -> tuple[int, float]:
    """Score raw rows with a bundle. Files are read as the bundle's config says: format, null values, row id.

    Args:
        inputs: files, globs or folders with the raw feature columns.
        out: .parquet or .csv: the row id (or `row`, the position), then one column per task.
        row_id: column of the rows that identifies them; default: the config's `data.row_id`.
        columns: names for the output's columns, one for each; default: that of the row id, and those of the tasks.
        num_threads: of ONNX Runtime; default: one per core.

    Returns:
        Number of rows, and seconds without the loading of the bundle.

    Raises:
        ValueError: for a bundle that is refused, a retriever, an output that is an input, and values that the transforms
            refuse, or that are too large for the model, with file, column and row.
    """
    check_output(out)
    if batch_rows < 1:
        raise ValueError(f"batch_rows: given {batch_rows}; must be at least 1")
    bundle = Bundle(path, num_threads=num_threads or os.cpu_count() or 1)
    if not bundle.tasks:
        raise ValueError(f"{path} is a retrieval model: it gives vectors, not scores of rows; Bundle(...).encode gives them")
    data = _data_section(path)
    row_id = row_id or data.get("row_id") or ""
    sink = PredictionFile(out, list(bundle.tasks), row_id, columns=columns)
    read = list(dict.fromkeys([*bundle.transforms.raw_columns, *([row_id] if row_id else [])]))
    try:
        source = Source.open(
            list(inputs),
            format=data.get("format", "auto"),
            column_names=data.get("column_names", []),
            null_values=data.get("null_values", [""]),
            columns=read,
            memory_budget_bytes=_MEMORY_BUDGET_BYTES,
            extra_fields=data.get("extra_fields", "error"),
            text_types=_text_types(bundle.transforms),
        )
    except ValueError as error:
        lacking = [c for c in read if c.partition(".")[0] in data.get("stores", {}) and f"no column {c!r}" in str(error)]
        if not lacking:
            raise
        raise ValueError(
            f"the rows have no column {lacking[0]!r}: a bundle has no feature stores, so its rows carry what stores know; "
            "to score rows that name them by id, take the run: trm predict RUN"
        ) from None
    check_not_input(out, [file.path for file in source.files])
    graph, num_rows = bundle.graphs["model"], 0
    start = time.perf_counter()
    bar = tqdm(total=source.num_rows, desc="predicting", unit="row", unit_scale=True, disable=not progress)
    with sink as writer, bar:
        for part in source.batches():
            for at in range(0, part.batch.num_rows, batch_rows):
                batch = part.batch.slice(at, batch_rows)
                encoded = bundle.transforms.encode(batch, where=part.path, first_row=part.first_row + at)
                scores_NT = graph.answer(encoded, where=part.path, first_row=part.first_row + at)
                writer.write(batch.column(row_id) if row_id else None, scores_NT, first_row=num_rows)
                num_rows += batch.num_rows
                bar.update(batch.num_rows)
    return num_rows, time.perf_counter() - start


def _data_section(path: Path) -> dict[str, Any]:
    """The config's `data`, as plain YAML: reading it as a config would import the models."""
    config = yaml.safe_load((path / CONFIG).read_text())
    return config.get("data") or {}


def _text_types(transforms: Transforms) -> dict[str, pa.DataType]:
    """Columns of text files that only serve as numbers are numbers there, as in training."""
    uses: dict[str, list[bool]] = {}
    for feature in transforms.features.values():
        is_number = isinstance(feature, NumericTransform) or isinstance(transforms.tables[feature.table], Buckets)
        uses.setdefault(feature.column, []).append(is_number)
    return {column: pa.float64() for column, numbers in uses.items() if all(numbers)}
