"""MaskNet: every block multiplies its input with a mask computed from the embeddings.

Wang, She and Zhang, DLP-KDD 2021, arXiv 2102.07619.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_models.layers.dropout import MAX_DROPOUT, dropout, relu_dropout_
from torchrec_models.layers.fields import FieldStack
from torchrec_models.layers.linear import Linear
from torchrec_models.layers.mlp import ACTIVATIONS, MLP
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class FieldNorm(nn.Module):
    """LN_EMB: each field's vector normalised, with a scale and a shift of its own. [B, N, E] -> the same."""

    def __init__(self, num_fields: int, width: int) -> None:
        super().__init__()
        self.weight_NE = nn.Parameter(torch.empty(num_fields, width))
        self.bias_NE = nn.Parameter(torch.empty(num_fields, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight_NE)
        nn.init.zeros_(self.bias_NE)

    def forward(self, fields_BNE: Tensor) -> Tensor:
        return F.layer_norm(fields_BNE, (fields_BNE.shape[2],)) * self.weight_NE + self.bias_NE


class MaskBlock(nn.Module):
    """`act(LN(W (mask(v) * h)))` with `mask(v) = W2 relu(W1 v + b1) + b2`; `act` is ReLU in the paper.

    Args:
        mask_in_width: D, of the raw embeddings `v`.
        in_width: z, of what is masked.
        out_width: q.
        reduction_ratio: width of the mask's hidden layer over z; the paper's is above 1, which makes that layer the wider one.
        layer_norm: LN_HID, before the activation.

    Shapes:
        ([B, D], [B, z]) -> [B, q].
    """

    def __init__(
        self,
        mask_in_width: int,
        in_width: int,
        out_width: int,
        *,
        reduction_ratio: float,
        layer_norm: bool,
        activation: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.mask = MLP(mask_in_width, (max(1, int(in_width * reduction_ratio)),), out_width=in_width)
        self.linear = Linear(in_width, out_width, bias=False)
        self.norm = nn.LayerNorm(out_width) if layer_norm else nn.Identity()
        self.activation = activation
        self.dropout = dropout

    def forward(self, embeddings_BD: Tensor, hidden_BZ: Tensor) -> Tensor:
        x_BQ = self.norm(self.linear(self.mask(embeddings_BD) * hidden_BZ))
        if self.activation == "relu":
            return relu_dropout_(x_BQ, self.dropout, training=self.training)
        return dropout(ACTIVATIONS[self.activation](x_BQ), self.dropout, training=self.training)


class MaskNet(Net):
    """Serial: each block reads the one before. Parallel: all read the embeddings, and an MLP reads them side by side.

    Every mask is computed from the raw embeddings; the first masked input is LN_EMB of them.

    Config:
        structure: serial or parallel.
        block_units: width of each block's output.
        hidden_units: of the MLP on top. Default: none in the serial form, (400, 400, 400) in the parallel one, as in the paper.
            BARS: `dnn_hidden_units` are `block_units` in the serial form and `hidden_units` in the parallel one, whose blocks
            are `parallel_num_blocks` times `parallel_block_dim`.
        reduction_ratio: width of a mask's hidden layer over that of the mask; rounded down.
        embedding_layer_norm, layer_norm: LN_EMB and LN_HID (`emb_layernorm`, `net_layernorm` in BARS).
        dropout: after every activation except the masks' own; not in the paper.
    """

    summary = "blocks masked by the row's own embeddings, serial or parallel (Wang et al., DLP-KDD 2021)"

    class Config(NetConfig):
        structure: Literal["serial", "parallel"] = "parallel"
        block_units: tuple[int, ...] = Field((64, 64, 64), min_length=1)
        hidden_units: tuple[int, ...] | None = None
        reduction_ratio: float = Field(2.0, gt=0)
        embedding_layer_norm: bool = True
        layer_norm: bool = True
        activation: str = "relu"
        dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.parallel = config.structure == "parallel"
        self.fields = FieldStack(spec, who="MaskNet")
        width = self.fields.num_fields * self.fields.width
        self.embedding_norm = FieldNorm(self.fields.num_fields, self.fields.width) if config.embedding_layer_norm else nn.Identity()
        in_widths = [width] * len(config.block_units) if self.parallel else [width, *config.block_units[:-1]]
        hidden_units = config.hidden_units
        if hidden_units is None:
            hidden_units = (400, 400, 400) if self.parallel else ()
        self.mlp = MLP(
            sum(config.block_units) if self.parallel else config.block_units[-1],
            hidden_units,
            activation=config.activation,
            dropout=config.dropout,
            out_width=spec.num_tasks,
        )
        self.blocks = nn.ModuleList(
            MaskBlock(
                width,
                in_width,
                out_width,
                reduction_ratio=config.reduction_ratio,
                layer_norm=config.layer_norm,
                activation=config.activation,
                dropout=config.dropout,
            )
            for in_width, out_width in zip(in_widths, config.block_units)
        )

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs)
        fields_BNE = self.fields(inputs)
        embeddings_BD = fields_BNE.flatten(1)
        hidden_BZ = self.embedding_norm(fields_BNE).flatten(1)
        if self.parallel:
            return self.mlp(torch.cat([block(embeddings_BD, hidden_BZ) for block in self.blocks], dim=1))
        for block in self.blocks:
            hidden_BZ = block(embeddings_BD, hidden_BZ)
        return self.mlp(hidden_BZ)
