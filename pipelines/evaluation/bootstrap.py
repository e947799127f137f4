"""Bootstrap intervals (Efron 1979, percentile method) from resampled row counts, so that nothing is ever sorted again."""

from collections.abc import Callable

import torch
from torch import Tensor


class Draws:
    """Bootstrap counts: how often each of N rows is drawn when N are drawn with replacement."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def spread(
        self, num_rows: int, num_draws: int, measure: Callable[[Tensor], dict[str, float]]
    ) -> dict[str, tuple[float, float]]:
        """Metric -> 2.5 and 97.5 percentiles of `measure(counts)`; resamples where it is nan are left out."""
        if num_draws < 0:
            raise ValueError(f"bootstrap must be >= 0, got {num_draws}")
        if not num_rows or not num_draws:
            return {}
        drawn = []
        for _ in range(num_draws):
            picks = torch.randint(num_rows, (num_rows,), generator=self.generator)
            drawn.append(measure(torch.bincount(picks, minlength=num_rows)))
        quantiles = torch.tensor([0.025, 0.975], dtype=torch.float64)
        values = {k: torch.tensor([d[k] for d in drawn], dtype=torch.float64) for k in drawn[0]}
        ends = {k: torch.nanquantile(v, quantiles).tolist() for k, v in values.items()}
        return {k: (low, high) for k, (low, high) in ends.items()}
