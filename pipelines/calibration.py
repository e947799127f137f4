"""Logits to calibrated logits, `scale * z + shift` per task: what a bundle applies before the sigmoid. The order of rows stays.

Platt, "Probabilistic outputs for support vector machines", 1999 (scale and shift); Guo et al., "On calibration of modern neural
networks", ICML 2017 (temperature: scale alone); He et al., "Practical lessons from predicting clicks on ads at Facebook", ADKDD
2014, section 6.3 (negative downsampling: q = p / (p + (1 - p) / w), which is logit q = logit p + log w).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Method = Literal["platt", "temperature", "none"]
FILE = "calibration.json"
_MAX_STEPS = 100


@dataclass(frozen=True)
class Affine:
    """`scale * logit + shift`."""

    scale: float = 1.0
    shift: float = 0.0

    def probabilities(self, logits: Floats) -> Floats:
        z = self.scale * np.asarray(logits, np.float64) + self.shift
        return np.exp(-np.logaddexp(0, -z))

    def with_negatives_kept(self, rate: float) -> "Affine":
        """For a log in which only this share of the negatives was kept: shift + log(rate).

        Raises:
            ValueError: for a rate outside (0, 1].
        """
        if not 0 < rate <= 1:
            raise ValueError(f"the rate at which negatives were kept: given {rate:g}; must be above 0 and at most 1")
        return Affine(self.scale, self.shift + math.log(rate))


def fit(logits: Floats, labels: Floats, *, method: Method, weights: Floats | None = None) -> Affine:
    """The scale and shift of largest likelihood, in float64, by Newton's method.

    Args:
        logits, labels, weights: [N]; labels 0 or 1.
        method: "platt" (both), "temperature" (scale alone), "none" (neither).

    Raises:
        ValueError: without rows of both classes; where a threshold separates them; where larger logits mean fewer positives.
    """
    if method == "none":
        return Affine()
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    w = np.ones_like(z) if weights is None else np.asarray(weights, np.float64)
    if not 0 < (w * y).sum() < w.sum():
        raise ValueError("calibration needs positives and negatives; the split has one of them only")
    if _is_separated(z[w > 0], y[w > 0] == 1, free_threshold=method == "platt"):
        raise ValueError("a threshold on these logits separates the classes perfectly, so no scale is best; use more rows")
    center = float(np.average(z, weights=w)) if method == "platt" else 0.0
    columns = [z - center, np.ones_like(z)] if method == "platt" else [z]
    found = _maximum_likelihood(np.stack(columns, axis=1), y, w / w.sum())
    scale = float(found[0])
    if scale <= 0:
        raise ValueError(f"larger logits mean fewer positives here (scale {scale:.3g}); the model is not worth calibrating")
    return Affine(scale, float(found[1]) - scale * center if method == "platt" else 0.0)


def _is_separated(z: Floats, positive: NDArray[np.bool_], *, free_threshold: bool) -> bool:
    """Whether larger scales are always better (or smaller): no maximum exists (Albert and Anderson 1984)."""
    low, high = z[~positive], z[positive]
    if free_threshold:
        return bool(low.max() <= high.min() or high.max() <= low.min())
    return bool((low.max() <= 0 <= high.min()) or (high.max() <= 0 <= low.min()))


def _maximum_likelihood(x_NK: Floats, y: Floats, w: Floats) -> Floats:
    """Logistic regression without penalty: Newton steps, halved while the loss does not fall."""

    def loss(b: Floats) -> float:
        z = x_NK @ b
        return float((w * (np.logaddexp(0, z) - y * z)).sum())

    b = np.zeros(x_NK.shape[1])
    b[0] = 1.0
    now = loss(b)
    for _ in range(_MAX_STEPS):
        p = np.exp(-np.logaddexp(0, -(x_NK @ b)))
        gradient = x_NK.T @ (w * (p - y))
        hessian = (x_NK * (w * p * (1 - p))[:, None]).T @ x_NK
        if np.abs(gradient).max() < 1e-12:
            return b
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while not (after := loss(b - size * step)) <= now and size > 1e-10:
            size /= 2
        if size <= 1e-10:
            return b  # as low as float64 can tell
        b, now = b - size * step, after
    raise ValueError(
        f"calibration did not converge in {_MAX_STEPS} steps; the logits reach from {x_NK.min():.3g} to {x_NK.max():.3g}"
    )


@dataclass(frozen=True)
class Calibration:
    """What `trm calibrate` found for one checkpoint, and `trm export` puts into the graph.

    Attributes:
        checkpoint: the folder's name, "step-000364".
        split: the rows it was fitted on.
        negative_rate: share of negatives that the log kept; 1 for all.
        tasks: binary tasks by name.
        metrics: split -> task -> "before" and "after" -> metric -> value.
    """

    checkpoint: str
    split: str
    method: Method
    negative_rate: float
    tasks: Mapping[str, Affine]
    metrics: Mapping[str, Any]

    def save(self, run: Path) -> None:
        partial = run / f"{FILE}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        partial.replace(run / FILE)

    @classmethod
    def load(cls, run: Path) -> "Calibration | None":
        """That of a run; None where there is none.

        Raises:
            ValueError: for a file that is none.
        """
        path = run / FILE
        if not path.exists():
            return None
        try:
            raw = json.loads(path.read_text())
            tasks = {name: Affine(**one) for name, one in raw.pop("tasks").items()}
            return cls(**raw, tasks=tasks)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: not a calibration ({error}); remove it, or run trm calibrate again") from None
