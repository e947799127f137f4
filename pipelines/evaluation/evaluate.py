"""Exact evaluation of columns: labels and scores of a whole split, as numpy arrays, beside the base-rate model's.

`evaluate_columns` gives everything at once as an `Evaluation`; its parts can be used alone.
"""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torchrec_models import metrics as M

from .bootstrap import Draws
from .columns import Column, encode, group_codes, numbers, optional_numbers
from .results import Evaluation, Interval, Metric, SliceRow, point

Columns = Mapping[str, Column]


def evaluate_columns(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    base_rate: float,
    kind: Literal["binary", "regression"] = "binary",
    weights: ArrayLike | None = None,
    groups: Column | None = None,
    slices: Columns | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    max_slice_values: int = 20,
) -> Evaluation:
    """Metrics, the base-rate model's, and the slices, of one task.

    Args:
        labels: [N], 0 or 1 for `binary`.
        scores: [N] probabilities for `binary`, predictions for `regression`.
        base_rate: the mean label of the *training* rows: the constant prediction to beat.
        weights: [N] >= 0.
        groups: [N] users, of any type (numpy or Arrow), for gAUC; a null is a user of its own.
        slices: column name -> [N] values of any type.
        bootstrap: resamples behind the intervals; 0: none. Slices get intervals, too.

    Raises:
        ValueError: on malformed columns, naming column and row.
    """
    y, s, w = numbers("labels", labels), numbers("scores", scores), optional_numbers(weights)
    found, undefined = _evaluate(kind, y, s, w, group_codes(groups), bootstrap, seed)
    return Evaluation(
        kind=kind,
        num_rows=len(y),
        label_mean=M.weighted_mean(y.double(), w),
        base_name=f"always {base_rate:.4g}",
        metrics=found,
        base=base_rate_metrics(labels, base_rate, kind=kind, weights=weights, like=found),
        undefined=undefined,
        slices=evaluate_slices(
            labels,
            scores,
            slices or {},
            kind=kind,
            weights=weights,
            groups=groups,
            bootstrap=bootstrap,
            seed=seed,
            max_values=max_slice_values,
        ),
    )


