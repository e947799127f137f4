"""What an evaluation means, in plain sentences: is the model worth something, can its probabilities be used, where is it weak."""

import math
from typing import Literal, NamedTuple

from .results import Evaluation, Interval, Metric, SliceRow, number, point, title

Level = Literal["good", "fair", "bad", "unknown"]


class Finding(NamedTuple):
    """One answer: the question, the figure to remember, a sentence on what it says."""

    level: Level
    question: str
    figure: str
    text: str


class _Fault(NamedTuple):
    severity: float
    text: str


class WeakSlice(NamedTuple):
    """Rows that the model serves worse than the others, and how."""

    column: str
    value: str
    num_rows: int
    text: str
    severity: float


# Shares of too many or too few predicted positives that pass as calibrated, and as nearly so.
CALIBRATED = 0.02
NEARLY_CALIBRATED = 0.10
# Without intervals, a slice of fewer rows says nothing.
MIN_SLICE_ROWS = 1000


def findings(evaluation: Evaluation) -> list[Finding]:
    """The answers for the top of a report, the most important first."""
    if evaluation.kind == "binary":
        return [_worth(evaluation, "log_loss"), _ranking(evaluation), _calibration(evaluation)]
    if evaluation.kind == "regression":
        return [_worth(evaluation, "rmse"), _worth(evaluation, "mae")]
    return [_retrieval(evaluation, metric) for metric in list(evaluation.metrics)[:3]]


def weak_slices(evaluation: Evaluation, *, at_most: int = 6) -> list[WeakSlice]:
    """Slices that surely (by their interval) rank worse than the whole, predict too much or too little, or gain nothing over
    their own label rate; the worst first.
    """
    weak = []
    for column, rows in evaluation.slices.items():
        for row in rows:
            faults = _faults(row, evaluation)
            if faults:
                value = f"other ({row.num_pooled} values)" if row.num_pooled else row.value
                weak.append(
                    WeakSlice(column, value, row.num_rows, "; ".join(f.text for f in faults), sum(f.severity for f in faults))
                )
    return sorted(weak, key=lambda w: -w.severity)[:at_most]


def _worth(evaluation: Evaluation, metric: str) -> Finding:
    question = "Is it better than a constant?"
    ours, constant = evaluation.value(metric), evaluation.base.get(metric, math.nan)
    if math.isnan(ours) or math.isnan(constant):
        return _unknown(evaluation, question, metric)
    gain = 1 - ours / constant if constant else 0.0
    name = title(metric)
    versus = (
        f"{name[:1].upper()}{name[1:]} {number(ours, 4)} against {number(constant, 4)} when the answer is {evaluation.base_name}"
    )
    if gain <= 0:
        return Finding("bad", question, f"{100 * -gain:.1f} % worse", f"{versus}: the model adds error instead of removing it.")
    return Finding("good", question, f"{100 * gain:.1f} % less {'log loss' if metric == 'log_loss' else 'error'}", f"{versus}.")


def _ranking(evaluation: Evaluation) -> Finding:
    question = "Does it put the right rows first?"
    auc = evaluation.metrics["auc"]
    value = point(auc)
    if math.isnan(value):
        return _unknown(evaluation, question, "auc")
    text = f"Of a random positive and a random negative row, it scores the positive one higher {100 * value:.1f} % of the time."
    text += " Chance is 50 %."
    if not math.isnan(evaluation.value("gauc")):
        text += f" Within one user's rows: {100 * evaluation.value('gauc'):.1f} %."
    low = auc.low if isinstance(auc, Interval) else value
    return Finding("good" if low > 0.5 else "bad", question, f"AUC {number(value, 4)}", text)


def _calibration(evaluation: Evaluation) -> Finding:
    question = "Can its probabilities be taken at face value?"
    ratio = evaluation.metrics["calibration_ratio"]
    value = point(ratio)
    if math.isnan(value):
        return _unknown(evaluation, question, "calibration_ratio")
    off = value - 1
    chance = isinstance(ratio, Interval) and ratio.low <= 1 <= ratio.high
    if abs(off) <= CALIBRATED or (chance and abs(off) <= NEARLY_CALIBRATED):
        level: Level = "good"
    else:
        level = "fair" if abs(off) <= NEARLY_CALIBRATED else "bad"
    answer = "Yes, on the whole" if level == "good" else f"{100 * abs(off):.1f} % too {'high' if off > 0 else 'low'}"
    text = f"It predicts {_too_much(off)} than there were (ratio {value:.3f})."
    if not math.isnan(evaluation.value("ece")):
        text += f" Bin by bin it is {100 * evaluation.value('ece'):.2f} percentage points off on average,"
        text += f" where the label rate is {100 * evaluation.label_mean:.2f} %."
    if chance:
        text += " The deviation is within chance."
    return Finding(level, question, answer, text)


def _retrieval(evaluation: Evaluation, metric: str) -> Finding:
    question = f"{title(metric)}: does it find what was wanted?"
    ours, base = evaluation.value(metric), evaluation.base.get(metric, math.nan)
    if math.isnan(ours):
        return _unknown(evaluation, question, metric)
    if math.isnan(base):
        return Finding("unknown", question, number(ours, 4), "There is no baseline to compare with.")
    times = f", {ours / base:.1f} times as good" if base else ""
    text = f"{number(ours, 4)} against {number(base, 4)} of {evaluation.base_name}{times}."
    return Finding("good" if ours > base else "bad", question, number(ours, 4), text)


def _unknown(evaluation: Evaluation, question: str, metric: str) -> Finding:
    why = evaluation.undefined.get(metric, "it was not computed")
    return Finding("unknown", question, "unknown", f"{title(metric)} is undefined here: {why}.")


def _faults(row: SliceRow, evaluation: Evaluation) -> list[_Fault]:
    """A miscount of 10 % and an AUC lower by 0.05 are equally severe."""
    faults = []
    _, high = _ends(row.metrics.get("auc", math.nan), row.num_rows)
    overall = evaluation.value("auc")
    if high < overall:
        own = point(row.metrics["auc"])
        faults.append(_Fault(2 * (overall - own), f"ranks worse, AUC {number(own, 3)} against {number(overall, 3)} overall"))
    low, _ = _ends(row.metrics.get("normalized_entropy", math.nan), row.num_rows)
    if low > 1:
        gap = point(row.metrics["normalized_entropy"]) - 1
        faults.append(_Fault(gap, "its probabilities are worse than the plain label rate of these rows"))
    low, high = _ends(row.metrics.get("calibration_ratio", math.nan), row.num_rows)
    if low > 1 + CALIBRATED or high < 1 - CALIBRATED:
        ratio = point(row.metrics["calibration_ratio"])
        # A fault of the slice only where it is worse off than the whole; that is a finding of its own.
        if abs(ratio - 1) > abs(evaluation.value("calibration_ratio") - 1) + CALIBRATED:
            faults.append(_Fault(abs(ratio - 1), f"predicts {_too_much(ratio - 1)} than there were"))
    return faults


def _ends(metric: Metric, num_rows: int) -> tuple[float, float]:
    """(low, high); nan, which no comparison passes, where there are too few rows and no interval."""
    if isinstance(metric, Interval):
        return metric.low, metric.high
    return (metric, metric) if num_rows >= MIN_SLICE_ROWS else (math.nan, math.nan)


def _too_much(off: float) -> str:
    return f"{100 * abs(off):.1f} % {'more' if off >= 0 else 'fewer'} positives"
