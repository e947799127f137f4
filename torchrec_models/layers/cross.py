"""Cross networks of DCN v2: `x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`, of order l + 1 in the input; the masked step of DCN v3.

Wang et al., WWW 2021, arXiv 2008.13535; Li et al. 2024, arXiv 2407.13349. Shapes: B batch, D width, R rank, K experts.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from .linear import Linear
from .mlp import ACTIVATIONS

Gate = Literal["softmax", "sigmoid", "constant"]


class CrossNet(nn.Module):
    """Full rank, eq. 1: `W_l` is [D, D].

    Args:
        width: D.
        num_layers: >= 1.

    Shapes:
        [B, D] -> [B, D].
    """

    def __init__(self, width: int, *, num_layers: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(Linear(width, width) for _ in range(num_layers))

    def forward(self, x0_BD: Tensor) -> Tensor:
        x_BD = x0_BD
        for linear in self.linears:
            x_BD = torch.addcmul(x_BD, x0_BD, linear(x_BD))
        return x_BD


class LowRankCrossNet(nn.Module):
    """`W_l = U_l V_l^T` with U_l and V_l of [D, R], eq. 2.

    Args:
        width: D.
        num_layers: >= 1.
        rank: R; D / 4 kept the accuracy of full rank in the paper's production model.

    Shapes:
        [B, D] -> [B, D].
    """

    def __init__(self, width: int, *, num_layers: int, rank: int) -> None:
        super().__init__()
        self.downs = nn.ModuleList(Linear(width, rank, bias=False) for _ in range(num_layers))
        self.ups = nn.ModuleList(Linear(rank, width) for _ in range(num_layers))

    def forward(self, x0_BD: Tensor) -> Tensor:
        x_BD = x0_BD
        for down, up in zip(self.downs, self.ups):
            x_BD = torch.addcmul(x_BD, x0_BD, up(down(x_BD)))
        return x_BD


class MixtureCrossNet(nn.Module):
    """Low-rank experts and a gate, eq. 3 and 4: `x_{l+1} = sum_k G_k(x_l) x_0 * (U_k g(C_k g(V_k^T x_l)) + b_l) + x_l`.

    Args:
        width: D.
        num_layers: >= 1.
        rank: R of each expert.
        num_experts: K.
        activation: g, one of `ACTIVATIONS`.
        gate: softmax over the experts, sigmoid of each, or constant 1.
        shared_gate: one gate for all layers, as in FuxiCTR, DeepCTR and TorchRec; else each layer has its own.

    Shapes:
        [B, D] -> [B, D].

    Raises:
        ValueError: a softmax over one expert, which is always 1.
    """

    def __init__(
        self, width: int, *, num_layers: int, rank: int, num_experts: int, activation: str, gate: Gate, shared_gate: bool
    ) -> None:
        super().__init__()
        if gate == "softmax" and num_experts == 1:
            raise ValueError("a softmax gate over num_experts=1 is always 1; use gate: constant or more experts")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        self.gate = gate
        self.num_experts = num_experts
        num_gates = 0 if gate == "constant" else 1 if shared_gate else num_layers
        self.gates = nn.ModuleList(Linear(width, num_experts, bias=False) for _ in range(num_gates))
        self.layers = nn.ModuleList(_Experts(width, rank, num_experts, activation) for _ in range(num_layers))

    def forward(self, x0_BD: Tensor) -> Tensor:
        x_BD = x0_BD
        for i, experts in enumerate(self.layers):
            x_BD = torch.addcmul(x_BD, x0_BD, experts(x_BD, self._weights(x_BD, i)))
        return x_BD

    def _weights(self, x_BD: Tensor, layer: int) -> Tensor:
        """G: [B, K]."""
        if self.gate == "constant":
            return x_BD.new_ones(x_BD.shape[0], self.num_experts)
        scores_BK = self.gates[layer % len(self.gates)](x_BD)
        return scores_BK.softmax(dim=1) if self.gate == "softmax" else scores_BK.sigmoid()


class _Experts(nn.Module):
    """`sum_k G_k (U_k g(C_k g(V_k^T x)) + b)`. The sum over k is part of the last product: no [B, K, D] is made."""

    def __init__(self, width: int, rank: int, num_experts: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.v_KRD = nn.Parameter(torch.empty(num_experts, rank, width))
        self.c_KRR = nn.Parameter(torch.empty(num_experts, rank, rank))
        self.u_KRD = nn.Parameter(torch.empty(num_experts, rank, width))
        self.bias_D = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weights in (self.v_KRD, self.c_KRR, self.u_KRD):
            for matrix in weights:  # Xavier's fans of a three-dimensional tensor would be those of a convolution
                nn.init.xavier_normal_(matrix)
        nn.init.zeros_(self.bias_D)

    def forward(self, x_BD: Tensor, weights_BK: Tensor) -> Tensor:
        inner_BKR = self.activation(x_BD @ self.v_KRD.flatten(0, 1).t()).unflatten(1, self.v_KRD.shape[:2])
        inner_BKR = self.activation(torch.einsum("bkr,ksr->bks", inner_BKR, self.c_KRR))
        crossed_BD = (inner_BKR * weights_BK[:, :, None]).flatten(1) @ self.u_KRD.flatten(0, 1)
        return crossed_BD + weights_BK.sum(dim=1, keepdim=True) * self.bias_D


def masked_cross(first: Tensor | None, x: Tensor, crossing: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    """`first * ([crossing; crossing * mask] + bias) + x`, with x in the place of `first` where that is None (DCN v3).

    The parts are written into the two halves of the result, never joined, and backward makes them again instead of keeping
    them. Under torch.compile it is the formula itself, which the compiler fuses.

    Shapes:
        first, x: [..., D]; crossing, mask: [..., D / 2]; bias: [D] -> [..., D].
    """
    if torch.compiler.is_compiling():
        gate = torch.cat([crossing, crossing * mask], dim=-1) + bias
        return (x if first is None else first) * gate + x
    return _MaskedCross.apply(first, x, crossing, mask, bias)


class _MaskedCross(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor | None, x: Tensor, crossing: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
        ctx.squares = first is None
        ctx.save_for_backward(x if first is None else first, crossing, mask, bias)
        gate = _gate(torch.empty_like(x), crossing, mask, bias + 1 if first is None else bias)
        return gate.mul_(x) if first is None else torch.addcmul(x, first, gate, out=gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor, crossing, mask, bias = ctx.saved_tensors
        grad_factor = _gate(torch.empty_like(factor), crossing, mask, bias + 1 if ctx.squares else bias).mul_(grad)
        grad_gate = grad * factor
        left, right = grad_gate.chunk(2, dim=-1)
        grad_bias = grad_gate.flatten(0, -2).sum(dim=0)
        grads = torch.addcmul(left, right, mask), right * crossing, grad_bias
        return (None, grad_factor, *grads) if ctx.squares else (grad_factor, grad, *grads)


def _gate(out: Tensor, crossing: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    """Fills `out` with `[crossing; crossing * mask] + bias`."""
    left, right = out.chunk(2, dim=-1)
    bias_left, bias_right = bias.chunk(2)
    torch.add(crossing, bias_left, out=left)
    torch.addcmul(bias_right, crossing, mask, out=right)
    return out
