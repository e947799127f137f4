"""SIM with soft search: a bilinear score finds the events that matter, attention reads them.

Pi et al., CIKM 2020, arXiv 2006.05639: general search unit eq. 1-2, exact search unit eq. 4-5.

Shapes in names: B batch, L events, K events found, E width.
"""

import torch
from pydantic import Field

from torchrec_models.layers.linear import Linear
from torchrec_models.net import NetConfig

from .ages import newest
from .encoder import Encoding, History, HistorySpec, SequenceEncoder
from .search import exact_scores, gather_events, search
from .target_attention import MultiHeadTargetAttention, weighted_sum


class SIMEncoder(SequenceEncoder):
    """Search `r_j = <W_b v_j, W_a t>`, then multi-head attention over the `top_k` events of the largest `r_j`.

    The search learns from a loss of its own, on `sum_j r_j v_j` over all events, not normalised. Only events are found, never
    padding: FuxiCTR (`model_zoo/LongCTR/SIM/SIM.py`) multiplies scores with the mask instead, so that padding wins over events
    of negative score. With `num_recent`, a second attention over so many newest events stands beside the result, which is then
    [long; short] of width 2 E.
    """

    class Config(NetConfig):
        top_k: int = Field(50, ge=1)
        attention_width: int = Field(64, ge=1)
        num_heads: int = Field(4, ge=1)
        num_recent: int = Field(0, ge=0)
        auxiliary_weight: float = Field(1.0, gt=0)  # nothing else trains the search

    def __init__(self, spec: HistorySpec, config: Config) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.num_recent = config.num_recent
        self.auxiliary_weight = config.auxiliary_weight
        self.out_width = spec.width * (2 if config.num_recent else 1)
        self.search_target = Linear(spec.width, config.attention_width, bias=False)
        self.search_event = Linear(spec.width, config.attention_width, bias=False)
        sizes = {"attention_width": config.attention_width, "num_heads": config.num_heads}
        self.long = MultiHeadTargetAttention(spec.width, **sizes)
        self.short = MultiHeadTargetAttention(spec.width, **sizes) if config.num_recent else None

    def forward(self, history: History) -> Encoding:
        target_BE, values_BLE, mask_BL = history.target_BE, history.values_BLE, history.mask_BL
        with exact_scores(mask_BL):
            query_BE = self.search_target(target_BE) @ self.search_event.weight
            scores_BL = (values_BLE @ query_BE[:, :, None]).squeeze(2)
        found = search(scores_BL, mask_BL, top_k=self.top_k)
        pooled_BK = self.long(target_BE, gather_events(values_BLE, found.index_BK), found.mask_BK)
        if self.short is not None:
            pooled_BK = torch.cat([pooled_BK, self.short(target_BE, values_BLE, newest(mask_BL, self.num_recent))], dim=1)
        if not self.training:
            return Encoding(pooled_BK, target_BE[:, :0])
        return Encoding(pooled_BK, weighted_sum(scores_BL * mask_BL, values_BLE))
