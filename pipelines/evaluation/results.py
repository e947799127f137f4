"""What an evaluation found: plain data, with its text table for the terminal and its JSON for `metrics.json`."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Kind = Literal["binary", "regression", "retrieval"]


class Interval(NamedTuple):
    """A metric with its 95 % bootstrap interval (percentile method)."""

    value: float
    low: float
    high: float


Metric = float | Interval

TITLES = {
    "auc": "AUC",
    "gauc": "gAUC",
    "log_loss": "log loss",
    "normalized_entropy": "normalized entropy",
    "average_precision": "average precision",
    "wll": "WLL (50:50 log loss)",
    "contest_score": "contest score",
    "ece": "ECE",
    "calibration_ratio": "calibration ratio",
    "gauc_coverage": "gAUC coverage",
    "rmse": "RMSE",
    "mae": "MAE",
    "mrr": "MRR",
}


@dataclass(frozen=True, kw_only=True)
class SliceRow:
    """The rows of one value of a slice column. `num_pooled` > 0: so many values too rare to be shown, together."""

    value: str
    num_rows: int
    label_mean: float
    prediction_mean: float
    metrics: dict[str, Metric]
    num_pooled: int = 0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One task's result on one split.

    Attributes:
        num_rows: rows, whatever their weight.
        label_mean: weighted mean of the label, the label rate of a binary task; nan for retrieval.
        metrics: the model's.
        base: those of the model that knows nothing of the row (`base_name`), by the same metric names.
        undefined: metric -> why it is nan.
        slices: slice column -> its values, those with most rows first, pooled rest last.
    """

    kind: Kind = "binary"
    num_rows: int
    label_mean: float = math.nan
    base_name: str
    metrics: dict[str, Metric]
    base: dict[str, float]
    undefined: dict[str, str] = field(default_factory=dict)
    slices: dict[str, list[SliceRow]] = field(default_factory=dict)

    def value(self, metric: str) -> float:
        """The point estimate; nan if this evaluation has no such metric."""
        return point(self.metrics.get(metric, math.nan))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: nan is null, an interval {value, low, high}."""
        return {
            "kind": self.kind,
            "num_rows": self.num_rows,
            "label_mean": _json(self.label_mean),
            "base_name": self.base_name,
            "metrics": {k: _json(v) for k, v in self.metrics.items()},
            "base": {k: _json(v) for k, v in self.base.items()},
            "undefined": self.undefined,
            "slices": {
                column: [
                    {
                        "value": row.value,
                        "num_rows": row.num_rows,
                        "num_pooled": row.num_pooled,
                        "label_mean": _json(row.label_mean),
                        "prediction_mean": _json(row.prediction_mean),
                        "metrics": {k: _json(v) for k, v in row.metrics.items()},
                    }
                    for row in rows
                ]
                for column, rows in self.slices.items()
            },
        }


def point(metric: Metric) -> float:
    return metric.value if isinstance(metric, Interval) else metric


def title(metric: str) -> str:
    """How people write it: `recall@10` and other names not listed stand for themselves."""
    return TITLES.get(metric, metric)


def number(value: float, digits: int = 5) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def render(evaluation: Evaluation, *, slice_metrics: tuple[str, ...] = ("auc", "log_loss", "calibration_ratio", "rmse")) -> str:
    """The text table for a terminal: metrics beside the base model's, then one table per slice column."""
    lines = [_headline(evaluation)]
    intervals = any(isinstance(m, Interval) for m in evaluation.metrics.values())
    header = ["", "model", *(["95 % interval"] if intervals else []), evaluation.base_name]
    body = []
    for name, metric in evaluation.metrics.items():
        between = [f"{number(metric.low)} .. {number(metric.high)}" if isinstance(metric, Interval) else ""] if intervals else []
        base = number(evaluation.base[name]) if name in evaluation.base else ""
        body.append([title(name), number(point(metric)), *between, base])
    lines += _table(header, body)
    lines += [f"{title(name)} is undefined: {why}" for name, why in evaluation.undefined.items()]
    for column, rows in evaluation.slices.items():
        shown = [m for m in slice_metrics if m in evaluation.metrics]
        body = [
            [
                f"other ({row.num_pooled} values)" if row.num_pooled else row.value,
                f"{row.num_rows:,}",
                number(row.label_mean),
                number(row.prediction_mean),
                *(number(point(row.metrics[m])) for m in shown),
            ]
            for row in rows
        ]
        lines += ["", *_table([column, "rows", "mean label", "mean prediction", *map(title, shown)], body)]
    return "\n".join(lines)


def write_metrics(path: str | Path, evaluations: Mapping[str, Evaluation]) -> None:
    """`metrics.json`: task -> evaluation. Written beside and renamed, so that a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    text = json.dumps({task: evaluation.to_dict() for task, evaluation in evaluations.items()}, indent=2, allow_nan=False)
    beside.write_text(text + "\n", encoding="utf-8")
    os.replace(beside, path)


def _headline(evaluation: Evaluation) -> str:
    if evaluation.kind == "retrieval":
        return f"{evaluation.num_rows:,} queries"
    if evaluation.kind == "regression":
        return f"{evaluation.num_rows:,} rows, mean label {number(evaluation.label_mean)}"
    return f"{evaluation.num_rows:,} rows, label rate {100 * evaluation.label_mean:.3f} %"


def _table(header: list[str], body: list[list[str]]) -> list[str]:
    """First column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *body)]
    lines = []
    for row in (header, *body):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _json(metric: Metric) -> Any:
    if isinstance(metric, Interval):
        return {"value": _json(metric.value), "low": _json(metric.low), "high": _json(metric.high)}
    return float(metric) if np.isfinite(metric) else None
