"""Which rows of the training split an epoch uses: a function of the labels, the seed and the epoch."""

import math
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from torchrec_models.pipelines.config import RunConfig

from .selection import SelectedRows, Selection
from .session_sampling import SessionSampling, check_both_classes
from .shards import Cache, SplitData


class RowSampling(Protocol):
    """A part of the rows of a split for each epoch.

    Attributes:
        num_rows: of an epoch, the same for all.
        log_negative_rate: log of the share of negatives that training sees: one, or [N] float32, one for each row of the split.
        row_weights: [N] float32, by which the weights of the split's rows are multiplied; None for 1.
    """

    num_rows: int
    log_negative_rate: float | Tensor
    row_weights: Tensor | None

    def rows(self, epoch: int) -> np.ndarray:
        """[num_rows] int64, growing; of the split."""


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
        check_both_classes(num_positives, num_negatives)
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
        self.log_negative_rate: float | Tensor = math.log(self.rate)
        self.row_weights: Tensor | None = None
        self.num_rows = num_positives + self._num_drawn

    def rows(self, epoch: int) -> np.ndarray:
        """[num_rows] int64, growing."""
        random = np.random.default_rng([self._seed, epoch, 0x5341])
        drawn = random.choice(self._negatives, self._num_drawn, replace=False, shuffle=False)
        return np.sort(np.concatenate([self._positives, drawn]))


def sampling_of(config: RunConfig, cache: Cache) -> RowSampling | None:
    """What `train.sampling` asks for; None where it asks for nothing.

    Raises:
        ValueError: see `NegativeSampling`, `SessionSampling` and `Selection.open`.
    """
    sampling, seed = config.train.sampling, config.train.seed
    if sampling is None:
        return None
    if sampling.selection:
        return SelectedRows(Selection.open(sampling.selection, config=config, cache=cache))
    split = cache.split("train")
    if not sampling.session:
        return NegativeSampling(split, seed=seed, rate=sampling.negative_rate, positive_fraction=sampling.positive_fraction)
    kept_as = "group" if sampling.session == config.data.group else sampling.session
    return SessionSampling(
        split.labels()[:, 0],
        _codes(split.column(kept_as), sampling.session),
        seed=seed,
        most=sampling.negatives_per_session,
        rate=sampling.negative_rate,
    )


def _codes(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """[N] int64, equal where the values are.

    Raises:
        ValueError: if a value is missing.
    """
    missing = pc.is_null(column, nan_is_null=True).to_numpy()
    if missing.any():
        raise ValueError(
            f"train.sampling.session: column {name!r} has no value in {missing.sum():,} rows of the training split (the first is "
            f"row {missing.argmax() + 1}), so these belong to no session; fill the column in the data, or leave these rows out"
        )
    return column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
