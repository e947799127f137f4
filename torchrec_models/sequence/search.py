"""Finding the events of the largest scores in long histories: the first of two stages (SIM, DARE).

Shapes in names: B batch, L events, K events found, E width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def exact_scores(x: Tensor) -> torch.autocast:
    """A context in which scores keep the precision of the tables under autocast, too: rounding would find other events.

    Reading every event once, such scores are bound by memory, and casting would cost more than it saved.
    """
    return torch.autocast(x.device.type, enabled=False)


class Found(NamedTuple):
    """Attributes:
    index_BK: positions in the history.
    mask_BK: False where a row has fewer than K events; padding is never found.
    """

    index_BK: Tensor
    mask_BK: Tensor


def search(scores_BL: Tensor, mask_BL: Tensor, *, top_k: int) -> Found:
    """The `top_k` events of the largest scores, or all L. No gradient goes through the choice."""
    num_events = scores_BL.shape[1]
    if top_k >= num_events:
        everything = torch.arange(num_events, device=scores_BL.device).expand(mask_BL.shape)
        return Found(everything, mask_BL)
    lowest = torch.finfo(scores_BL.dtype).min
    index_BK = scores_BL.detach().masked_fill(~mask_BL, lowest).topk(top_k, dim=1, sorted=False).indices
    return Found(index_BK, mask_BL.gather(1, index_BK))


def gather_events(values_BLE: Tensor, index_BK: Tensor) -> Tensor:
    """[B, K, E]."""
    if index_BK.shape[1] == values_BLE.shape[1]:
        return values_BLE
    return values_BLE.gather(1, index_BK[:, :, None].expand(-1, -1, values_BLE.shape[2]))
