"""Wukong: stacked factorization machines; layer l holds interactions of up to 2^l fields.

Zhang et al., ICML 2024, arXiv 2403.02545.

Shapes in names: B batch, N vectors in, M vectors out, E their width, K rank.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_models.layers.dropout import MAX_DROPOUT
from torchrec_models.layers.fields import FieldStack
from torchrec_models.layers.linear import Linear
from torchrec_models.layers.mlp import MLP
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class FactorizationBlock(nn.Module):
    """FMB: `MLP(LN(vec(X X^T Y)))`, cut into vectors; Y [N, K] is learned, and `X^T Y` comes first.

    Shapes:
        [B, N, E] -> [B, num_out, E].
    """

    def __init__(
        self, num_in: int, num_out: int, width: int, *, rank: int, hidden_units: tuple[int, ...], relu: bool, dropout: float
    ) -> None:
        super().__init__()
        self.num_out = num_out
        self.relu = relu
        self.projection_NK = nn.Parameter(torch.empty(num_in, rank))
        self.norm = nn.LayerNorm(num_in * rank)
        self.mlp = MLP(num_in * rank, hidden_units, dropout=dropout, out_width=num_out * width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.projection_NK)

    def forward(self, x_BNE: Tensor) -> Tensor:
        interactions_BNK = torch.bmm(x_BNE, x_BNE.mT @ self.projection_NK)
        out_BC = self.mlp(self.norm(interactions_BNK.flatten(1)))
        return (F.relu(out_BC) if self.relu else out_BC).unflatten(1, (self.num_out, -1))


class WukongLayer(nn.Module):
    """`LN([FMB(X); W_L X] + Res(X))`; Res is the identity where the numbers of vectors are equal, else linear over them.

    Shapes:
        [B, N, E] -> [B, M, E] with M = num_fmb + num_lcb.
    """

    def __init__(self, num_in: int, width: int, config: "Wukong.Config") -> None:
        super().__init__()
        num_out = config.num_fmb + config.num_lcb
        self.fmb = FactorizationBlock(
            num_in,
            config.num_fmb,
            width,
            rank=config.rank,
            hidden_units=config.fmb_units,
            relu=config.fmb_relu,
            dropout=config.dropout,
        )
        self.lcb = Linear(num_in, config.num_lcb, bias=False)
        self.residual = nn.Identity() if num_in == num_out else Linear(num_in, num_out, bias=config.residual_bias)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BNE: Tensor) -> Tensor:
        x_BEN = x_BNE.mT
        mixed_BME = torch.cat([self.fmb(x_BNE), self.lcb(x_BEN).mT], dim=1)
        return self.norm(mixed_BME + self.residual(x_BEN).mT)


class Wukong(Net):
    """`num_layers` Wukong layers, then an MLP over their vectors side by side.

    Config:
        num_fmb, num_lcb: vectors that each layer's factorization block and linear compression put out.
        rank: K, columns of Y.
        fmb_units: hidden layers of the MLP in each factorization block.
        fmb_relu, residual_bias: ReLU on a factorization block's output, a bias in the residual projection: neither is in the
            paper, both are in FuxiCTR (2026-06-05, `model_zoo/WuKong/src/WuKong.py`), whose `mlp_batch_norm` is `batch_norm`.
        hidden_units, batch_norm: of the MLP on top.
        dropout: in the factorization blocks.
    """

    summary = "stacked factorization machines, orders up to 2^layers (Zhang et al., ICML 2024)"

    class Config(NetConfig):
        num_layers: int = Field(3, ge=1)
        num_fmb: int = Field(16, ge=1)
        num_lcb: int = Field(16, ge=1)
        rank: int = Field(8, ge=1)
        fmb_units: tuple[int, ...] = (128,)
        fmb_relu: bool = False
        residual_bias: bool = False
        hidden_units: tuple[int, ...] = (256,)
        activation: str = "relu"
        batch_norm: bool = False
        dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FieldStack(spec, who="Wukong")
        num_out, width = config.num_fmb + config.num_lcb, self.fields.width
        self.layers = nn.Sequential(
            *(WukongLayer(num_out if i else self.fields.num_fields, width, config) for i in range(config.num_layers))
        )
        self.mlp = MLP(
            num_out * width,
            config.hidden_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            out_width=spec.num_tasks,
        )

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs)
        return self.mlp(self.layers(self.fields(inputs)).flatten(1))
