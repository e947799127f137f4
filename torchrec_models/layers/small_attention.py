"""Attention between few vectors, on a CPU.

torch's softmax over a last axis of ten numbers costs more than the matrix products around it, dropout takes SDPA off its fused
path there, and autograd copies queries, keys and values three times. Here the scores of all heads are one contiguous block,
exponentials are taken of whole vectors of numbers, and backward writes the gradient of all three into one block. The
mathematics is SDPA's; masks of dropout are drawn as in `dropout.py`. torch.compile gets the same steps one by one, which it fuses
to nearly the same speed; SDPA takes twice as long in what it makes.

Shapes in names: B rows, N vectors, A their width, H heads, W = A / H, S = B H, C = 3 A.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from .dropout import dropout as drop
from .dropout import keep_mask

MAX_VECTORS = 64


def suits_small_attention(qkv_BNC: Tensor) -> bool:
    """Few vectors, on a CPU, in float32 or float64, and not while an exporter looks on."""
    return (
        not torch.compiler.is_exporting()
        and qkv_BNC.is_cpu
        and qkv_BNC.shape[-2] <= MAX_VECTORS
        and qkv_BNC.dtype in (torch.float32, torch.float64)
    )


def small_attention(qkv_BNC: Tensor, *, num_heads: int, scale: float, dropout: float) -> Tensor:
    """`dropout(softmax(scale q k^T)) v` of each head.

    Args:
        qkv_BNC: queries, keys and values side by side, the heads of each side by side.
        dropout: of the attention weights; 0 outside training.

    Shapes:
        [B, N, 3 A] -> [B, N, A].
    """
    if torch.compiler.is_compiling():
        return _step_by_step(qkv_BNC, num_heads, scale, dropout)
    return _SmallAttention.apply(qkv_BNC, num_heads, scale, dropout)


def _step_by_step(qkv_BNC: Tensor, num_heads: int, scale: float, dropout: float) -> Tensor:
    query_SNW, key_SNW, value_SNW = qkv_BNC.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)
    scores_SNN = torch.bmm(query_SNW, key_SNW.mT) * scale
    # not softmax, which Inductor would recognise and make an SDPA of
    weights_SNN = (scores_SNN - scores_SNN.detach().amax(dim=2, keepdim=True)).exp()
    weights_SNN = weights_SNN / weights_SNN.sum(dim=2, keepdim=True)
    out_SNW = torch.bmm(drop(weights_SNN, dropout, training=dropout > 0), value_SNW)
    return out_SNW.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)


class _SmallAttention(Function):
    @staticmethod
    def forward(ctx: Any, qkv_BNC: Tensor, num_heads: int, scale: float, dropout: float) -> Tensor:
        num_rows = qkv_BNC.shape[0]
        heads_3BHNW = qkv_BNC.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        query_SNW, key_SNW, value_SNW = heads_3BHNW.flatten(1, 2)
        weights_SNN = torch.bmm(query_SNW, key_SNW.mT).mul_(scale)
        weights_SNN.sub_(weights_SNN.amax(dim=2, keepdim=True)).exp_()
        weights_SNN.div_(weights_SNN.sum(dim=2, keepdim=True))
        kept_SNN = weights_SNN
        mask_SNN = None
        if dropout:
            mask_SNN = keep_mask(weights_SNN, dropout)
            kept_SNN = (weights_SNN * mask_SNN).mul_(1 / (1 - dropout))
        out_BHNW = torch.bmm(kept_SNN, value_SNW).unflatten(0, (num_rows, num_heads))
        ctx.save_for_backward(heads_3BHNW, weights_SNN, mask_SNN)
        ctx.scale, ctx.dropout = scale, dropout
        return out_BHNW.transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BNA: Tensor) -> tuple[Tensor, None, None, None]:
        heads_3BHNW, weights_SNN, mask_SNN = ctx.saved_tensors
        num_heads = heads_3BHNW.shape[2]
        query_SNW, key_SNW, value_SNW = heads_3BHNW.flatten(1, 2)
        grad_SNW = grad_BNA.unflatten(2, (num_heads, -1)).transpose(1, 2).flatten(0, 1)
        grads_3BHNW = torch.empty_like(heads_3BHNW)
        query_grad, key_grad, value_grad = grads_3BHNW.flatten(1, 2)
        kept_SNN = weights_SNN
        grad_SNN = torch.bmm(grad_SNW, value_SNW.mT)
        if mask_SNN is not None:
            kept_SNN = (weights_SNN * mask_SNN).mul_(1 / (1 - ctx.dropout))
            grad_SNN.mul_(mask_SNN).mul_(1 / (1 - ctx.dropout))
        torch.bmm(kept_SNN.mT, grad_SNW, out=value_grad)
        grad_SNN.mul_(weights_SNN)  # softmax backward: w (g - sum w g)
        grad_SNN.sub_(weights_SNN * grad_SNN.sum(dim=2, keepdim=True)).mul_(ctx.scale)
        torch.bmm(grad_SNN, key_SNW, out=query_grad)
        torch.bmm(grad_SNN.mT, query_SNW, out=key_grad)
        return grads_3BHNW.permute(1, 3, 0, 2, 4).flatten(2), None, None, None
