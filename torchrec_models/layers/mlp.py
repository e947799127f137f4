"""The multilayer perceptron of every ranking net and tower.

Shapes: B batch, C channels (the width of a layer).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .activations import LEARNED
from .dropout import MAX_DROPOUT, dropout, relu_dropout_
from .linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "leaky_relu": functional.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


class MLP(nn.Module):
    """Blocks of Linear -> BatchNorm -> activation -> Dropout, then an optional Linear output layer.

    The block order and the initialisation (Xavier-normal weights, zero biases) are those of FuxiCTR's `MLP_Block`
    (reczoo/FuxiCTR, `fuxictr/pytorch/layers/blocks/mlp_block.py`), with which the BARS tables were made. Masks: see
    `dropout.py`.

    Args:
        in_width: width of the input.
        hidden_units: width of each block, first to last; may be empty.
        activation: one of `ACTIVATIONS`, or of `LEARNED` (dice, prelu: with weights of their own); default "relu".
        batch_norm: normalise each block's pre-activation over the batch; default False.
        dropout: probability of zeroing an activation, one for all blocks or one per block; default 0.
        out_width: width of a last Linear without norm, activation or dropout; None (default): there is none.

    Shapes: `[B, in_width]` -> `[B, self.out_width]`; without batch_norm any leading axes, `[..., in_width]`.

    Raises:
        ValueError: a width below 1, an unknown activation, a dropout outside [0, MAX_DROPOUT] or not one per block;
            with batch_norm, an input of more than two axes or, in training, of one row.
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
        if activation not in ACTIVATIONS and activation not in LEARNED:
            raise ValueError(f"activation {activation!r} is unknown; choose one of {', '.join([*ACTIVATIONS, *LEARNED])}")
        rates = [dropout] * len(hidden_units) if isinstance(dropout, int | float) else list(dropout)
        if len(rates) != len(hidden_units):
            raise ValueError(f"dropout has {len(rates)} values for {len(hidden_units)} hidden_units; give one or one per block")
        if not all(0 <= rate <= MAX_DROPOUT for rate in rates):
            raise ValueError(f"dropout must lie in [0, {MAX_DROPOUT}], got {dropout}")
        self.in_width = in_width
        self.out_width = widths[-1] if out_width is None else out_width
        self.activation = activation
        self.batch_norm = batch_norm
        self.dropout = tuple(rates)
        self.linears = nn.ModuleList(Linear(i, o) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) if batch_norm else nn.Identity() for width in hidden_units)
        self.learned = nn.ModuleList(LEARNED[activation](width) for width in hidden_units if activation in LEARNED)
        self.out = nn.Identity() if out_width is None else Linear(widths[-1], out_width)

    def extra_repr(self) -> str:
        return f"activation={self.activation}, dropout={self.dropout}"

    def forward(self, x_BC: Tensor) -> Tensor:
        """`[B, in_width]` -> `[B, out_width]`."""
        if self.batch_norm and x_BC.dim() != 2:
            raise ValueError(f"an MLP with batch_norm takes [B, {self.in_width}], got {list(x_BC.shape)}; flatten the leading axes")
        for i, (linear, norm, rate) in enumerate(zip(self.linears, self.norms, self.dropout)):
            x_BC = norm(linear(x_BC))
            if self.learned:
                x_BC = dropout(self.learned[i](x_BC), rate, training=self.training)
            elif self.activation == "relu":
                x_BC = relu_dropout_(x_BC, rate, training=self.training)
            else:
                x_BC = dropout(ACTIVATIONS[self.activation](x_BC), rate, training=self.training)
        return self.out(x_BC)
