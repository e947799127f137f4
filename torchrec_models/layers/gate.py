"""Mixing what several experts say."""

from collections.abc import Sequence

from torch import Tensor, nn

from .linear import Linear
from .mlp import MLP


class Gate(nn.Module):
    """`sum_k softmax(W x)_k e_k`: a weighted mean of experts whose weights depend on the row.

    Ma et al., KDD 2018 (MMoE), eq. 6-7: the scores are linear and have no bias.

    Args:
        in_width: width of `x`.
        num_experts: how many there are to mix.
        hidden_units: of an MLP before the scores, which then have a bias (reczoo/FuxiCTR, `model_zoo/multitask/MMoE`); empty
            (default): the paper's.
        activation: of that MLP.

    Shapes:
        x [B, X], experts [B, M, K] -> [B, K].
    """

    def __init__(self, in_width: int, num_experts: int, *, hidden_units: Sequence[int] = (), activation: str = "relu") -> None:
        super().__init__()
        self.scores: nn.Module = (
            MLP(in_width, hidden_units, activation=activation, out_width=num_experts)
            if hidden_units
            else Linear(in_width, num_experts, bias=False)
        )

    def forward(self, x_BX: Tensor, experts_BMK: Tensor) -> Tensor:
        weights_BM = self.scores(x_BX).softmax(dim=1)
        return (weights_BM[:, None, :] @ experts_BMK).squeeze(1)
