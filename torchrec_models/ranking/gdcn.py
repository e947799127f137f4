"""GDCN: a cross network whose every layer is gated.

Wang et al., CIKM 2023, arXiv 2311.04635.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from torchrec_models.layers.dropout import MAX_DROPOUT
from torchrec_models.layers.fields import FlatFields
from torchrec_models.layers.linear import Linear, SplitLinear
from torchrec_models.layers.mlp import MLP
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig

BiasInit = Literal["zeros", "uniform"]


class GatedCrossLayer(nn.Module):
    """`c' = c0 * (W c + b) * sigmoid(G c) + c`: the gate multiplies the cross term, its bias included.

    Shapes:
        (c0 [B, X], c [B, X]) -> [B, X].
    """

    def __init__(self, width: int, *, bias_init: BiasInit) -> None:
        super().__init__()
        self.bias_init = bias_init
        self.cross_and_gate = SplitLinear(width, (width, width), bias=False)
        self.bias_X = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.bias_init == "uniform":
            nn.init.uniform_(self.bias_X)
        else:
            nn.init.zeros_(self.bias_X)

    def forward(self, first_BX: Tensor, x_BX: Tensor) -> Tensor:
        cross_BX, gate_BX = self.cross_and_gate(x_BX).chunk(2, dim=1)
        return first_BX * (cross_BX + self.bias_X) * gate_BX.sigmoid() + x_BX


class GDCN(Net):
    """Parallel (GDCN-P): `w [cross(x); MLP(x)] + b`. Stacked (GDCN-S): `MLP(cross(x))`.

    The authors' code (anonctr/GDCN, `models/GDCN.py`): `batch_norm: true, dropout: 0.5, bias_init: uniform`, which is U(0, 1).
    """

    summary = "gated cross layers beside or before an MLP: GDCN-P, GDCN-S (Wang et al., CIKM 2023)"

    class Config(NetConfig):
        structure: Literal["parallel", "stacked"] = "parallel"
        num_layers: int = Field(3, ge=1)
        bias_init: BiasInit = "zeros"
        hidden_units: tuple[int, ...] = Field((400, 400, 400), min_length=1)
        activation: str = "relu"
        batch_norm: bool = False
        dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FlatFields(spec, who="GDCN")
        width = self.fields.out_width
        stacked = config.structure == "stacked"
        self.cross = nn.ModuleList(GatedCrossLayer(width, bias_init=config.bias_init) for _ in range(config.num_layers))
        self.mlp = MLP(
            width,
            config.hidden_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            out_width=spec.num_tasks if stacked else None,
        )
        self.out = None if stacked else Linear(width + self.mlp.out_width, spec.num_tasks)

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs)
        first_BX = crossed_BX = self.fields(inputs)
        for layer in self.cross:
            crossed_BX = layer(first_BX, crossed_BX)
        if self.out is None:
            return self.mlp(crossed_BX)
        return self.out(torch.cat([crossed_BX, self.mlp(first_BX)], dim=1))
