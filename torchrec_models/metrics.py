"""Exact metrics on whole columns. Pure functions: tensors in, Python floats out, float64 inside, no state, no files.

Shapes in names: N rows, B blocks of rows with equal scores, G groups (users), Q queries, K retrieved, R relevant.

Every binary metric takes `labels` [N] of 0 and 1, `scores` [N] (`probabilities` where the value counts and not only the order)
and optional `weights` [N] >= 0; a row of weight 0 has no effect. A metric that the rows do not define (one class only, no rows)
is nan, never an exception; `BinaryRows.undefined()` says why. Malformed input (NaN, other labels, a probability outside [0, 1],
lengths that differ, a negative weight) is a ValueError that names the first offending row.

`BinaryRows` sorts once and gives all of them; the functions named after one metric are shorthands.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# -log(1e-7) = 16.1 is the most that one row can cost. FuxiCTR clips at the same place; 1 - 1e-7 is the largest float32 below 1.
CLIP = 1e-7

DIRECTION: dict[str, Literal["higher", "lower"]] = {
    "auc": "higher",
    "gauc": "higher",
    "log_loss": "lower",
    "normalized_entropy": "lower",
    "average_precision": "higher",
    "wll": "lower",
    "contest_score": "higher",
    "ece": "lower",
    "rmse": "lower",
    "mae": "lower",
}
"""Which way is better, for early stopping and tables. `calibration_ratio` is best at 1 and so has no direction."""


class Reliability(NamedTuple):
    """Calibration by bin, in order of rising score: [bins] float64 each. `weight` is the bin's sum of weights."""

    mean_score: Tensor
    mean_label: Tensor
    weight: Tensor


class GroupAuc(NamedTuple):
    """gAUC and what it is based on. `coverage` is the share of weight in groups with both classes."""

    value: float
    coverage: float
    num_groups: int
    num_groups_used: int


class PerGroupAuc(NamedTuple):
    """[G] float64 each, in order of rising group id. `auc` is nan for a group with one class."""

    auc: Tensor
    weight: Tensor

    def mean(self) -> GroupAuc:
        used = ~self.auc.isnan()
        weight = self.weight * used
        total = self.weight.sum()
        return GroupAuc(
            value=_ratio((weight * self.auc.nan_to_num()).sum(), weight.sum()),
            coverage=_ratio(weight.sum(), total),
            num_groups=len(self.auc),
            num_groups_used=int(used.sum()),
        )


