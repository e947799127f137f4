"""DIN: a small net scores each event against the candidate.

Zhou et al., KDD 2018, arXiv 1706.06978, eq. 3 and section 5.3.

Shapes in names: B batch, L events, E width, U units of a layer.
"""

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from torchrec_models.layers.activations import LEARNED, Dice
from torchrec_models.layers.dropout import dropout
from torchrec_models.layers.linear import Linear
from torchrec_models.layers.mlp import ACTIVATIONS
from torchrec_models.net import NetConfig

from .encoder import Encoding, History, HistorySpec, SequenceEncoder
from .target_attention import masked_softmax, weighted_sum


class AttentionUnit(nn.Module):
    """`MLP([t; v_j; t - v_j; t * v_j])`, one score per event.

    The first layer's weight `[W_1 W_2 W_3 W_4]` is applied as `(W_1 + W_3) t + (W_2 - W_3) v_j + W_4 (t * v_j)`: the same numbers
    from half of the products, and without the [B, L, 4 E] input. Dice takes its statistics over events, never over padding.

    Shapes: `target_BE`, `values_BLE`, `mask_BL` -> scores `[B, L]`.
    """

    def __init__(self, width: int, units: tuple[int, ...], *, activation: str, rate: float) -> None:
        super().__init__()
        self.activation = activation
        self.rate = rate
        self.first = Linear(4 * width, units[0])
        self.others = nn.ModuleList(Linear(i, o) for i, o in pairwise(units))
        self.learned = nn.ModuleList(LEARNED[activation](u) for u in units) if activation in LEARNED else None
        self.out = Linear(units[-1], 1)

    def forward(self, target_BE: Tensor, values_BLE: Tensor, mask_BL: Tensor) -> Tensor:
        target_UE, value_UE, difference_UE, product_UE = self.first.weight.chunk(4, dim=1)
        x_BLU = values_BLE @ (value_UE - difference_UE).T + (target_BE[:, None, :] * values_BLE) @ product_UE.T
        x_BLU = x_BLU + (target_BE @ (target_UE + difference_UE).T + self.first.bias)[:, None, :]
        x_BLU = self._activate(x_BLU, 0, mask_BL)
        for i, linear in enumerate(self.others, start=1):
            x_BLU = self._activate(linear(x_BLU), i, mask_BL)
        return self.out(x_BLU).squeeze(2)

    def _activate(self, x_BLU: Tensor, i: int, mask_BL: Tensor) -> Tensor:
        if self.learned is None:
            x_BLU = ACTIVATIONS[self.activation](x_BLU)
        elif isinstance(self.learned[i], Dice):
            x_BLU = self.learned[i](x_BLU, mask_BL)
        else:
            x_BLU = self.learned[i](x_BLU)
        return dropout(x_BLU, self.rate, training=self.training)


class DINEncoder(SequenceEncoder):
    """`sum_j a(t, v_j) v_j`, `a` an attention unit.

    The paper leaves the weights as they are, so that the sum tells how strong an interest is. `softmax: true` is what the BARS
    tables and the authors' code do; the latter (zhougr1993/DeepInterestNetwork, `din/model.py`) also has `scale: true` (scores
    divided by sqrt(E)) and `activation: sigmoid`.
    """

    class Config(NetConfig):
        attention_units: tuple[int, ...] = Field((80, 40), min_length=1)
        activation: Literal["dice", "prelu", "relu", "sigmoid", "leaky_relu"] = "dice"
        dropout: float = Field(0.0, ge=0, lt=1)
        softmax: bool = False
        scale: bool = False

    def __init__(self, spec: HistorySpec, config: Config) -> None:
        super().__init__()
        self.out_width = spec.width
        self.softmax = config.softmax
        self.factor = spec.width**-0.5 if config.scale else 1.0
        self.unit = AttentionUnit(spec.width, config.attention_units, activation=config.activation, rate=config.dropout)

    def forward(self, history: History) -> Encoding:
        target_BE, values_BLE, mask_BL = history.target_BE, history.values_BLE, history.mask_BL
        scores_BL = self.unit(target_BE, values_BLE, mask_BL) * self.factor
        weights_BL = masked_softmax(scores_BL, mask_BL) if self.softmax else scores_BL * mask_BL
        return Encoding(weighted_sum(weights_BL, values_BLE), target_BE[:, :0])
