"""What a row is judged by, and what travels beside it: labels, weights and side columns, out of raw Arrow columns."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from torchrec_models.pipelines.config import DataConfig, LabelConfig
from torchrec_models.schema import Schema

from .numeric import to_float
from .values import Place, cast, one_array, plain


def label_columns(labels: Mapping[str, LabelConfig]) -> list[str]:
    """The raw columns that labels read."""
    return [config.column or name for name, config in labels.items()]


def labels_without_contrast(schema: Schema, label_mean: Mapping[str, float]) -> list[str]:
    """In words, the binary labels whose training rows are all 0, all 1 or all masked: no model learns from these."""
    found = []
    for task in schema.tasks:
        mean = label_mean[task.name]
        if task.kind == "binary" and (mean in (0.0, 1.0) or np.isnan(mean)):
            rows = "has no value" if np.isnan(mean) else f"is {mean:g}"
            found.append(
                f"labels.{task.name}: every training row {rows}, so there is nothing to learn; check the column, "
                f"labels.{task.name}.above, and which rows are for training"
            )
    return found


def read_targets(
    labels: Mapping[str, LabelConfig],
    weight: str,
    batch: pa.RecordBatch,
    *,
    where: str,
    first_row: int,
    rows: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """Labels and weights of a batch.

    Args:
        weight: the column of sample weights; empty for weight 1.
        where, first_row, rows: for errors, as in `Transforms.encode`.

    Returns:
        labels [N, T] float32 and weights [N, max(T, 1)] float32; a masked label is 0 with weight 0.

    Raises:
        ValueError: naming file, column and row, for labels that are missing (unless masked), infinite, or neither 0 nor 1
            where binary, and for weights that are missing, negative or infinite.
    """
    row_weight = np.ones(batch.num_rows, np.float32)
    if weight:
        place = Place(where, weight, first_row, rows)
        raw = to_float(one_array(batch.column(weight)), place)
        row_weight = raw.astype(np.float32)
        bad = ~np.isfinite(row_weight) | (row_weight < 0)
        if bad.any():
            index = int(bad.argmax())
            shown = "missing" if np.isnan(raw[index]) else f"{raw[index]:g}"
            raise place.error(index, f"the weight is {shown}; a weight is a finite number >= 0")
    label_NT = np.zeros((batch.num_rows, len(labels)), np.float32)
    weight_NT = np.tile(row_weight[:, None], (1, max(len(labels), 1)))
    for i, (name, config) in enumerate(labels.items()):
        column = config.column or name
        value, missing = _label(name, config, one_array(batch.column(column)), Place(where, column, first_row, rows))
        label_NT[:, i] = value
        weight_NT[missing, i] = 0
    return torch.from_numpy(label_NT), torch.from_numpy(weight_NT)


def _label(name: str, config: LabelConfig, column: pa.Array, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """[N] float32 labels, 0 where missing, and [N] which are missing."""
    raw = to_float(column, place)
    missing = np.isnan(raw)
    if missing.any() and config.null == "error":
        raise place.error(
            int(missing.argmax()),
            f"the label {name!r} is missing; fix the data, or set labels.{name}.null: mask to give such rows weight 0",
        )
    value = np.where(missing, 0, raw if config.above is None else raw > config.above).astype(np.float32)
    wrong = ~np.isfinite(value)
    if wrong.any():
        index = int(wrong.argmax())
        raise place.error(index, f"the label {name!r} is {raw[index]:g}, which is not a finite 32-bit number")
    wrong = (value != 0) & (value != 1)
    if config.kind == "binary" and wrong.any():
        index = int(wrong.argmax())
        raise place.error(
            index,
            f"the label {name!r} is {raw[index]:g}, and a binary label is 0 or 1; "
            f"set labels.{name}.above: to a threshold (label = value > above), or labels.{name}.kind: regression",
        )
    return value, missing


def side_columns(data: DataConfig) -> dict[str, str]:
    """Name in the cache -> raw column: group, timestamp and row_id where given, and the slices under their own names.

    Raises:
        ValueError: if a slice column has the name of one of the three and is another column.
    """
    columns = {name: column for name in ("group", "timestamp", "row_id") if (column := getattr(data, name))}
    for name in data.slices:
        if columns.get(name, name) != name:
            raise ValueError(
                f"data.slices: column {name!r} has the name under which data.{name} ({columns[name]!r}) is kept; "
                f"rename the column, or leave one of them out"
            )
        columns[name] = name
    return columns


def side_schema(columns: Mapping[str, str], raw: pa.Schema) -> pa.Schema:
    """The types in which side columns are kept: as they are, dictionaries decoded."""
    types = {name: raw.field(column).type for name, column in columns.items()}
    return pa.schema([(n, t.value_type if pa.types.is_dictionary(t) else t) for n, t in types.items()])


def read_side_columns(
    columns: Mapping[str, str],
    schema: pa.Schema,
    batch: pa.RecordBatch,
    *,
    where: str,
    first_row: int,
    rows: np.ndarray | None = None,
) -> pa.Table:
    """The side columns of a batch in the types of `schema`; nulls stay.

    Raises:
        ValueError: naming file, column and row, if a value does not fit the type that the column had in the first file.
    """
    arrays = []
    for name, column in columns.items():
        kind = schema.field(name).type
        place = Place(where, column, first_row, rows)
        arrays.append(cast(plain(one_array(batch.column(column))), kind, place, f"of type {kind}, as in the training files"))
    return pa.table(arrays, schema=schema)