class BinaryRows:
    """Labels, scores and weights in order of falling score, sorted once; a metric is then a few cumulative sums.

    Args:
        labels: [N], 0 or 1 (any dtype).
        scores: [N], any dtype. Kept in their own dtype for sorting, so that float32 ties stay ties.
        weights: [N] >= 0; default 1.
        probabilities: whether scores must lie in [0, 1]. Without it only `auc`, `average_precision` and groups make sense.

    Raises:
        ValueError: on malformed input, naming the first offending row.
    """

    def __init__(self, labels: Tensor, scores: Tensor, *, weights: Tensor | None = None, probabilities: bool = True) -> None:
        check_binary(labels, scores, weights=weights, probabilities=probabilities)
        kept = None if weights is None else weights > 0
        self._kept_N = None if kept is None or bool(kept.all()) else kept
        if self._kept_N is not None:
            labels, scores = labels[self._kept_N], scores[self._kept_N]
            weights = weights[self._kept_N] if weights is not None else None
        self.scores_N, self.order_N = scores.sort(descending=True)
        self.labels_N = labels[self.order_N].double()
        self.weights_N = None if weights is None else weights[self.order_N].double()
        self._last_B = _block_ends(self.scores_N)
        self._losses_3N: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels_N)

    def counts(self, resample_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """([B], [B]): weight of positives, and of negatives, whose score is at least that of block B: the ROC curve.

        Args:
            resample_N: [N] extra factor on the weights, in sorted order (bootstrap counts).
        """
        weights = self._weights(resample_N)
        positive = weights * self.labels_N
        true_N, false_N = positive.cumsum(0), (weights - positive).cumsum(0)
        return true_N.index_select(0, self._last_B), false_N.index_select(0, self._last_B)

    def metrics(self, resample_N: Tensor | None = None) -> dict[str, float]:
        """All binary metrics that need no bins and no groups, from one pass; see the functions of the same names."""
        true_B, false_B = self.counts(resample_N)
        losses = self._losses() @ self._weights(resample_N)
        positive_loss, negative_loss, predicted = losses.tolist()
        positives, negatives = (float(c[-1]) if len(self) else 0.0 for c in (true_B, false_B))
        total = positives + negatives
        log_loss = _ratio(positive_loss + negative_loss, total)
        ap = _average_precision(true_B, false_B)
        wll = 0.5 * (_ratio(positive_loss, positives) + _ratio(negative_loss, negatives))
        return {
            "auc": _auc(true_B, false_B),
            "log_loss": log_loss,
            "normalized_entropy": _ratio(log_loss, _entropy(_ratio(positives, total))),
            "average_precision": ap,
            "wll": wll,
            "contest_score": 0.5 * ap + 0.5 / (1 + wll),
            "calibration_ratio": _ratio(predicted, positives),
        }

    def reliability(self, *, num_bins: int = 100) -> Reliability:
        """Bins of equal weight. Rows of one score are never parted, so fewer bins come out where scores repeat."""
        if num_bins < 1:
            raise ValueError(f"num_bins must be >= 1, got {num_bins}")
        weights = self._weights(None)
        ends_B = weights.cumsum(0)[self._last_B]
        block_B = ends_B.diff(prepend=ends_B.new_zeros(1))
        total = ends_B[-1] if len(self) else 1.0
        bin_B = ((ends_B - block_B / 2) / total * num_bins).long().clamp(0, num_bins - 1)
        bin_N = bin_B.repeat_interleave(self._last_B.diff(prepend=self._last_B.new_full((1,), -1)))
        columns = torch.stack([weights * self.scores_N, weights * self.labels_N, weights])
        sums = columns.new_zeros(3, num_bins).index_add_(1, bin_N, columns)
        score, label, weight = sums[:, sums[2] > 0].flip(1)
        return Reliability(score / weight, label / weight, weight)

    def per_group_auc(self, groups: Tensor) -> PerGroupAuc:
        """AUC within each group, all at once. `groups`: [N] integers, in the order in which labels were given."""
        if groups.shape != (len(self._kept_N if self._kept_N is not None else self.order_N),):
            raise ValueError(f"groups: one per row expected, got shape {list(groups.shape)}")
        if groups.is_floating_point():
            raise ValueError(f"groups: integer ids expected, got {groups.dtype}; encode them first")
        group_N, by_group = (groups if self._kept_N is None else groups[self._kept_N])[self.order_N].sort(stable=True)
        weights, labels, scores = self._weights(None)[by_group], self.labels_N[by_group], self.scores_N[by_group]
        positive, negative = weights * labels, weights * (1 - labels)
        group_last_G = _block_ends(group_N)
        last_B = _block_ends(scores, group_N)
        index_N = torch.arange(len(group_last_G), device=group_N.device).repeat_interleave(
            group_last_G.diff(prepend=group_last_G.new_full((1,), -1))
        )
        zero_G = positive.new_zeros(len(group_last_G))
        positives_G, negatives_G = (zero_G.index_add(0, index_N, x) for x in (positive, negative))
        # Within a group: each block of negatives is beaten by the positives above it, and by half of those tied with it.
        true_N, false_N = positive.cumsum(0), negative.cumsum(0)
        true_B, false_B, index_B = true_N[last_B], false_N[last_B], index_N[last_B]
        before_G = torch.cat([true_N.new_zeros(1), true_N[group_last_G]])[:-1]
        above_B = true_B.roll(1)
        above_B[:1] = 0
        won_B = false_B.diff(prepend=false_B.new_zeros(1)) * ((true_B + above_B) / 2 - before_G[index_B])
        return PerGroupAuc(
            auc=zero_G.index_add(0, index_B, won_B) / (positives_G * negatives_G),  # 0 / 0 = nan: one class only
            weight=positives_G + negatives_G,
        )

    def undefined(self) -> dict[str, str]:
        """Why a metric of these rows is nan: metric -> reason. Empty where both classes are present."""
        num_positive = int(self.labels_N.sum())
        if 0 < num_positive < len(self):
            return {}
        if not len(self):
            return dict.fromkeys((*DIRECTION, "calibration_ratio"), "no rows with weight > 0")
        needs_negatives = ("auc", "gauc", "normalized_entropy", "wll", "contest_score")
        if num_positive:
            return dict.fromkeys(needs_negatives, f"all {len(self)} rows have label 1")
        needs_positives = (*needs_negatives, "average_precision", "calibration_ratio")
        return dict.fromkeys(needs_positives, f"all {len(self)} rows have label 0")

    def _weights(self, resample_N: Tensor | None) -> Tensor:
        if resample_N is None:
            return torch.ones_like(self.labels_N) if self.weights_N is None else self.weights_N
        return resample_N.double() if self.weights_N is None else self.weights_N * resample_N

    def _losses(self) -> Tensor:
        """[3, N]: loss of a positive row, loss of a negative row, probability. Made once, used by every resample."""
        if self._losses_3N is None:
            p = self.scores_N.double()
            clipped = p.clamp(CLIP, 1 - CLIP)
            positive = self.labels_N == 1
            loss = -torch.where(positive, clipped, 1 - clipped).log()
            self._losses_3N = torch.stack([loss * positive, loss * ~positive, p])
        return self._losses_3N


# --- one metric at a time ---------------------------------------------------------------------------------------------


def auc(labels: Tensor, scores: Tensor, *, weights: Tensor | None = None) -> float:
    """P(score of a random positive > score of a random negative), ties counting 1/2 (mid-rank). nan with one class."""
    return _auc(*BinaryRows(labels, scores, weights=weights, probabilities=False).counts())


def gauc(labels: Tensor, scores: Tensor, groups: Tensor, *, weights: Tensor | None = None) -> GroupAuc:
    """`sum_u n_u AUC_u / sum_u n_u` over groups (users) that have both classes; n_u: rows (weight) of the group.

    Zhu et al., Optimized Cost per Click in Taobao Display Advertising, KDD 2017; the impression-weighted form of DIN.
    """
    return BinaryRows(labels, scores, weights=weights, probabilities=False).per_group_auc(groups).mean()


def average_precision(labels: Tensor, scores: Tensor, *, weights: Tensor | None = None) -> float:
    """`sum_k (R_k - R_{k-1}) P_k` over distinct scores: the step-wise area, not the trapezoid. Chance level: the label mean."""
    return _average_precision(*BinaryRows(labels, scores, weights=weights, probabilities=False).counts())


def log_loss(labels: Tensor, probabilities: Tensor, *, weights: Tensor | None = None) -> float:
    """Mean of `-y log p - (1 - y) log(1 - p)` in nats, p clipped to [1e-7, 1 - 1e-7]."""
    return BinaryRows(labels, probabilities, weights=weights).metrics()["log_loss"]


def normalized_entropy(
    labels: Tensor, probabilities: Tensor, *, weights: Tensor | None = None, base_rate: float | None = None
) -> float:
    """Log loss over the log loss of always predicting the base rate; below 1 is better than knowing only that rate.

    He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, ADKDD 2014, eq. 2.

    Args:
        base_rate: the constant prediction to compare with, for example the training mean; default: the mean of `labels`.
    """
    rows = BinaryRows(labels, probabilities, weights=weights)
    values = rows.metrics()
    if base_rate is None:
        return values["normalized_entropy"]
    if not 0 < base_rate < 1:
        raise ValueError(f"base_rate must lie between 0 and 1, got {base_rate}")
    mean = weighted_mean(rows.labels_N, rows.weights_N)
    return values["log_loss"] / -(mean * math.log(base_rate) + (1 - mean) * math.log(1 - base_rate))


def wll(labels: Tensor, probabilities: Tensor, *, weights: Tensor | None = None) -> float:
    """Log loss with both classes at weight 1/2: `mean_{y=1}(-log p) / 2 + mean_{y=0}(-log(1 - p)) / 2`.

    Its minimiser is not the calibrated probability but the one whose logit is lower by the logit of the label mean.
    """
    return BinaryRows(labels, probabilities, weights=weights).metrics()["wll"]


def contest_score(labels: Tensor, probabilities: Tensor, *, weights: Tensor | None = None) -> float:
    """`AP / 2 + 1 / (1 + WLL) / 2`, the score of the Toss / DACON click prediction contest."""
    return BinaryRows(labels, probabilities, weights=weights).metrics()["contest_score"]


def ece(labels: Tensor, probabilities: Tensor, *, weights: Tensor | None = None, num_bins: int = 100) -> float:
    """Expected calibration error `sum_b w_b / w |mean p - mean y|` over bins of equal weight.

    Biased upwards where a bin has few rows: a perfect model has about `sqrt(2 / pi) * sqrt(p (1 - p) * num_bins / N)`.
    """
    return expected_calibration_error(BinaryRows(labels, probabilities, weights=weights).reliability(num_bins=num_bins))


def expected_calibration_error(bins: Reliability) -> float:
    """ECE of a reliability curve that is at hand."""
    return _ratio((bins.weight * (bins.mean_score - bins.mean_label).abs()).sum(), bins.weight.sum())


def calibration_ratio(labels: Tensor, probabilities: Tensor, *, weights: Tensor | None = None) -> float:
    """`sum p / sum y`: 1.1 predicts 10 % too many positives. (COPC is its inverse.)"""
    return BinaryRows(labels, probabilities, weights=weights).metrics()["calibration_ratio"]


def rmse(labels: Tensor, predictions: Tensor, *, weights: Tensor | None = None) -> float:
    """Root of the mean squared error; nan without rows."""
    return math.sqrt(weighted_mean(_errors(labels, predictions, weights).square(), weights))


def mae(labels: Tensor, predictions: Tensor, *, weights: Tensor | None = None) -> float:
    """Mean absolute error; nan without rows."""
    return weighted_mean(_errors(labels, predictions, weights).abs(), weights)


# --- parts ------------------------------------------------------------------------------------------------------------


def _auc(true_B: Tensor, false_B: Tensor) -> float:
    if not len(true_B):
        return math.nan
    above_B = torch.cat([true_B.new_zeros(1), true_B[:-1]])
    won = (false_B.diff(prepend=false_B.new_zeros(1)) * (true_B + above_B)).sum() / 2
    return _ratio(won, true_B[-1] * false_B[-1])


def _average_precision(true_B: Tensor, false_B: Tensor) -> float:
    if not len(true_B):
        return math.nan
    # The clamp only touches leading blocks that a resample left empty; they add nothing.
    precision_B = true_B / (true_B + false_B).clamp(min=torch.finfo(torch.float64).tiny)
    return _ratio((true_B.diff(prepend=true_B.new_zeros(1)) * precision_B).sum(), true_B[-1])


def _block_ends(*columns: Tensor) -> Tensor:
    """[B]: position of the last row of each run of equal values."""
    first, *more = columns
    changed = first[1:] != first[:-1]
    for column in more:
        changed |= column[1:] != column[:-1]
    last = first.new_full((min(len(first), 1),), len(first) - 1, dtype=torch.int64)
    return torch.cat([changed.nonzero()[:, 0], last])


def _ratio(numerator: Tensor | float, denominator: Tensor | float) -> float:
    """nan, not an exception, where there is nothing to divide by."""
    return float(numerator) / float(denominator) if float(denominator) else math.nan


def _entropy(rate: float) -> float:
    """Of a coin, in nats."""
    return -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)) if 0 < rate < 1 else 0.0


