"""Weighted means over the rows of all processes."""

import torch
import torch.distributed as dist
from torch import Tensor

LossOutput = tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total_weights(weights_BT: Tensor) -> Tensor:
    """[T]: the sum of weights per task over all processes, divided by their number."""
    total_T = weights_BT.sum(dim=0)
    world = num_processes()
    if world > 1:
        total_T = total_T.detach().clone()
        dist.all_reduce(total_T)
        total_T = total_T / world
    return total_T


def weighted_mean(losses_BT: Tensor, weights_BT: Tensor, total_T: Tensor | None = None) -> Tensor:
    """[T]: sum(w * l) / sum(w) per task, the denominator taken over all processes.

    Scaled so that the *average* over processes (which is what DistributedDataParallel and TorchRec's gradient division make
    of gradients) is the mean over all rows. A task without any weight gives 0.

    Args:
        total_T: `total_weights(weights_BT)` where it is known already.
    """
    if total_T is None:
        total_T = total_weights(weights_BT)
    return (losses_BT * weights_BT).sum(dim=0) / total_T.clamp(min=torch.finfo(total_T.dtype).tiny)


def with_value_of_all(mean_T: Tensor) -> Tensor:
    """A `weighted_mean` with the value that it has over the rows of all processes, and the gradient of this process's rows.

    What is not linear in a mean needs it: only then is the average of gradients over processes the gradient over all rows.
    """
    world = num_processes()
    if world == 1:
        return mean_T
    value_T = mean_T.detach().clone()
    dist.all_reduce(value_T)
    return mean_T + (value_T / world - mean_T.detach())


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
