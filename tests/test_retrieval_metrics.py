"""Oracles: scikit-learn's NDCG, closed forms, a loop over queries."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from torchrec_models.retrieval_metrics import hits, mrr, ndcg_at_k, recall_at_k

RETRIEVED = torch.tensor([[5, 3, 9], [1, 2, 3], [7, 8, -1]])


def test_one_relevant_id_per_query():
    relevant = torch.tensor([3, 1, 4])
    assert hits(RETRIEVED, relevant).tolist() == [[False, True, False], [True, False, False], [False, False, False]]
    assert recall_at_k(RETRIEVED, relevant, k=1) == pytest.approx(1 / 3)
    assert recall_at_k(RETRIEVED, relevant, k=2) == pytest.approx(2 / 3)
    assert ndcg_at_k(RETRIEVED, relevant, k=3) == pytest.approx((1 / math.log2(3) + 1) / 3)
    assert mrr(RETRIEVED, relevant) == pytest.approx((1 / 2 + 1) / 3)
    assert mrr(RETRIEVED, relevant, k=1) == pytest.approx(1 / 3)


def test_several_relevant_ids_and_weights():
    relevant = torch.tensor([[3, 5, 11], [4, -1, -1], [-1, -1, -1]])  # the last query has none and is left out
    assert recall_at_k(RETRIEVED, relevant, k=3) == pytest.approx((2 / 3 + 0) / 2)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg_at_k(RETRIEVED, relevant, k=3) == pytest.approx((1 + 1 / math.log2(3)) / ideal / 2)
    assert ndcg_at_k(RETRIEVED, relevant, k=2) == pytest.approx(1 / 2)  # the ideal list is cut at k, too
    assert mrr(RETRIEVED, relevant, weights=torch.tensor([3.0, 1.0, 100.0])) == pytest.approx(3 / 4)


def test_random_lists_equal_a_loop_and_scikit_learn():
    rng = np.random.default_rng(0)
    retrieved = np.stack([rng.permutation(30)[:10] for _ in range(50)])
    relevant = np.stack([rng.permutation(30)[:6] for _ in range(50)])
    got = [f(torch.tensor(retrieved), torch.tensor(relevant), k=5) for f in (recall_at_k, mrr, ndcg_at_k)]
    recall = np.mean([len(set(a[:5]) & set(b)) / 6 for a, b in zip(retrieved, relevant)])
    first = np.mean([next((1 / (i + 1) for i, x in enumerate(a[:5]) if x in b), 0) for a, b in zip(retrieved, relevant)])
    gain = np.zeros((50, 30))
    score = np.zeros((50, 30))
    for q in range(50):
        gain[q, relevant[q]] = 1
        score[q, retrieved[q]] = np.arange(20, 10, -1)
    assert got == pytest.approx([recall, first, ndcg_score(gain, score, k=5)])


def test_nothing_to_judge_is_nan():
    for relevant in (torch.full((3, 2), -1), torch.zeros(3, 0, dtype=torch.int64)):
        for metric in (recall_at_k, ndcg_at_k, mrr):
            assert math.isnan(metric(RETRIEVED, relevant, k=2))
    empty = torch.zeros(0, 3, dtype=torch.int64)
    assert math.isnan(recall_at_k(empty, torch.zeros(0, dtype=torch.int64), k=1))


@pytest.mark.parametrize(
    ("retrieved", "relevant", "k", "message"),
    [
        (RETRIEVED, torch.tensor([1, 2, 3]), 4, "k=4 with 3 ids retrieved per query"),
        (RETRIEVED, torch.tensor([1, 2, 3]), 0, "k=0"),
        (RETRIEVED, torch.tensor([1, 2]), 1, r"expected \[Q, K\] and \[Q, R\] ids, got \[3, 3\] and \[2, 1\]"),
        (torch.tensor([[1, 2], [4, 4]]), torch.tensor([1, 2]), 1, "retrieved: an id is repeated at row 1"),
        (torch.tensor([[1, 2], [4, 5]]), torch.tensor([[1, 1], [2, 3]]), 1, "relevant: an id is repeated at row 0"),
    ],
)
def test_malformed_lists_are_refused(retrieved, relevant, k, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(retrieved, relevant, k=k)
