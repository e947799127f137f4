"""Hierarchical Sequential Transduction Units.

Zhai et al., ICML 2024, arXiv 2402.17152. Two models go by the name; both are here. Reference: facebookresearch/
generative-recommenders of 2025-06-25, `research/modeling/sequential/hstu.py` and `modules/stu.py`, `modules/positional_encoder.py`.

Shapes in names: B batch, T tokens, E their width, H heads, W width of a head.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torchrec_models.layers.dropout import MAX_DROPOUT, dropout
from torchrec_models.layers.linear import Linear
from torchrec_models.net import NetConfig

from .encoder import Encoding, History, HistorySpec, SequenceEncoder
from .tokens import CandidateInterval, Positions, append_candidate, candidate_token

QUERIES_PER_BLOCK = 128


class HSTUEncoder(SequenceEncoder):
    """Events and the candidate through causal HSTU layers; the result is the candidate's token.

    | `variant` | research (paper) | production |
    |---|---|---|
    | where time and place enter | bias of the scores | vectors added to `sqrt(E) x` |
    | SiLU on | U, V, Q, K | U |
    | scores | q k + bias | q k / sqrt(W) |
    | norms, bias of UVQK | without parameters, none | with, with |
    | output | `W (U * LN(AV)) + b + x` | `W [U; AV; U * LN(AV)] + x` |

    `intervals`, a sequence of bucketed times between each event and the candidate, are optional. In `research` their table has
    `dim: 1` and is the paper's time bias; for the candidate's query it is the paper's exactly, while the query of an earlier
    event gets the time to the candidate, not the time to that query's next event. In `production` they are as wide as the tokens.

    Scores are divided by `max_len + 1`, not by the padded length of the batch: so padding has no effect.

    Args:
        num_heads, head_width: H and W; the default of W is E / H.

    Raises:
        ValueError: a width that `num_heads` does not divide; intervals of a width that the variant cannot take.
    """

    takes_intervals = True

    class Config(NetConfig):
        variant: Literal["research", "production"] = "research"
        num_layers: int = Field(2, ge=1)
        num_heads: int = Field(1, ge=1)
        head_width: int | None = Field(None, ge=1)
        dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)

    def __init__(self, spec: HistorySpec, config: Config) -> None:
        super().__init__()
        width, research = spec.width, config.variant == "research"
        if config.head_width is None and width % config.num_heads:
            raise ValueError(f"HSTU: give head_width, or a num_heads that divides the history's width {width}: {config.num_heads}")
        if spec.interval_width not in (0, 1 if research else width):
            allowed = "dim: 1, one bias per bucket" if research else f"dim: {width}, as wide as the history"
            raise ValueError(f"HSTU, variant: {config.variant}: the intervals' table needs {allowed}; got {spec.interval_width}")
        self.out_width = width
        self.research = research
        self.positions = None if research else Positions(spec.max_len, width)
        self.candidate_interval = CandidateInterval(spec.interval_width) if spec.interval_width else None
        head_width = config.head_width or width // config.num_heads
        self.layers = nn.ModuleList(
            HSTULayer(width, spec.max_len + 1, config.num_heads, head_width, research=research, dropout=config.dropout)
            for _ in range(config.num_layers)
        )

    def forward(self, history: History) -> Encoding:
        lengths_B = history.mask_BL.sum(dim=1)
        x_BTE = append_candidate(history.values_BLE, history.target_BE, lengths_B)
        bias_B1T = x_BTE.new_zeros(1, 1, 1)
        if self.positions is not None:
            x_BTE = x_BTE * self.out_width**0.5 + self.positions(lengths_B, x_BTE.shape[1])
        if self.candidate_interval is not None:
            interval_BTI = self.candidate_interval(history.intervals_BLI, lengths_B)
            if self.research:
                bias_B1T = interval_BTI.transpose(1, 2)
            else:
                x_BTE = x_BTE + interval_BTI
        for layer in self.layers:
            x_BTE = layer(x_BTE, bias_B1T)
        pooled_BE = candidate_token(x_BTE, lengths_B)
        return Encoding(pooled_BE, pooled_BE[:, :0])


class HSTULayer(nn.Module):
    """`[U, V, Q, K] = f(LN(x) W)`, `A = SiLU(Q K^T + bias) / T`, `x + W_o (U * LN(A V))`; A is causal (eq. 1-3).

    Shapes:
        [B, T, E], bias of keys [B or 1, 1, T or 1] -> [B, T, E].
    """

    def __init__(self, width: int, num_tokens: int, num_heads: int, head_width: int, *, research: bool, dropout: float) -> None:
        super().__init__()
        inner = num_heads * head_width
        self.num_heads = num_heads
        self.num_tokens = num_tokens
        self.research = research
        self.scale = 1.0 if research else head_width**-0.5
        self.dropout = dropout
        self.norm_in = nn.LayerNorm(width, eps=1e-6, elementwise_affine=not research)
        self.uvqk = Linear(width, 4 * inner, bias=not research)
        self.norm_out = nn.LayerNorm(inner, eps=1e-6, elementwise_affine=not research)
        self.out = Linear(inner if research else 3 * inner, width, bias=research)
        self.distance_bias = nn.Parameter(torch.empty(num_tokens)) if research else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.distance_bias is not None:
            nn.init.normal_(self.distance_bias, std=0.02)

    def forward(self, x_BTE: Tensor, bias_B1T: Tensor) -> Tensor:
        uvqk = self.uvqk(self.norm_in(x_BTE))
        if self.research:
            u, value, query, key = F.silu(uvqk).chunk(4, dim=2)
        else:
            u, value, query, key = uvqk.chunk(4, dim=2)
            u = F.silu(u)
        query, key, value = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        attended = self._attend(query, key, value, bias_B1T).transpose(1, 2).flatten(2)
        gated = u * self.norm_out(attended)
        out = gated if self.research else torch.cat([u, attended, gated], dim=2)
        return self.out(dropout(out, self.dropout, training=self.training)) + x_BTE

    def _attend(self, query_BHTW: Tensor, key_BHTW: Tensor, value_BHTW: Tensor, bias_B1T: Tensor) -> Tensor:
        """Some queries at a time, against the keys up to them; in training, backward computes their scores anew."""
        blocks = []
        num_tokens = query_BHTW.shape[2]
        for start in range(0, num_tokens, QUERIES_PER_BLOCK):
            stop = min(start + QUERIES_PER_BLOCK, num_tokens)
            of_block = (query_BHTW[:, :, start:stop], key_BHTW[:, :, :stop], value_BHTW[:, :, :stop], bias_B1T[:, :, :stop])
            if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
                blocks.append(checkpoint(self._attend_block, *of_block, use_reentrant=False, preserve_rng_state=False))
            else:
                blocks.append(self._attend_block(*of_block))
        return torch.cat(blocks, dim=2)

    def _attend_block(self, query_BHQW: Tensor, key_BHTW: Tensor, value_BHTW: Tensor, bias_B1T: Tensor) -> Tensor:
        num_queries, num_keys = query_BHQW.shape[2], key_BHTW.shape[2]
        keys_T = torch.arange(num_keys, device=query_BHQW.device)
        distance_QT = keys_T[num_keys - num_queries :, None] - keys_T
        scores_BHQT = query_BHQW @ key_BHTW.transpose(2, 3) * self.scale + bias_B1T[:, None]
        if self.distance_bias is not None:
            scores_BHQT = scores_BHQT + F.embedding(distance_QT.clamp(min=0), self.distance_bias[:, None])[:, :, 0]
        weights_BHQT = torch.where(distance_QT >= 0, F.silu(scores_BHQT) / self.num_tokens, 0.0)
        return weights_BHQT @ value_BHTW
