"""DLRM: dense features through a bottom MLP, dot products with the embeddings, a top MLP.

Naumov et al. 2019, arXiv 1906.00091, section 2.1; `facebookresearch/dlrm` for the order of the pairs.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from torchrec_models.layers.fields import FieldStack
from torchrec_models.layers.interaction import DotInteraction
from torchrec_models.layers.mlp import MLP
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class DLRM(Net):
    """`interaction: dot` is the paper's; `cat` concatenates the vectors instead (the form behind BARS's Frappe row)."""

    summary = "bottom MLP, pairwise dot products, top MLP (Naumov et al., 2019)"

    class Config(NetConfig):
        bottom_units: tuple[int, ...] = (512, 256)
        top_units: tuple[int, ...] = (512, 256)
        interaction: Literal["dot", "cat"] = "dot"
        activation: str = "relu"
        batch_norm: bool = False
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FieldStack(spec, who="DLRM", numeric=False)
        width = self.fields.width
        self.bottom = None
        if spec.num_dense:
            self.bottom = MLP(spec.num_dense, (*config.bottom_units, width), activation=config.activation)
        num_vectors = self.fields.num_fields + (self.bottom is not None)
        if config.interaction == "dot" and num_vectors < 2:
            raise ValueError("DLRM with interaction: dot needs two vectors: two features, or one and a numeric one")
        self.dot = DotInteraction(num_vectors) if config.interaction == "dot" else None
        bottom_width = width if self.bottom is not None else 0
        self.top = MLP(
            bottom_width + self.dot.num_pairs if self.dot is not None else num_vectors * width,
            config.top_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            out_width=spec.num_tasks,
        )

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs)
        vectors_BNE = self.fields(inputs)
        bottom_BE = self.bottom(inputs.dense_BD) if self.bottom is not None else None
        if bottom_BE is not None:
            vectors_BNE = torch.cat([bottom_BE[:, None, :], vectors_BNE], dim=1)
        if self.dot is None:
            return self.top(vectors_BNE.flatten(1))
        pairs_BP = self.dot(vectors_BNE)
        return self.top(pairs_BP if bottom_BE is None else torch.cat([bottom_BE, pairs_BP], dim=1))
