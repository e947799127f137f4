"""Behavior Sequence Transformer.

Chen et al., DLP-KDD 2019, arXiv 1905.06874.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from torchrec_models.layers.dropout import MAX_DROPOUT
from torchrec_models.layers.transformer import TransformerBlock
from torchrec_models.net import NetConfig

from .encoder import Encoding, History, HistorySpec, SequenceEncoder
from .tokens import CandidateInterval, Positions, append_candidate, candidate_token, token_mask


class BSTEncoder(SequenceEncoder):
    """Events and the candidate through transformer blocks, each with its position and its distance in time concatenated.

    `x_j = [e_j; position_j; interval_j]`, `O = Block^n(x)`, result: O at the candidate, or O's mean or sum over all tokens.

    In the paper the position *is* the time between event and candidate: name that sequence under the history's `intervals`,
    and set `position: false`. FuxiCTR, behind the BARS tables, concatenates a trainable table of slots (`position: true`), with
    `pooling: target` and `layer_norm: false`. The paper concatenates the outputs of all tokens, whose number must then be
    fixed; that is left out.

    Args:
        position_width: default: the width of the first sequence.
        num_heads: a divisor of the tokens' width. The paper has 8.
        causal: events do not see later ones.

    Raises:
        ValueError: neither position nor intervals; a width that `num_heads` does not divide.
    """

    takes_intervals = True

    class Config(NetConfig):
        num_layers: int = Field(1, ge=1)
        num_heads: int = Field(2, ge=1)
        position: bool = True
        position_width: int | None = Field(None, ge=1)
        pooling: Literal["target", "mean", "sum"] = "target"
        layer_norm: bool = True
        causal: bool = False
        attention_dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)
        dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)

    def __init__(self, spec: HistorySpec, config: Config) -> None:
        super().__init__()
        if not (config.position or spec.interval_width):
            raise ValueError("BST needs to know when an event was: set position: true, or name a sequence under `intervals`")
        position_width = config.position_width or spec.widths[0]
        self.pooling = config.pooling
        self.positions = Positions(spec.max_len, position_width, sinusoids=True) if config.position else None
        self.candidate_interval = CandidateInterval(spec.interval_width) if spec.interval_width else None
        self.out_width = spec.width + spec.interval_width + config.position * position_width
        self.blocks = nn.ModuleList(
            TransformerBlock(
                self.out_width,
                num_heads=config.num_heads,
                attention_dropout=config.attention_dropout,
                dropout=config.dropout,
                layer_norm=config.layer_norm,
                causal=config.causal,
            )
            for _ in range(config.num_layers)
        )

    def forward(self, history: History) -> Encoding:
        lengths_B = history.mask_BL.sum(dim=1)
        parts = [append_candidate(history.values_BLE, history.target_BE, lengths_B)]
        num_tokens = parts[0].shape[1]
        if self.positions is not None:
            parts.append(self.positions(lengths_B, num_tokens))
        if self.candidate_interval is not None:
            parts.append(self.candidate_interval(history.intervals_BLI, lengths_B))
        tokens_BTE, mask_BT = torch.cat(parts, dim=2), token_mask(lengths_B, num_tokens)
        for block in self.blocks:
            tokens_BTE = block(tokens_BTE, mask_BT)
        if self.pooling == "target":
            pooled_BE = candidate_token(tokens_BTE, lengths_B)
        else:
            pooled_BE = torch.where(mask_BT[:, :, None], tokens_BTE, 0.0).sum(dim=1)
        if self.pooling == "mean":
            pooled_BE = pooled_BE / (lengths_B[:, None] + 1)
        return Encoding(pooled_BE, pooled_BE[:, :0])
