"""FESeq: each event's fields meet the row's other fields before the events meet each other.

Yuan et al., Applied Sciences 2024, 14(7):2760. Reference: liuhaozhe6788/FESeq of 2024-03-27, `model_zoo/FESeq/src`.

Shapes in names: B batch, L events, T = L + 1 tokens, N fields of a token, W their width, I width of the intervals, M width of a
token, A width of the pooling.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torchrec_models.layers.attention import InteractingLayer
from torchrec_models.layers.dropout import MAX_DROPOUT, dropout
from torchrec_models.layers.linear import Linear
from torchrec_models.layers.transformer import TransformerBlock
from torchrec_models.net import NetConfig

from .encoder import Encoding, History, HistorySpec, SequenceEncoder
from .tokens import CandidateInterval, Positions, append_candidate, candidate_token, token_mask


class FESeqEncoder(SequenceEncoder):
    """`u_j = Interact([event j; context])`, `o = Refine([u; position; interval])`, pooled by the candidate.

    The candidate is the last token. The interacting layer is AutoInt's, over the fields of one token, scaled, with LayerNorm
    before ReLU; positions and intervals join behind it. Pooling `attention` scores tokens by the candidate's `attention_targets`
    (the authors' output table; default: the history's own table), see `BilinearPooling`.

    With defaults this is the authors' `FESeq_3_eleme`, except for their `seq_pooling_type: weighted_sum` (here `attention`) and
    the head, which here sees the candidate as well.

    Args:
        context: fields that every token gets; default: all but the candidate.
        interaction_layers, interaction_heads: 0 layers: none.
        candidate_layers: interacting layers over the pooling's candidate.
        num_layers, num_heads, layer_norm, causal: of the refiner.
        attention_width: A.
        recompute: keep nothing of the interacting layers for backward but their input; they hold most of the memory.

    Raises:
        ValueError: fields of different widths; a context that is no field; a width that the heads do not divide.
    """

    takes_intervals = True
    decouples_target = True

    class Config(NetConfig):
        context: tuple[str, ...] | None = None
        interaction_layers: int = Field(2, ge=0)
        interaction_heads: int = Field(1, ge=1)
        interaction_dropout: float = Field(0.1, ge=0, le=MAX_DROPOUT)
        candidate_layers: int = Field(0, ge=0)
        position: bool = True
        num_layers: int = Field(1, ge=1)
        num_heads: int = Field(8, ge=1)
        layer_norm: bool = False
        causal: bool = True
        pooling: Literal["attention", "target", "mean", "sum"] = "attention"
        attention_width: int = Field(128, ge=1)
        attention_dropout: float = Field(0.1, ge=0, le=MAX_DROPOUT)
        dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)
        recompute: bool = True

    def __init__(self, spec: HistorySpec, config: Config) -> None:
        super().__init__()
        self.field_width = spec.widths[0]
        columns = _context_columns(spec, config.context)
        self.num_fields = len(spec.widths) + len(columns) // self.field_width
        self.all_context = len(columns) == sum(f.width for f in spec.context)
        self.columns: Tensor
        self.register_buffer("columns", torch.empty(len(columns), dtype=torch.int64), persistent=False)
        self._columns = columns
        self.reset_parameters()
        self.interaction = self._interacting(config, config.interaction_layers)
        self.candidate_interaction = self._interacting(config, config.candidate_layers)
        self.positions = Positions(spec.max_len, self.field_width) if config.position else None
        self.candidate_interval = CandidateInterval(spec.interval_width) if spec.interval_width else None
        self.out_width = self.num_fields * self.field_width + config.position * self.field_width + spec.interval_width
        self.refiner = nn.ModuleList(
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
        self.pooling = config.pooling
        self.attention = None
        if config.pooling == "attention":
            self.attention = BilinearPooling(
                self.out_width,
                spec.attention_target_width,
                config.attention_width,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
            )
        self.recompute = config.recompute

    def reset_parameters(self) -> None:
        if not self.columns.is_meta:
            self.columns.copy_(torch.tensor(self._columns, dtype=torch.int64))

    def _interacting(self, config: Config, num_layers: int) -> nn.Sequential:
        return nn.Sequential(
            *[
                InteractingLayer(
                    self.field_width,
                    self.field_width,
                    num_heads=config.interaction_heads,
                    scale=True,
                    layer_norm="pre_relu",
                    residual="identity",
                    dropout=config.interaction_dropout,
                )
                for _ in range(num_layers)
            ]
        )

    def forward(self, history: History) -> Encoding:
        lengths_B = history.mask_BL.sum(dim=1)
        context_BX = history.context_BX if self.all_context else history.context_BX.index_select(1, self.columns)
        of_tokens = (history.values_BLE, history.target_BE, context_BX, history.intervals_BLI, lengths_B)
        if self.recompute and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            tokens_BTM = checkpoint(self._tokens, *of_tokens, use_reentrant=False)
        else:
            tokens_BTM = self._tokens(*of_tokens)
        mask_BT = token_mask(lengths_B, tokens_BTM.shape[1])
        for block in self.refiner:
            tokens_BTM = block(tokens_BTM, mask_BT)
        pooled_BM = self._pool(tokens_BTM, mask_BT, lengths_B, history.attention_target_BA)
        return Encoding(pooled_BM, pooled_BM[:, :0])

    def _tokens(
        self, values_BLE: Tensor, target_BE: Tensor, context_BX: Tensor, intervals_BLI: Tensor, lengths_B: Tensor
    ) -> Tensor:
        events_BTE = append_candidate(values_BLE, target_BE, lengths_B)
        num_tokens = events_BTE.shape[1]
        fields_BTC = torch.cat([events_BTE, context_BX[:, None].expand(-1, num_tokens, -1)], dim=2)
        parts = [self.interaction(fields_BTC.unflatten(2, (self.num_fields, self.field_width))).flatten(2)]
        if self.positions is not None:
            parts.append(self.positions(lengths_B, num_tokens))
        if self.candidate_interval is not None:
            parts.append(self.candidate_interval(intervals_BLI, lengths_B))
        return torch.cat(parts, dim=2)

    def _pool(self, tokens_BTM: Tensor, mask_BT: Tensor, lengths_B: Tensor, candidate_BA: Tensor) -> Tensor:
        if self.attention is not None:
            fields_BNW = candidate_BA.unflatten(1, (-1, self.field_width)) if len(self.candidate_interaction) else candidate_BA
            return self.attention(tokens_BTM, mask_BT, self.candidate_interaction(fields_BNW).flatten(1))
        if self.pooling == "target":
            return candidate_token(tokens_BTM, lengths_B)
        total_BM = torch.where(mask_BT[:, :, None], tokens_BTM, 0.0).sum(dim=1)
        return total_BM / (lengths_B[:, None] + 1) if self.pooling == "mean" else total_BM


class BilinearPooling(nn.Module):
    """`q, k_j, v_j = p(W_q i), p(W_k o_j), p(W_v o_j)`, `a = softmax_j(k_j' W q / sqrt(A))`, `p(W_o sum_j a_j v_j + b)`.

    p is one PReLU for all, W starts as the identity.

    Args:
        width: M of the tokens, and of the result.
        candidate_width: of i.
        attention_width: A.

    Shapes:
        tokens [B, T, M], mask [B, T] bool with one True per row at least, candidate [B, candidate_width] -> [B, M].
    """

    def __init__(
        self, width: int, candidate_width: int, attention_width: int, *, dropout: float = 0.0, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.query = Linear(candidate_width, attention_width, bias=False)
        self.key = Linear(width, attention_width, bias=False)
        self.value = Linear(width, attention_width, bias=False)
        self.out = Linear(attention_width, width)
        self.prelu = nn.PReLU(init=0.1)  # of the authors' code
        self.kernel = nn.Parameter(torch.empty(attention_width, attention_width))
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.eye_(self.kernel)

    def forward(self, tokens_BTM: Tensor, mask_BT: Tensor, candidate_BC: Tensor) -> Tensor:
        key_BTA, value_BTA, query_BA = (
            dropout(self.prelu(x), self.dropout, training=self.training)
            for x in (self.key(tokens_BTM), self.value(tokens_BTM), self.query(candidate_BC))
        )
        asked_BA = query_BA @ self.kernel.T / self.kernel.shape[0] ** 0.5
        scores_BT = (key_BTA @ asked_BA[:, :, None])[:, :, 0]
        weights_BT = scores_BT.masked_fill(~mask_BT, torch.finfo(scores_BT.dtype).min).softmax(dim=1)
        weights_BT = F.dropout(weights_BT, self.attention_dropout, self.training)
        return self.prelu(self.out((weights_BT[:, None] @ value_BTA)[:, 0]))


def _context_columns(spec: HistorySpec, names: tuple[str, ...] | None) -> list[int]:
    """Which columns of the context a token gets."""
    known = [f.name for f in spec.context]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"FESeq: no context field {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    chosen = known if names is None else names
    widths = {f"sequence {i + 1}": width for i, width in enumerate(spec.widths)}
    widths |= {f.name: f.width for f in spec.context if f.name in chosen}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} of width {width}" for name, width in widths.items())
        raise ValueError(f"FESeq's tokens need fields of one width, got {listed}; name those to keep in encoder.context")
    columns, start = [], 0
    for field in spec.context:
        columns += list(range(start, start + field.width)) if field.name in chosen else []
        start += field.width
    return columns
