"""Fixed numbers that anyone can make again, as weights and inputs of comparisons with other people's code."""

import torch
from torch import Tensor


def wave(*shape: int, phase: float) -> Tensor:
    """0.5 sin(phase + 1.7 n), n = 0, 1, ... in row-major order; float64."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return 0.5 * torch.sin(phase + 1.7 * n).reshape(shape)
