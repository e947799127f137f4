"""Is the bundle the model? Raw rows through PyTorch and through the bundle's own runtime, and the samples that travel with it.

Shapes in names: N rows, T outputs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from torchrec_models.model import Ranker, Retriever

from ..calibration import Affine
from ..data.loader import to_batch
from ..data.transforms import Transforms
from ..data.values import is_list, is_text, one_array, plain
from ..serving.bundle import Graph, scaled_difference
from .graph import calibrated, predictions

NUM_EXAMPLES = 5


class ParityError(ValueError):
    """The exported graph does not give PyTorch's answers."""


@dataclass(frozen=True)
class ParityReport:
    """How far the bundle's answers are from PyTorch's, as |bundle - torch| / max(1, |torch|).

    Attributes:
        num_rows: rows compared.
        max_difference, mean_difference: over rows and outputs.
        tolerance: what was allowed.
    """

    num_rows: int
    max_difference: float
    mean_difference: float
    tolerance: float

    def __str__(self) -> str:
        worst, mean = f"{self.max_difference:.1e}", f"{self.mean_difference:.1e}"
        return f"{self.num_rows} rows: max difference {worst} (allowed {self.tolerance:.0e}), mean {mean}"


@torch.no_grad()
def reference_answers(
    model: Ranker | Retriever, transforms: Transforms, rows: pa.Table, *, calibration: Mapping[str, Affine] = MappingProxyType({})
) -> dict[str, np.ndarray]:
    """PyTorch's answers [N, T] by graph name, through the model's own TorchRec collections."""
    batch = to_batch(transforms.schema, transforms.encode(rows, where="rows for the parity check"))
    if isinstance(model, Ranker):
        tasks = transforms.schema.tasks
        return {"model": predictions(calibrated(model(batch), tasks, calibration), tasks).float().numpy()}
    query, candidate = model(batch)
    return {"query": query.float().numpy(), "candidate": candidate.float().numpy()}


def check_parity(
    reference: Mapping[str, np.ndarray], graphs: Mapping[str, Graph], rows: pa.Table, *, tolerance: float
) -> ParityReport:
    """Compares the graphs' answers to raw rows with PyTorch's.

    Raises:
        ParityError: with graph, row and both answers.
    """
    differences = []
    for name, graph in graphs.items():
        found = np.concatenate([graph.run(graph.encode(part)) for part in _parts(rows)])
        differences.append(_compare(name, found, reference[name], tolerance=tolerance))
    every = np.concatenate([d.ravel() for d in differences])
    return ParityReport(rows.num_rows, float(every.max()), float(every.mean()), tolerance)


def _parts(rows: pa.Table) -> Iterator[pa.Table]:
    """One row, two rows, then 128 at a time: a graph must not depend on the batch size that it was traced with."""
    start = 0
    for num_rows in chain((1, 2), repeat(128)):
        if start >= rows.num_rows:
            return
        yield rows.slice(start, num_rows)
        start += num_rows


def _compare(name: str, found: np.ndarray, reference: np.ndarray, *, tolerance: float) -> np.ndarray:
    assert found.shape == reference.shape, (name, found.shape, reference.shape)
    difference = scaled_difference(found, reference)
    if not difference.max() <= tolerance:  # NaN is no agreement
        row, column = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), difference.shape)
        raise ParityError(
            f"graph {name!r}, row {row + 1} of {len(found)}, output {column + 1}: the bundle answers {found[row, column]:.9g}, "
            f"PyTorch {reference[row, column]:.9g}; difference {difference[row, column]:.3g}, allowed {tolerance:g}"
        )
    return difference


def examples(graphs: Mapping[str, Graph], rows: pa.Table, *, tolerance: float) -> dict[str, Any]:
    """A few rows as JSON values and each graph's answers: what `Bundle.self_test` asks again.

    Raises:
        ParityError: if rows given as JSON get other answers than rows given as Arrow.
    """
    chosen = rows.take(np.unique(np.linspace(0, rows.num_rows - 1, NUM_EXAMPLES).astype(np.int64)))
    out: dict[str, Any] = {}
    for name, graph in graphs.items():
        columns = {column: json_values(one_array(chosen.column(column))) for column in graph.codec.columns}
        as_json = [dict(zip(columns, values)) for values in zip(*columns.values())]
        answers = graph.run(graph.encode(as_json))
        _compare(name, answers, graph.run(graph.encode(chosen)), tolerance=tolerance)
        out[name] = {"rows": as_json, "answers": answers.tolist()}
    return out


def json_values(column: pa.Array) -> list[Any]:
    """A raw column as JSON values that encode to the same model inputs: dates as the text that transforms read, NaN as null."""
    column = plain(column)
    if is_list(column.type):
        column = column.cast(pa.large_list(_json_type(column.type.value_type)))
        return [None if one is None else [_json_value(v) for v in one] for one in column.to_pylist()]
    return [_json_value(v) for v in column.cast(_json_type(column.type)).to_pylist()]


def _json_type(type: pa.DataType) -> pa.DataType:
    if is_text(type) or pa.types.is_temporal(type):
        return pa.string()
    if pa.types.is_decimal(type):
        return pa.float64() if type.scale > 0 else pa.int64()
    return type


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
