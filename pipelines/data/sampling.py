"""Which rows of the training split an epoch uses: a function of the labels, the seed and the epoch."""

import numpy as np

from .shards import SplitData


class NegativeSampling:
    """All positives and equally many negatives in every epoch, drawn without replacement, anew each time.

    Keeps 9 bytes per row in memory, and as much again while an epoch is drawn.

    Args:
        split: with one binary task. Rows whose label is masked count as negatives.
        rate: share of the negatives.
        positive_fraction: share of positives in an epoch, instead of `rate`.

    Attributes:
        rate: the share of negatives that is drawn indeed.
        num_rows: of an epoch.

    Raises:
        ValueError: a split without positives or negatives; a positive_fraction below the one that is there.
    """

    def __init__(self, split: SplitData, *, seed: int, rate: float | None = None, positive_fraction: float | None = None) -> None:
        labels = split.labels()[:, 0]
        self._positives, self._negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels != 1)
        self._seed = seed
        num_positives, num_negatives = len(self._positives), len(self._negatives)
        if not num_positives or not num_negatives:
            raise ValueError(f"train.sampling: needs positives and negatives; there are {num_positives} and {num_negatives}")
        if positive_fraction is not None:
            rate = num_positives * (1 - positive_fraction) / (positive_fraction * num_negatives)
            if rate > 1:
                raise ValueError(
                    f"train.sampling.positive_fraction: given {positive_fraction:g}; the split has "
                    f"{num_positives / len(labels):.4g} already, and sampling can only raise it"
                )
        assert rate is not None
        self._num_drawn = max(1, round(rate * num_negatives))
        self.rate = self._num_drawn / num_negatives
        self.num_rows = num_positives + self._num_drawn

    def rows(self, epoch: int) -> np.ndarray:
        """[num_rows] int64, growing."""
        random = np.random.default_rng([self._seed, epoch, 0x5341])
        drawn = random.choice(self._negatives, self._num_drawn, replace=False, shuffle=False)
        return np.sort(np.concatenate([self._positives, drawn]))
