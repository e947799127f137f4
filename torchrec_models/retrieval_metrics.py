"""Exact retrieval metrics: ranked lists of ids against the ids that are relevant. Tensors in, Python floats out.

Shapes in names: Q queries, K retrieved per query, R relevant per query. All take optional `weights` [Q] >= 0 and return nan
where no query has a relevant id.
"""

import torch
from torch import Tensor

from .metrics import check_columns, refuse, weighted_mean


def hits(retrieved_QK: Tensor, relevant_QR: Tensor) -> Tensor:
    """[Q, K] bool: whether the k-th retrieved id is relevant to its query.

    Args:
        retrieved_QK: [Q, K] ids, best first; -1 where fewer than K were found.
        relevant_QR: [Q, R] ids, or [Q] where each query has one; -1 pads.

    Raises:
        ValueError: if an id is repeated within a row, which would count it twice.
    """
    if relevant_QR.dim() == 1:
        relevant_QR = relevant_QR[:, None]
    if retrieved_QK.dim() != 2 or relevant_QR.dim() != 2 or len(retrieved_QK) != len(relevant_QR):
        raise ValueError(f"expected [Q, K] and [Q, R] ids, got {list(retrieved_QK.shape)} and {list(relevant_QR.shape)}")
    sorted_QR = relevant_QR.sort(dim=1).values
    for name, sorted_QX in (("retrieved", retrieved_QK.sort(dim=1).values), ("relevant", sorted_QR)):
        repeated = (sorted_QX[:, 1:] == sorted_QX[:, :-1]) & (sorted_QX[:, 1:] >= 0)
        refuse(repeated.any(dim=1), f"{name}: an id is repeated")
    if not relevant_QR.shape[1]:
        return torch.zeros_like(retrieved_QK, dtype=torch.bool)
    place_QK = torch.searchsorted(sorted_QR, retrieved_QK.contiguous()).clamp(max=sorted_QR.shape[1] - 1)
    return (sorted_QR.gather(1, place_QK) == retrieved_QK) & (retrieved_QK >= 0)


def recall_at_k(retrieved_QK: Tensor, relevant_QR: Tensor, *, k: int, weights: Tensor | None = None) -> float:
    """Mean over queries of `relevant ids among the first k / relevant ids`. Queries with no relevant id are left out."""
    num_relevant_Q, hits_QK = _judged(retrieved_QK, relevant_QR, k)
    return _mean_over_queries(hits_QK.sum(1) / num_relevant_Q, weights)


def ndcg_at_k(retrieved_QK: Tensor, relevant_QR: Tensor, *, k: int, weights: Tensor | None = None) -> float:
    """Mean over queries of DCG / ideal DCG, gain 1 per relevant id, discount `1 / log2(rank + 1)` (Järvelin & Kekäläinen 2002)."""
    num_relevant_Q, hits_QK = _judged(retrieved_QK, relevant_QR, k)
    discount_K = 1 / torch.arange(2, k + 2, dtype=torch.float64, device=hits_QK.device).log2()
    ideal_K = discount_K.cumsum(0)
    ideal_Q = ideal_K[(num_relevant_Q.long().clamp(1, k) - 1)]
    return _mean_over_queries(torch.where(num_relevant_Q > 0, hits_QK @ discount_K / ideal_Q, torch.nan), weights)


def mrr(retrieved_QK: Tensor, relevant_QR: Tensor, *, k: int | None = None, weights: Tensor | None = None) -> float:
    """Mean over queries of 1 / rank of the first relevant id, 0 where none is among the first k (default: all retrieved)."""
    num_relevant_Q, hits_QK = _judged(retrieved_QK, relevant_QR, k)
    rank_K = torch.arange(1, hits_QK.shape[1] + 1, dtype=torch.float64, device=hits_QK.device)
    best_Q = (hits_QK / rank_K).amax(1)
    return _mean_over_queries(torch.where(num_relevant_Q > 0, best_Q, torch.nan), weights)


def _judged(retrieved_QK: Tensor, relevant_QR: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """([Q], [Q, k]) float64: number of relevant ids, hits among the first k."""
    hits_QK = hits(retrieved_QK, relevant_QR)
    k = hits_QK.shape[1] if k is None else k
    if not 1 <= k <= hits_QK.shape[1]:
        raise ValueError(f"k={k} with {hits_QK.shape[1]} ids retrieved per query; retrieve at least k, and k >= 1")
    known = relevant_QR >= 0
    return (known.sum(1) if known.dim() == 2 else known).double(), hits_QK[:, :k].double()


def _mean_over_queries(value_Q: Tensor, weights: Tensor | None) -> float:
    """`value_Q` is nan for a query without relevant ids."""
    if weights is not None:
        check_columns(queries=value_Q, weights=weights)
    judged = ~value_Q.isnan()
    return weighted_mean(value_Q[judged], None if weights is None else weights[judged])
