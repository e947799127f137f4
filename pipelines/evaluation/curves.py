"""The curves behind the report's charts, from labels and scores: exact points, thinned to what an eye can see."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from torchrec_models import metrics as M

from .columns import numbers, optional_numbers


class ScoreCurves(NamedTuple):
    """What the report draws. `histogram_edges` [bins + 1] are probabilities, evenly spaced in the logit; shares sum to 1."""

    reliability: M.Reliability
    histogram_edges: NDArray[np.float64]
    positive_share: NDArray[np.float64]
    negative_share: NDArray[np.float64]
    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]
    precision: NDArray[np.float64]
    num_rows: int


def score_curves(
    labels: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None, num_points: int = 400
) -> ScoreCurves | None:
    """Reliability (20 bins), histogram by class, ROC and precision-recall points. None unless both classes are present."""
    rows = M.BinaryRows(numbers("labels", labels), numbers("scores", scores), weights=optional_numbers(weights))
    if rows.undefined():
        return None
    true_B, false_B = (c.numpy() for c in rows.counts())
    tpr, fpr, precision = true_B / true_B[-1], false_B / false_B[-1], true_B / (true_B + false_B)
    # Evenly along the curve; the points are exact, only fewer.
    kept = np.unique(np.searchsorted(tpr + fpr, np.linspace(0, 2, num_points)).clip(max=len(tpr) - 1))
    logit = torch.logit(rows.scores_N.double(), eps=M.CLIP).numpy()
    low, high = np.quantile(logit, [0.0005, 0.9995])
    edges = np.linspace(low, max(high, low + 1e-3), 41)
    weight = np.ones_like(logit) if rows.weights_N is None else rows.weights_N.numpy()
    y = rows.labels_N.numpy()
    inside = logit.clip(edges[0], edges[-1])  # the outermost bars hold the tails
    shares = [np.histogram(inside, edges, weights=weight * of_class)[0] for of_class in (y, 1 - y)]
    return ScoreCurves(
        reliability=rows.reliability(num_bins=20),
        histogram_edges=1 / (1 + np.exp(-edges)),
        positive_share=shares[0] / shares[0].sum(),
        negative_share=shares[1] / shares[1].sum(),
        false_positive_rate=np.concatenate([[0.0], fpr[kept]]),
        true_positive_rate=np.concatenate([[0.0], tpr[kept]]),
        precision=np.concatenate([precision[kept][:1], precision[kept]]),
        num_rows=len(rows),
    )