def weighted_mean(values: Tensor, weights: Tensor | None) -> float:
    """nan without rows, or without weight."""
    if weights is None:
        return _ratio(values.sum(), len(values))
    return _ratio((values * weights).sum(), weights.double().sum())


def _errors(labels: Tensor, predictions: Tensor, weights: Tensor | None) -> Tensor:
    check_columns(labels=labels, predictions=predictions, weights=weights)
    for name, column in (("labels", labels), ("predictions", predictions)):
        refuse(~column.isfinite(), f"{name}: not a finite number")
    return predictions.double() - labels.double()


def check_binary(labels: Tensor, scores: Tensor, *, weights: Tensor | None = None, probabilities: bool = True) -> None:
    """What `BinaryRows` demands; else a ValueError."""
    check_columns(labels=labels, scores=scores, weights=weights)
    refuse(scores.isnan(), "scores: NaN")
    refuse((labels != 0) & (labels != 1), "labels: neither 0 nor 1")
    if probabilities:
        refuse((scores < 0) | (scores > 1), "scores: outside [0, 1], so not a probability (a logit?)")


def check_columns(*, weights: Tensor | None = None, **columns: Tensor) -> None:
    """One value per row in each, weights finite and >= 0; else a ValueError."""
    given = columns if weights is None else {**columns, "weights": weights}
    for name, column in given.items():
        if column.dim() != 1:
            raise ValueError(f"{name}: one value per row expected, got shape {list(column.shape)}")
    if len({len(c) for c in given.values()}) > 1:
        raise ValueError("one value per row expected, got " + ", ".join(f"{len(c)} {name}" for name, c in given.items()))
    if weights is not None:
        refuse(~(weights >= 0) | weights.isinf(), "weights: not a finite number >= 0")


def refuse(bad: Tensor, what: str) -> None:
    """ValueError that names the first row at which `bad` [N] is true."""
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise ValueError(f"{what} at row {first} (first of {int(bad.sum())} such rows, counted from 0)")
