"""Attention of one query, the candidate, over events.

Shapes in names: B batch, K events, E width, H heads, W width of a head.

There is one query per row, so the projections of keys and values are moved out of the sum over events:
`<W_k v, q> = <v, W_k^T q>` and `sum_j w_j W_v v_j = W_v sum_j w_j v_j`. The numbers are the same, and neither projected keys nor
projected values, [B, K, H * W] each, are ever made.
"""

import torch
from torch import Tensor, nn

from torchrec_models.layers.linear import Linear


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis where `mask` is True and 0 elsewhere; all 0 where nothing is."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(dim=-1) * mask


def weighted_sum(weights_BK: Tensor, values_BKE: Tensor) -> Tensor:
    """[B, E]."""
    return (weights_BK[:, None, :] @ values_BKE).squeeze(1)


class MultiHeadTargetAttention(nn.Module):
    """`W_o [head_1; ...; head_H]`, `head_h = sum_j softmax_j(<W_q t, W_k v_j> / sqrt(W)) W_v v_j`; zero where no event is.

    The target attention of SIM (Pi et al., CIKM 2020, arXiv 2006.05639, eq. 5) without biases, as in reczoo/FuxiCTR,
    `fuxictr/pytorch/layers/attentions/target_attention.py`.

    Args:
        width: E, of candidate, events and result.
        attention_width: H * W.
        num_heads: H.

    Shapes: `target_BE`, `values_BKE`, `mask_BK` bool -> `[B, E]`.

    Raises:
        ValueError: an attention_width that num_heads does not divide.
    """

    def __init__(self, width: int, *, attention_width: int, num_heads: int) -> None:
        super().__init__()
        if attention_width % num_heads:
            raise ValueError(f"num_heads {num_heads} must divide attention_width {attention_width}")
        self.num_heads = num_heads
        self.head_width = attention_width // num_heads
        self.query = Linear(width, attention_width, bias=False)
        self.key = Linear(width, attention_width, bias=False)
        self.value = Linear(width, attention_width, bias=False)
        self.out = Linear(attention_width, width, bias=False)

    def forward(self, target_BE: Tensor, values_BKE: Tensor, mask_BK: Tensor) -> Tensor:
        heads = (self.num_heads, self.head_width)
        query_BHW = self.query(target_BE).unflatten(1, heads) * self.head_width**-0.5
        query_BHE = torch.einsum("bhw,hwe->bhe", query_BHW, self.key.weight.unflatten(0, heads))
        weights_BHK = masked_softmax(query_BHE @ values_BKE.transpose(1, 2), mask_BK[:, None, :])
        pooled_BHE = weights_BHK @ values_BKE
        pooled_BHW = torch.einsum("bhe,hwe->bhw", pooled_BHE, self.value.weight.unflatten(0, heads))
        return self.out(pooled_BHW.flatten(1))
