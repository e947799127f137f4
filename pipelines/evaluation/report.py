"""report.html: one self-contained page on what a model is worth, for people who did not train it."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from . import charts
from .curves import ScoreCurves
from .findings import findings, weak_slices
from .results import Evaluation, Interval, Metric, SliceRow, number, point, title

HistoryRow = Mapping[str, float]

MEANINGS = {
    "auc": "chance that a random positive row scores higher than a random negative one",
    "gauc": "the same within each user's rows, averaged over users by rows",
    "gauc_coverage": "share of rows whose user has both positives and negatives",
    "log_loss": "mean surprise per row, in nats; what training minimises",
    "normalized_entropy": "log loss over that of always answering the label rate; below 1 is better than knowing only the rate",
    "average_precision": "mean precision over all positives found, best first; chance level is the label rate",
    "wll": "log loss with positives and negatives at equal weight; not minimised by calibrated probabilities",
    "contest_score": "average precision / 2 + 1 / (1 + WLL) / 2",
    "ece": "mean distance between predicted and actual rate, over 100 bins of equal weight",
    "calibration_ratio": "predicted positives per actual positive; 1 is right",
    "rmse": "root of the mean squared error",
    "mae": "mean absolute error",
    "mrr": "mean of 1 / rank of the first relevant item",
}


class TaskReport(NamedTuple):
    """One task: its evaluation, and the curves of a binary one (None: no charts of scores)."""

    evaluation: Evaluation
    curves: ScoreCurves | None = None


def write_report(
    folder: str | Path,
    *,
    title: str,
    tasks: Mapping[str, TaskReport],
    history: Sequence[HistoryRow] = (),
    config_text: str = "",
    facts: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write `report.html` into `folder`, with charts and styles inside and no address of anything outside.

    Args:
        title: the page's heading.
        tasks: task name -> result.
        history: one row per log entry: `step`, and where known `loss`, `lr` or `lr_factor`, `data_wait_share`, `valid_<metric>`.
        config_text: the resolved config as YAML.
        facts: short label -> value under the heading (model, data, date).
        notes: sentences that a reader must know, shown above all charts.

    Returns:
        The path of the page.
    """
    page = _environment().get_template("report.html.j2")
    text = page.render(
        title=title,
        facts=facts or {},
        notes=notes,
        tasks=[_task_view(name, task, number=i) for i, (name, task) in enumerate(tasks.items())],
        training=_training_charts(history),
        config_text=config_text,
    )
    path = Path(folder) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return path


