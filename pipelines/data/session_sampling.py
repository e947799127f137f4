"""Negatives drawn session by session: every session keeps its positives, and some of its negatives."""

import numpy as np
import torch
from torch import Tensor

from .hashes import hash_integers

_SALT = 0x5345_5353


def check_both_classes(num_positives: int, num_negatives: int) -> None:
    """Raises ValueError if there is nothing to choose between."""
    if not num_positives or not num_negatives:
        raise ValueError(f"train.sampling: needs positives and negatives; there are {num_positives} and {num_negatives}")


class SessionSampling:
    """All positives, and of each session's n negatives k, drawn without replacement, anew in each epoch.

    k = min(n, most), or max(1, round(rate n)). The k negatives with the lowest hashes of (seed, epoch, row) are drawn: which ones
    depends on nothing but these, not on processes or on the order of sessions. The share w = k / n differs between sessions; in a
    session, logit p = logit q - log w, with p the probability among the drawn rows and q the one among all rows (He et al., ADKDD
    2014, section 6.3, session by session), so the loss is told log w for each row.

    Keeps 4 bytes per row and 16 per negative in memory, and three times as much of these while an epoch is drawn.

    Args:
        labels: [N] of one binary task; a row counts as a negative unless its label is 1.
        sessions: [N] int64, equal where the sessions are.
        most: negatives of a session at most.
        rate: share of a session's negatives, instead of `most`.

    Attributes:
        num_rows: of an epoch.
        log_negative_rate: [N] float32, log(k / n) of each row's session; 0 in sessions without negatives.

    Raises:
        ValueError: without positives or negatives.
    """

    def __init__(
        self, labels: np.ndarray, sessions: np.ndarray, *, seed: int, most: int | None = None, rate: float | None = None
    ) -> None:
        assert (most is None) != (rate is None), "one of the two"
        session = np.unique(sessions, return_inverse=True)[1]
        self._seed = seed
        is_negative = labels != 1
        negatives = np.flatnonzero(is_negative)
        check_both_classes(len(labels) - len(negatives), len(negatives))
        num_negatives = np.bincount(session[negatives], minlength=int(session.max()) + 1)
        if most is not None:
            num_drawn = np.minimum(num_negatives, most)
        else:
            assert rate is not None
            num_drawn = np.minimum(num_negatives, np.maximum(1, np.round(rate * num_negatives).astype(np.int64)))
        share = np.where(num_negatives > 0, num_drawn / np.maximum(num_negatives, 1), 1.0)
        self.log_negative_rate: float | Tensor = torch.from_numpy(np.log(share).astype(np.float32)[session])
        has_choice = (num_drawn < num_negatives)[session] & is_negative
        self.row_weights: Tensor | None = None
        self._always = np.flatnonzero(~has_choice)
        rows = np.flatnonzero(has_choice)
        self._rows = rows[np.argsort(session[rows], kind="stable")]  # session by session
        drawn_from, self._session = np.unique(session[self._rows], return_inverse=True)
        sizes = num_negatives[drawn_from]
        position = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._is_drawn = position < np.repeat(num_drawn[drawn_from], sizes)  # of places, once each session is in a random order
        self.num_rows = len(self._always) + int(self._is_drawn.sum())

    def rows(self, epoch: int) -> np.ndarray:
        """[num_rows] int64, growing."""
        of_epoch = int(hash_integers(np.array([epoch]), self._seed ^ _SALT)[0])
        hashes = hash_integers(self._rows, of_epoch)
        keys = (self._session.astype(np.uint64) << np.uint64(32)) | (hashes >> np.uint64(32))
        return np.sort(np.concatenate([self._always, self._rows[np.argsort(keys, kind="stable")[self._is_drawn]]]))
