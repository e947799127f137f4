"""Dropout whose masks are cheap to draw on a CPU.

torch draws one Bernoulli number per element on the CPU, which for a [4096, 400] activation takes longer than the matrix
product that made it. Here one 64-bit word of torch's default generator serves eight elements: each byte is compared with a
threshold. A byte has only 256 values, so each row's threshold is rounded at random, to floor(256 p + U) with U uniform in
[0, 1): every element is dropped with probability p itself (to 2**-24), not with the nearest multiple of 1/256. The
elements of one row share U, which leaves a covariance of at most 2**-18 between their masks; rows are independent.

All randomness comes from torch's default generator, so its saved state reproduces the masks. torch.compile keeps the draw as one
operator and fuses the rest: what Inductor makes of torch's own dropout draws one number at a time on a CPU, and took twice the time
of the whole uncompiled step (DCN v3, QNN-alpha). On other devices and in evaluation these functions are torch's own.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional

MAX_DROPOUT = 0.99


def dropout(x: Tensor, p: float, *, training: bool) -> Tensor:
    """Zero each element with probability `p` <= `MAX_DROPOUT` and divide the others by 1 - p; any shape."""
    if not (training and p > 0 and x.is_cpu):
        return functional.dropout(x, p, training)
    if torch.compiler.is_compiling():
        return x * _keep_mask_operator(x, p) * (1 / (1 - p))
    return _Dropout.apply(x, p)


def relu_dropout_(x: Tensor, p: float, *, training: bool) -> Tensor:
    """`dropout(relu(x))`, which may overwrite `x`: give it a fresh intermediate, such as the output of Linear or BatchNorm.

    The result is saved once, for this backward and for that of the next Linear: where it is 0, so is the gradient.
    """
    if training and p > 0 and x.is_cpu and not torch.compiler.is_compiling():
        return _ReluDropout.apply(x, p)
    return dropout(functional.relu(x), p, training=training)


def keep_mask(x: Tensor, p: float) -> Tensor:
    """int8 of the shape of `x`, which is on the CPU: 0 with probability `p`, else 1."""
    num_words = -(-x.numel() // 8)
    lanes = torch.empty(num_words, dtype=torch.int64).random_(-(2**63), None).view(torch.int8)[: x.numel()].view(x.shape)
    lowest_kept = torch.rand(*x.shape[:-1], 1).add_(256 * p - 128).floor_().to(torch.int8)
    return lanes.ge_(lowest_kept)


# called as it is where nothing compiles: an operator written in Python costs 20 microseconds more
_keep_mask_operator = torch.library.custom_op(
    "torchrec_models::keep_mask", keep_mask, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)


@_keep_mask_operator.register_fake
def _(x: Tensor, p: float) -> Tensor:
    return torch.empty(x.shape, dtype=torch.int8, device=x.device)


class _Dropout(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask = keep_mask(x, p)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - p)
        return torch.mul(x, mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.mul(grad, mask).mul_(ctx.scale), None


class _ReluDropout(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.mark_dirty(x)
        ctx.scale = 1 / (1 - p)
        y = x.relu_().mul_(keep_mask(x, p)).mul_(ctx.scale)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0).mul_(ctx.scale), None
