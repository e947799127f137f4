"""DARE: tables of their own for attention and for representation, so that neither drowns the other's gradient.

Feng et al., ICLR 2025, arXiv 2410.02604, section 4.

Shapes in names: B batch, L events, K events found, E width of representations, A of what attention scores, P and Q widths of a
position in the two roles.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_models.net import NetConfig

from .ages import ages, newest
from .encoder import Encoding, History, HistorySpec, SequenceEncoder
from .search import exact_scores, gather_events, search
from .target_attention import masked_softmax, weighted_sum

POSITION_STD = 0.01  # of the authors' initialisation


class Query(nn.Linear):
    """`W [a_t; a_recent]`, from which training starts with the candidate alone: W = [1 0]."""

    def __init__(self, width: int) -> None:
        super().__init__(2 * width, width, bias=False)

    def reset_parameters(self) -> None:
        nn.init.eye_(self.weight)


class DAREEncoder(SequenceEncoder):
    """`h = sum_j softmax_j(s_j) [r_j; p_age(j)]` over the `top_k` events of the largest scores
    `s_j = <a_t, a_j> / sqrt(A) + <q_0, q_age(j)> / sqrt(Q)`.

    `a` are the vectors of the attention tables, `r` those of the representation tables, `q` and `p` learned vectors of an
    event's age in positions, one set for each role (the candidate's age is 0). The candidate is `[r_t; p_0]`, and the head
    gets `h`, its product with the candidate (`product: true`) and the candidate itself, but for the constant `p_0`.

    In training, a second prediction from the same attention over the *whole* history trains the attention tables densely.
    Padding is never found: the authors' code (thuml/DARE, `model/din_pytorch.py`) lets it into the top K of a history shorter
    than K.

    Args (of `Config`):
        top_k: events that are found.
        auxiliary_weight: of the loss of the second prediction; 0: none.
        position_width, attention_position_width: P and Q; default: the width of the first sequence. 0: no positions.
        scale: `parts` divides the products of the two parts by the roots of their own widths, as the authors' code does;
            `whole` both by sqrt(A + Q), the usual form.
        query: what stands for `a_t`: the candidate (`target`, the paper), the mean `a` of the `num_recent` newest events
            (`recent`), or a learned map of both side by side, at first the candidate (`both`).
        num_recent: newest events in that mean.
        time_constant: events weigh exp(-age / time_constant) times what attention gives them, in the search as well, and in
            the mean. Ages are positions. None: no such factor.
        shared_tables: do without tables of their own for attention; then this is TWIN without projections.

    A history's `intervals`, of width 1, are log weights: each bucket of time learns its own factor, added to the scores.

    Raises:
        ValueError: no `attention` sequences, unless `shared_tables`; with `shared_tables`, such sequences; intervals of a
            width other than 1.
    """

    decouples = True
    takes_intervals = True

    class Config(NetConfig):
        top_k: int = Field(20, ge=1)
        auxiliary_weight: float = Field(1.0, ge=0)
        position_width: int | None = Field(None, ge=0)
        attention_position_width: int | None = Field(None, ge=0)
        scale: Literal["parts", "whole"] = "parts"
        query: Literal["target", "recent", "both"] = "target"
        num_recent: int = Field(10, ge=1)
        time_constant: float | None = Field(None, gt=0)
        shared_tables: bool = False

    def __init__(self, spec: HistorySpec, config: Config) -> None:
        super().__init__()
        if spec.decoupled == config.shared_tables:
            given = "`attention` names sequences" if spec.decoupled else "no `attention` sequences are given"
            raise ValueError(
                f"DARE scores events by tables of their own, and {given} with encoder.shared_tables {config.shared_tables}; "
                "name sequences and fields that read other tables in `attention` and `attention_targets`, or share the tables"
            )
        if spec.interval_width > 1:
            raise ValueError(f"DARE takes intervals as log weights, from one table of width 1; got width {spec.interval_width}")
        self.top_k = config.top_k
        self.auxiliary_weight = config.auxiliary_weight
        self.num_recent = config.num_recent
        self.time_constant = config.time_constant
        self.reads_intervals = spec.interval_width > 0
        self.query = config.query
        self.mix = Query(spec.attention_width) if config.query == "both" else None
        width = spec.widths[0] if config.position_width is None else config.position_width
        attention_width = spec.attention_widths[0] if config.attention_position_width is None else config.attention_position_width
        parts = config.scale == "parts"
        self.semantic_scale = (spec.attention_width + (0 if parts else attention_width)) ** -0.5
        self.position_scale = (max(attention_width, 1) if parts else spec.attention_width + attention_width) ** -0.5
        self.positions_LP = nn.Parameter(torch.empty(spec.max_len + 1, width)) if width else None
        self.attention_positions_LQ = nn.Parameter(torch.empty(spec.max_len + 1, attention_width)) if attention_width else None
        self.position_width = width
        self.out_width = spec.width + width
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in (self.positions_LP, self.attention_positions_LQ):
            if table is not None:
                nn.init.normal_(table, std=POSITION_STD)

    def target(self, history: History) -> Tensor:
        if self.positions_LP is None:
            return history.target_BE
        return torch.cat([history.target_BE, self.positions_LP[0].expand(history.target_BE.shape[0], -1)], dim=1)

    def forward(self, history: History) -> Encoding:
        values_BLE, mask_BL = history.values_BLE, history.mask_BL
        ages_BL = ages(mask_BL)
        with exact_scores(mask_BL):
            scores_BL = self._scores(history, ages_BL)
        found = search(scores_BL, mask_BL, top_k=self.top_k)
        pooled_BE = self._attend(
            scores_BL.gather(1, found.index_BK),
            gather_events(values_BLE, found.index_BK),
            ages_BL.gather(1, found.index_BK),
            found.mask_BK,
        )
        if not (self.training and self.auxiliary_weight):
            return Encoding(pooled_BE, history.target_BE[:, :0])
        return Encoding(pooled_BE, self._attend(scores_BL, values_BLE, ages_BL, mask_BL))

    def _attend(self, scores_BK: Tensor, values_BKE: Tensor, ages_BK: Tensor, mask_BK: Tensor) -> Tensor:
        weights_BK = masked_softmax(scores_BK, mask_BK)
        pooled_BE = weighted_sum(weights_BK, values_BKE)
        if self.positions_LP is None:
            return pooled_BE
        return torch.cat([pooled_BE, weighted_sum(weights_BK, F.embedding(ages_BK, self.positions_LP))], dim=1)

    def _scores(self, history: History, ages_BL: Tensor) -> Tensor:
        query_BA = self._query(history, ages_BL)
        scores_BL = (history.attention_values_BLA @ query_BA[:, :, None]).squeeze(2) * self.semantic_scale
        if self.attention_positions_LQ is not None:  # the same for all rows: a number per age
            by_age_L = self.attention_positions_LQ @ self.attention_positions_LQ[0] * self.position_scale
            scores_BL = scores_BL + by_age_L[ages_BL]
        if self.time_constant is not None:
            scores_BL = scores_BL - ages_BL.to(scores_BL.dtype) / self.time_constant
        if self.reads_intervals:
            scores_BL = scores_BL + history.intervals_BLI.squeeze(2)
        return scores_BL

    def _query(self, history: History, ages_BL: Tensor) -> Tensor:
        if self.query == "target":
            return history.attention_target_BA
        decay = 0.0 if self.time_constant is None else 1 / self.time_constant
        weights_BL = masked_softmax(-decay * ages_BL.to(history.target_BE.dtype), newest(history.mask_BL, self.num_recent))
        recent_BA = weighted_sum(weights_BL, history.attention_values_BLA)
        if self.mix is None:
            return recent_BA
        return self.mix(torch.cat([history.attention_target_BA, recent_BA], dim=1))
