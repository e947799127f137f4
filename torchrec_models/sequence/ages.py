"""How old events are, in positions. Shapes in names: B batch, L events."""

import torch
from torch import Tensor


def ages(mask_BL: Tensor) -> Tensor:
    """[B, L] int64: 1 for the newest event, 2 for the one before it, ...; 0 where padded."""
    positions_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    return (mask_BL.sum(dim=1, keepdim=True) - positions_L).clamp(min=0)


def newest(mask_BL: Tensor, num_events: int) -> Tensor:
    """[B, L] bool: the mask of each row's last `num_events` events."""
    return mask_BL & (ages(mask_BL) <= num_events)