def evaluate_binary(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: Column | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> dict[str, Metric]:
    """Every binary metric of `torchrec_models.metrics`; gAUC and its coverage if `groups` is given.

    With `bootstrap` resamples all but ECE (which resampling inflates) and the coverage come as an `Interval`: the 2.5 and 97.5
    percentiles over resamples of N rows with replacement, drawn as counts on the rows sorted once; for gAUC over resamples of
    groups. Rows of one user are taken as independent, so the intervals of the other metrics are narrow for few, heavy users.
    """
    codes = group_codes(groups)
    return _binary(numbers("labels", labels), numbers("scores", scores), optional_numbers(weights), codes, bootstrap, seed)[0]


def evaluate_regression(
    labels: ArrayLike, predictions: ArrayLike, *, weights: ArrayLike | None = None, bootstrap: int = 0, seed: int = 0
) -> dict[str, Metric]:
    """RMSE and MAE, as `evaluate_binary`."""
    y, s = numbers("labels", labels), numbers("predictions", predictions)
    return _regression(y, s, optional_numbers(weights), bootstrap, seed)[0]


def base_rate_metrics(
    labels: ArrayLike,
    base_rate: float,
    *,
    kind: Literal["binary", "regression"] = "binary",
    weights: ArrayLike | None = None,
    like: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """The metrics of predicting `base_rate` for every row; with `like`, gAUC is included where that has it."""
    y, w = numbers("labels", labels), optional_numbers(weights)
    M.check_columns(labels=y, weights=w)
    if kind == "regression":
        constant = torch.full_like(y.double(), base_rate)
        return {"rmse": M.rmse(y, constant, weights=w), "mae": M.mae(y, constant, weights=w)}
    if not 0 <= base_rate <= 1:
        raise ValueError(f"base_rate is the mean of a 0/1 label and must lie in [0, 1], got {base_rate}")
    # All rows score the same, so two rows that carry the weight of all say it all.
    weight = torch.ones_like(y, dtype=torch.float64) if w is None else w.double()
    two = M.BinaryRows(
        torch.tensor([1, 0]),
        torch.full((2,), base_rate, dtype=torch.float64),
        weights=torch.stack([weight[y == 1].sum(), weight[y == 0].sum()]),
    )
    found = two.metrics()
    # The model's NE is taken against the mean of these labels, and so is this one: above 1 by how far the rate has drifted.
    out = {"auc": found.pop("auc")}
    if like is not None and "gauc" in like:
        out["gauc"] = math.nan if math.isnan(point(like["gauc"])) else 0.5
    return out | found | {"ece": M.expected_calibration_error(two.reliability(num_bins=1))}


def evaluate_slices(
    labels: ArrayLike,
    scores: ArrayLike,
    slices: Columns,
    *,
    kind: Literal["binary", "regression"] = "binary",
    weights: ArrayLike | None = None,
    groups: Column | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    max_values: int = 20,
) -> dict[str, list[SliceRow]]:
    """The metrics of each value of each slice column, by falling number of rows.

    Values beyond the `max_values` most frequent are pooled into one last row (`num_pooled` says how many). Nulls and NaN are a
    value of their own, "(missing)".
    """
    y, s, w, codes = numbers("labels", labels), numbers("scores", scores), optional_numbers(weights), group_codes(groups)
    if kind == "binary":
        M.check_binary(y, s, weights=w)
    M.check_columns(labels=y, scores=s, weights=w, **({} if codes is None else {"groups": codes}))
    if max_values < 1:
        raise ValueError(f"max_values must be >= 1, got {max_values}")
    out = {}
    for column, values in slices.items():
        code_N, names = encode(column, values)
        if len(code_N) != len(y):
            raise ValueError(f"slices.{column}: one value per row expected, got {len(code_N)} for {len(y)} rows")
        num_rows_V = np.bincount(code_N, minlength=len(names))
        frequent = np.argsort(-num_rows_V, kind="stable")
        slot_V = np.empty(len(names), dtype=np.int64)
        slot_V[frequent] = np.minimum(np.arange(len(names)), max_values)
        slot_N = slot_V[code_N]
        parts = np.split(np.argsort(slot_N, kind="stable"), np.bincount(slot_N, minlength=1).cumsum()[:-1])
        rows = []
        for slot, part in enumerate(parts if len(y) else []):
            at = torch.from_numpy(part)
            own_w = None if w is None else w[at]
            own_codes = None if codes is None else codes[at]
            rows.append(
                SliceRow(
                    value="other" if slot == max_values else _name(names[int(frequent[slot])]),
                    num_rows=len(part),
                    label_mean=M.weighted_mean(y[at].double(), own_w),
                    prediction_mean=M.weighted_mean(s[at].double(), own_w),
                    metrics=_evaluate(kind, y[at], s[at], own_w, own_codes, bootstrap, seed)[0],
                    num_pooled=len(names) - max_values if slot == max_values else 0,
                )
            )
        out[column] = rows
    return out


# --- parts ------------------------------------------------------------------------------------------------------------

Found = tuple[dict[str, Metric], dict[str, str]]


def _evaluate(kind: str, y: Tensor, s: Tensor, weights: Tensor | None, groups: Tensor | None, bootstrap: int, seed: int) -> Found:
    if kind == "regression":
        return _regression(y, s, weights, bootstrap, seed)
    return _binary(y, s, weights, groups, bootstrap, seed)


def _binary(y: Tensor, s: Tensor, weights: Tensor | None, groups: Tensor | None, bootstrap: int, seed: int) -> Found:
    rows = M.BinaryRows(y, s, weights=weights)
    values = rows.metrics() | {"ece": M.expected_calibration_error(rows.reliability())}
    undefined = rows.undefined()
    draw = Draws(seed)
    spread = draw.spread(len(rows), bootstrap, rows.metrics)
    if groups is not None:
        per_group = rows.per_group_auc(groups)
        whole = per_group.mean()
        values |= {"gauc": whole.value, "gauc_coverage": whole.coverage}
        if not whole.num_groups_used:
            undefined = {"gauc": f"none of {whole.num_groups} groups has both labels"} | undefined
        used = ~per_group.auc.isnan()
        auc, weight = per_group.auc[used], per_group.weight[used]
        spread |= draw.spread(len(auc), bootstrap, lambda counts: {"gauc": M.weighted_mean(auc, weight * counts)})
    order = ["auc", "gauc", *(k for k in values if k not in ("auc", "gauc"))]
    found = {k: _with_spread(values[k], spread.get(k)) for k in order if k in values}
    return found, {k: why for k, why in undefined.items() if k in found}


def _regression(y: Tensor, s: Tensor, weights: Tensor | None, bootstrap: int, seed: int) -> Found:
    def measure(counts: Tensor | None = None) -> dict[str, float]:
        given = weights if counts is None else counts.double() if weights is None else weights * counts
        return {"rmse": M.rmse(y, s, weights=given), "mae": M.mae(y, s, weights=given)}

    values = measure()
    spread = Draws(seed).spread(len(y), bootstrap, measure)
    undefined = {k: "no rows with weight > 0" for k, v in values.items() if math.isnan(v)}
    return {k: _with_spread(v, spread.get(k)) for k, v in values.items()}, undefined


def _with_spread(value: float, spread: tuple[float, float] | None) -> Metric:
    return value if spread is None or math.isnan(value) else Interval(value, *spread)


def _name(value: object) -> str:
    return "(missing)" if value is None else str(value)
