"""DCN v3 (FCN): an exponential and a linear cross network, whose layers mask half of their own crossing.

Li et al. 2024, arXiv 2407.13349 (ECN, LCN, Self-Mask, Tri-BCE); for what the text leaves open, the authors' code
(salmon1802/FCN, `src/DCNv3.py`, `src/ECN.py`). Shapes: B batch, H heads, D width of a head's input, K = D / 2.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from torchrec_models.layers.cross import masked_cross
from torchrec_models.layers.dropout import dropout
from torchrec_models.layers.fields import FieldStack
from torchrec_models.layers.linear import Linear
from torchrec_models.losses.auxiliary import AuxiliaryLoss, TriBCE
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig, TrainingOutput


class DCNv3(Net):
    """`y = (y_D + y_S) / 2`, where y_D comes from the ECN and y_S from the LCN; each is the mean over the heads.

    A layer: `c = W x`, `mask = c * ReLU(LN(c))`; ECN: `x <- x * ([c; mask] + b) + x`, of order 2^l;
    LCN: `x <- x_1 * ([c; mask] + b) + x`, of order l + 1. Dropout is on the whole new x.

    Options:
        structure: `full`, or `ecn`: the exponential network alone, which the paper shows as a model of its own.
        num_heads: the vectors are cut into so many heads, which share all weights; features need a dim of 2 * num_heads * k.
            Given embedding_dim d, the authors' code makes tables of d * num_heads.
        batch_norm: over the batch and all channels of a head, one scale per head, as in the authors' code.
        detach_weights: see `TriBCE`; False is the authors' code.
    """

    summary = "exponential and linear cross networks with self-mask, Tri-BCE (Li et al., 2024)"

    class Config(NetConfig):
        structure: Literal["full", "ecn"] = "full"
        num_deep_layers: int = Field(4, ge=1, description="of the ECN")
        num_shallow_layers: int = Field(4, ge=1, description="of the LCN")
        deep_dropout: float = Field(0.1, ge=0, lt=1)
        shallow_dropout: float = Field(0.3, ge=0, lt=1)
        num_heads: int = Field(1, ge=1)
        layer_norm: bool = True
        batch_norm: bool = False
        detach_weights: bool = False

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FieldStack(spec, who="DCNv3")
        if self.fields.width % (2 * config.num_heads):
            needed = f"a dim that 2 * num_heads = {2 * config.num_heads} divides"
            raise ValueError(f"DCNv3 needs {needed}: two views per head; got {self.fields.width}")
        self.num_heads = config.num_heads
        self.detach_weights = config.detach_weights
        width = self.fields.num_fields * self.fields.width // config.num_heads
        self.deep = _CrossNetwork(
            width, spec.num_tasks, config, exponential=True, num_layers=config.num_deep_layers, dropout=config.deep_dropout
        )
        self.shallow = None
        if config.structure == "full":
            self.shallow = _CrossNetwork(
                width,
                spec.num_tasks,
                config,
                exponential=False,
                num_layers=config.num_shallow_layers,
                dropout=config.shallow_dropout,
            )

    def auxiliary_losses(self) -> Sequence[AuxiliaryLoss]:
        return (TriBCE(("deep", "shallow"), detach_weights=self.detach_weights),) if self.shallow is not None else ()

    def forward(self, inputs: Inputs) -> Tensor | TrainingOutput:
        self.spec.check(inputs)
        first_BHD = self.fields(inputs).unflatten(2, (self.num_heads, 2, -1)).permute(0, 2, 3, 1, 4).flatten(2)
        deep_BT = self.deep(first_BHD)
        if self.shallow is None:
            return deep_BT
        shallow_BT = self.shallow(first_BHD)
        logits_BT = 0.5 * (deep_BT + shallow_BT)
        return TrainingOutput(logits_BT, {"deep": deep_BT, "shallow": shallow_BT}) if self.training else logits_BT


class _CrossNetwork(nn.Module):
    """[B, H, D] -> [B, T]: the ECN (`exponential`) or the LCN."""

    def __init__(
        self, width: int, num_tasks: int, config: DCNv3.Config, *, exponential: bool, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.exponential = exponential
        self.dropout = dropout
        self.layers = nn.ModuleList(_CrossLayer(width, config) for _ in range(num_layers))
        self.out = Linear(width, num_tasks)

    def forward(self, first_BHD: Tensor) -> Tensor:
        x_BHD = first_BHD
        for layer in self.layers:
            x_BHD = dropout(layer(None if self.exponential else first_BHD, x_BHD), self.dropout, training=self.training)
        return self.out(x_BHD).mean(dim=1)


class _CrossLayer(nn.Module):
    """`first * ([c; c * ReLU(LN(c))] + b) + x` with `c = W x`; `first` is x where it is None. All [B, H, D]."""

    def __init__(self, width: int, config: DCNv3.Config) -> None:
        super().__init__()
        self.linear = Linear(width, width // 2, bias=False)
        self.batch_norm = nn.BatchNorm1d(config.num_heads) if config.batch_norm else nn.Identity()
        self.layer_norm = nn.LayerNorm(width // 2) if config.layer_norm else nn.Identity()
        self.bias_D = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.bias_D)  # in [0, 1), as in the authors' code: at first a layer multiplies x by 1 to 2

    def forward(self, first_BHD: Tensor | None, x_BHD: Tensor) -> Tensor:
        crossing_BHK = self.batch_norm(self.linear(x_BHD))
        mask_BHK = functional.relu(self.layer_norm(crossing_BHK))
        return masked_cross(first_BHD, x_BHD, crossing_BHK, mask_BHK, self.bias_D)
