"""One side of a retriever: everything known about it -> one vector."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_models.layers.fields import masked_mean
from torchrec_models.layers.mlp import MLP
from torchrec_models.net import Inputs, InputSpec, NetConfig


class Tower(nn.Module):
    """MLP over the concatenation of field vectors, numeric features and mean-pooled sequences.

    Args:
        spec: sizes of this side only.
        hidden_units: MLP widths; () makes the output a linear map of the inputs.
        out_width: K, width of the vector.
        normalize: scale the vector to length 1 (dot product = cosine).

    Shapes:
        `Inputs` -> [B, K].
    """

    class Config(NetConfig):
        hidden_units: tuple[int, ...] = (256, 128)
        activation: str = "relu"
        batch_norm: bool = False
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, spec: InputSpec, config: Config, *, out_width: int, normalize: bool) -> None:
        super().__init__()
        self.spec = spec
        self.normalize = normalize
        in_width = spec.num_dense + spec.fields_width + sum(s.width for s in spec.sequences)
        self.mlp = MLP(
            in_width,
            config.hidden_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            out_width=out_width,
        )

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs)
        pooled = [masked_mean(*inputs.sequences[s.name]) for s in self.spec.sequences]
        vector_BK = self.mlp(torch.cat([inputs.dense_BD, inputs.fields_BC, *pooled], dim=1))
        return F.normalize(vector_BK, dim=1) if self.normalize else vector_BK
