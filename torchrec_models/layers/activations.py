"""Activations that have weights or statistics of their own, one module per layer; stateless ones are in `mlp.py`.

Shapes: C channels; leading axes are free.
"""

import torch
from torch import Tensor, nn

MOMENTUM, EPSILON = 0.01, 1e-9


class Dice(nn.Module):
    """`p x + (1 - p) alpha x` with `p = sigmoid((x - E[x]) / sqrt(Var[x] + eps))`.

    Zhou et al., KDD 2018, arXiv 1706.06978 (DIN), section 5.3. One alpha per channel, 0 at first. In training, mean and variance
    are those of the batch, in evaluation running ones, as in `BatchNorm1d(affine=False, momentum=0.01, eps=1e-9)`, which
    FuxiCTR takes (reczoo/FuxiCTR, `fuxictr/pytorch/layers/activations.py`).

    Args:
        width: C.

    Shapes: `[..., C]` -> `[..., C]`; `mask` `[...]` bool: positions that count. Padding outside of it, which would pull the
    statistics to what an empty position gives, has no part in them.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha_C = nn.Parameter(torch.empty(width))
        self.register_buffer("running_mean", torch.empty(width))
        self.register_buffer("running_var", torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.alpha_C)
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mean_C, variance_C = self._batch_statistics(x, mask) if self.training else (self.running_mean, self.running_var)
        gate = torch.sigmoid((x - mean_C) * torch.rsqrt(variance_C + EPSILON))
        return x * (gate + (1 - gate) * self.alpha_C)

    def _batch_statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x_NC = x.flatten(0, -2).to(self.running_mean.dtype)
        weights_N1 = torch.ones_like(x_NC[:, :1]) if mask is None else mask.flatten()[:, None].to(x_NC.dtype)
        count = weights_N1.sum()
        mean_C = (x_NC * weights_N1).sum(dim=0) / count.clamp(min=1)
        variance_C = ((x_NC - mean_C).square() * weights_N1).sum(dim=0) / count.clamp(min=1)
        with torch.no_grad():
            step = MOMENTUM * (count > 0).to(count.dtype)  # a batch of empty histories teaches nothing
            self.running_mean.lerp_(mean_C.detach(), step)
            self.running_var.lerp_(variance_C.detach() * count / (count - 1).clamp(min=1), step)
        return mean_C, variance_C


class PReLU(nn.PReLU):
    """One slope for all channels, 0.1 at first (thuml/DARE, `model/base_model_pytorch.py`)."""

    def __init__(self, width: int) -> None:
        super().__init__(num_parameters=1, init=0.1)


LEARNED: dict[str, type[Dice] | type[PReLU]] = {"dice": Dice, "prelu": PReLU}
