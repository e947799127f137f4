"""DCN v2: a cross network, an MLP, or both, one after the other or side by side.

Wang et al., WWW 2021, arXiv 2008.13535, section 3; the structures are those of its figure 1.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from torchrec_models.layers.cross import CrossNet, Gate, LowRankCrossNet, MixtureCrossNet
from torchrec_models.layers.fields import FlatFields
from torchrec_models.layers.linear import Linear
from torchrec_models.layers.mlp import MLP
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class DCNv2(Net):
    """`parallel`: `y = w [cross(x_0); MLP(x_0)] + b`; `stacked`: `w MLP(cross(x_0)) + b`; `cross_only`: `w cross(x_0) + b`.

    `stacked_parallel` (FuxiCTR's): `w [MLP(cross(x_0)); MLP'(x_0)] + b`. The BARS rows "DCN-V2" and "CrossNet-V2" are
    `cross: full` with `parallel` and `cross_only`. Numbers enter x_0 as they are; the paper takes their logarithm.

    Options:
        cross: `full`, `low_rank` (reads `rank`) or `mixture` (reads `rank`, `num_experts`, `expert_activation`, `gate` and
            `shared_gate`), see `layers/cross.py`. `shared_gate: true` matches FuxiCTR's mixture.
        hidden_units: of each MLP.
    """

    summary = "cross network (full, low rank or mixture) and MLP (Wang et al., WWW 2021)"

    class Config(NetConfig):
        structure: Literal["parallel", "stacked", "cross_only", "stacked_parallel"] = "parallel"
        cross: Literal["full", "low_rank", "mixture"] = "full"
        num_layers: int = Field(3, ge=1)
        rank: int = Field(32, ge=1)
        num_experts: int = Field(4, ge=1)
        expert_activation: str = "tanh"
        gate: Gate = "softmax"
        shared_gate: bool = False
        hidden_units: tuple[int, ...] = Field((400, 400, 400), min_length=1)
        activation: str = "relu"
        batch_norm: bool = False
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FlatFields(spec, who="DCNv2")
        width = self.fields.out_width
        self.cross = _cross_net(width, config)
        self.stacked = _mlp(width, config) if config.structure in ("stacked", "stacked_parallel") else None
        self.parallel = _mlp(width, config) if config.structure in ("parallel", "stacked_parallel") else None
        out_width = width if self.stacked is None else self.stacked.out_width
        self.out = Linear(out_width + (0 if self.parallel is None else self.parallel.out_width), spec.num_tasks)

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs)
        x0_BD = self.fields(inputs)
        y_BC = self.cross(x0_BD)
        if self.stacked is not None:
            y_BC = self.stacked(y_BC)
        if self.parallel is not None:
            y_BC = torch.cat([y_BC, self.parallel(x0_BD)], dim=1)
        return self.out(y_BC)


def _cross_net(width: int, config: DCNv2.Config) -> nn.Module:
    if config.cross == "full":
        return CrossNet(width, num_layers=config.num_layers)
    if config.cross == "low_rank":
        return LowRankCrossNet(width, num_layers=config.num_layers, rank=config.rank)
    return MixtureCrossNet(
        width,
        num_layers=config.num_layers,
        rank=config.rank,
        num_experts=config.num_experts,
        activation=config.expert_activation,
        gate=config.gate,
        shared_gate=config.shared_gate,
    )


def _mlp(width: int, config: DCNv2.Config) -> MLP:
    return MLP(width, config.hidden_units, activation=config.activation, batch_norm=config.batch_norm, dropout=config.dropout)
