"""The multilayer perceptron of every ranking net and tower.

Shapes: B batch, C channels (the width of a layer).
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
    "identity": nn.Identity,
}


class Linear(nn.Linear):
    """`nn.Linear` that starts with Xavier-normal weights and zero biases, as every Linear of FuxiCTR does (reczoo/FuxiCTR,
    `fuxictr/pytorch/models/rank_model.py`), with which the BARS tables were made."""

    def reset_parameters(self) -> None:
        nn.init.xavier_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class MLP(nn.Module):
    """Blocks of Linear -> BatchNorm -> activation -> Dropout, then an optional Linear output layer.

    The block order is that of FuxiCTR's `MLP_Block` (reczoo/FuxiCTR, `fuxictr/pytorch/layers/blocks/mlp_block.py`).

    Args:
        in_width: width of the input.
        hidden_units: width of each block, first to last; may be empty.
        activation: one of `ACTIVATIONS`; default "relu".
        batch_norm: normalise each block's pre-activation over the batch; default False.
        dropout: probability of zeroing an activation, one for all blocks or one per block; default 0.
        out_width: width of a last Linear without norm, activation or dropout; None (default): there is none.

    Shapes: `[B, in_width]` -> `[B, self.out_width]`.

    Raises:
        ValueError: a width below 1, an unknown activation, a dropout outside [0, 1) or not one per block.
    """

    def __init__(
        self,
        in_width: int,
        hidden_units: Sequence[int],
        *,
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float | Sequence[float] = 0.0,
        out_width: int | None = None,
    ) -> None:
        super().__init__()
        widths = [in_width, *hidden_units]
        if min(widths) < 1 or (out_width is not None and out_width < 1):
            given = f"in_width={in_width}, hidden_units={list(hidden_units)}, out_width={out_width}"
            raise ValueError(f"the widths of an MLP must be at least 1, got {given}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        rates = [dropout] * len(hidden_units) if isinstance(dropout, int | float) else list(dropout)
        if len(rates) != len(hidden_units):
            raise ValueError(f"dropout has {len(rates)} values for {len(hidden_units)} hidden_units; give one or one per block")
        if not all(0 <= rate < 1 for rate in rates):
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.out_width = widths[-1] if out_width is None else out_width
        self.linears = nn.ModuleList(Linear(i, o) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) if batch_norm else nn.Identity() for width in widths[1:])
        self.activation = ACTIVATIONS[activation]()
        self.dropouts = nn.ModuleList(nn.Dropout(rate) for rate in rates)
        self.out = nn.Identity() if out_width is None else Linear(widths[-1], out_width)

    def forward(self, x_BC: Tensor) -> Tensor:
        """`[B, in_width]` -> `[B, out_width]`."""
        for linear, norm, dropout in zip(self.linears, self.norms, self.dropouts):
            x_BC = dropout(self.activation(norm(linear(x_BC))))
        return self.out(x_BC)