def read_history(path: str | Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv, without empty cells."""
    with Path(path).open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["thousands"] = lambda value: f"{value:,}"
    environment.filters["figure"] = _figure
    return environment


def _task_view(name: str, task: TaskReport, *, number: int) -> dict[str, Any]:
    """What the template shows of a task."""
    evaluation, curves = task
    return {
        "name": name,
        "evaluation": evaluation,
        "findings": findings(evaluation),
        "weak": weak_slices(evaluation),
        "has_intervals": any(isinstance(m, Interval) for m in evaluation.metrics.values()),
        "metrics": [
            {
                "title": title(metric),
                "value": value,
                "base": evaluation.base.get(metric),
                "meaning": MEANINGS.get(metric, ""),
                "undefined": evaluation.undefined.get(metric, ""),
            }
            for metric, value in evaluation.metrics.items()
        ],
        "charts": _score_charts(curves, evaluation, prefix=f"task{number}"),
        "slices": [_slice_view(column, rows, evaluation) for column, rows in evaluation.slices.items() if rows],
    }


def _score_charts(curves: ScoreCurves | None, evaluation: Evaluation, *, prefix: str) -> list[dict[str, Any]]:
    if curves is None:
        return []
    return [
        _chart(
            "Calibration",
            charts.reliability(curves, name=f"{prefix}-calibration"),
            "Each dot is a twentieth of the rows. Above the dashed line there were more positives than predicted, below it fewer.",
        ),
        _chart(
            "Scores by class",
            charts.histogram(curves, name=f"{prefix}-histogram"),
            "The further the two humps lie apart, the better the model tells positives from negatives.",
        ),
        _chart(
            "ROC",
            charts.roc(curves, name=f"{prefix}-roc"),
            "Take rows from the highest score downwards: how many positives come before how many negatives. The area is the AUC.",
        ),
        _chart(
            "Precision and recall",
            charts.precision_recall(curves, evaluation.label_mean, name=f"{prefix}-precision"),
            "If the top rows are acted on until this share of positives is found, how many of the actions hit.",
        ),
    ]


def _training_charts(history: Sequence[HistoryRow]) -> list[dict[str, Any]]:
    def series(key: str) -> tuple[list[float], list[float]]:
        known = [(row["step"], row[key]) for row in history if key in row and math.isfinite(row[key])]
        return [step for step, _ in known], [value for _, value in known]

    def chart(name: str, ylabel: str, lines: Mapping[str, str], text: str, *, percent: bool = False) -> list[dict[str, Any]]:
        found = {label: points for label, key in lines.items() if (points := series(key))[0]}
        if not found:
            return []
        svg = charts.over_steps(found, ylabel=ylabel, percent=percent, name=f"training-{len(name)}-{name.split()[0].lower()}")
        return [_chart(name, svg, text)]

    ranking = next((m for m in ("auc", "gauc", "average_precision", "ndcg@10", "rmse") if series(f"valid_{m}")[0]), "")
    rate = "lr" if series("lr")[0] else "lr_factor"
    return [
        *chart(
            "Loss",
            "loss",
            {"training": "loss", "validation": "valid_log_loss"},
            "Both should fall. Validation that rises while training falls is memorising.",
        ),
        *(chart(f"Validation {title(ranking)}", title(ranking), {"validation": f"valid_{ranking}"}, "") if ranking else []),
        *chart(
            "Learning rate",
            "learning rate" if rate == "lr" else "factor on the learning rates",
            {"learning rate": rate},
            "",
        ),
        *chart(
            "Waiting for data",
            "share of time",
            {"waiting": "data_wait_share"},
            "The share of time that training stood still because the next rows were not ready.",
            percent=True,
        ),
    ]


def _chart(name: str, svg: str, text: str) -> dict[str, Any]:
    return {"title": name, "svg": Markup(svg), "text": text}


def _slice_view(column: str, rows: list[SliceRow], evaluation: Evaluation) -> dict[str, Any]:
    """A slice table whose main metric is also drawn: a dot, its interval, and the overall value, on one scale for the column."""
    metric = next((m for m in ("auc", "rmse") if m in evaluation.metrics), next(iter(evaluation.metrics)))
    overall = evaluation.value(metric)
    ends = [_span(row.metrics.get(metric, math.nan)) for row in rows]
    known = [e for span in [*ends, (overall, overall)] for e in span if math.isfinite(e)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.01
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    return {
        "column": column,
        "metric": title(metric),
        "overall": place(overall) if math.isfinite(overall) else None,
        "binary": evaluation.kind == "binary",
        "rows": [
            {
                "name": f"other ({row.num_pooled:,} values)" if row.num_pooled else row.value,
                "row": row,
                "share": row.num_rows / evaluation.num_rows,
                "value": row.metrics.get(metric, math.nan),
                "ratio": row.metrics.get("calibration_ratio", math.nan),
                "dot": place(point(row.metrics[metric])) if math.isfinite(point(row.metrics.get(metric, math.nan))) else None,
                "from": place(span[0]),
                "width": place(span[1]) - place(span[0]),
            }
            for row, span in zip(rows, ends)
        ],
    }


def _span(metric: Metric) -> tuple[float, float]:
    return (metric.low, metric.high) if isinstance(metric, Interval) else (metric, metric)


def _figure(metric: Metric | None, digits: int = 4) -> str:
    return "" if metric is None else number(point(metric), digits)
