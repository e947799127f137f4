"""Oracles: torch's own losses, loops over rows in float64, and the formula of TensorFlow Recommenders.

TFRS: tensorflow/recommenders of 2026-01-21, `tasks/retrieval.py` (scores / temperature, then `layers/loss.py`: minus
log(clip(probability, 1e-6, 1)), then accidental hits at -3.4e36, then categorical cross-entropy with reduction SUM).
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torchrec_models.losses import InBatchSoftmax, RankingLoss, weighted_mean
from torchrec_models.schema import Task


def ranking_rows(num_tasks: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(50, num_tasks, generator=random, dtype=torch.float64)
    labels = (torch.rand(50, num_tasks, generator=random) < 0.3).double()
    weights = torch.rand(50, num_tasks, generator=random, dtype=torch.float64)
    return logits.requires_grad_(), labels, weights


def test_weighted_mean_per_task():
    losses, weights = torch.tensor([[1.0, 10.0], [3.0, 20.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert weighted_mean(losses, weights).tolist() == [2.5, 0.0]


def test_one_binary_task_is_torchs_bce():
    logits, labels, weights = ranking_rows(1)
    loss, (losses, out_logits, out_labels, out_weights) = RankingLoss([Task(name="y")])(logits, labels, weights)
    expected = F.binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="sum") / weights.sum()
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(losses, F.binary_cross_entropy_with_logits(logits, labels, reduction="none"))
    assert torch.equal(out_logits, logits) and torch.equal(out_labels, labels) and torch.equal(out_weights, weights)
    assert not losses.requires_grad and not out_logits.requires_grad


def test_positive_weight_weighs_numerator_and_denominator():
    """torch's pos_weight divided by the weights that it makes, so that the loss of a constant prediction stays comparable."""
    logits, labels, weights = ranking_rows(1)
    loss, (_, _, _, out_weights) = RankingLoss([Task(name="y", positive_weight=4.0)])(logits, labels, weights)
    pos_weight = torch.tensor([4.0], dtype=torch.float64)
    total = F.binary_cross_entropy_with_logits(logits, labels, weight=weights, pos_weight=pos_weight, reduction="sum")
    torch.testing.assert_close(loss, total / (weights * (1 + 3 * labels)).sum(), atol=1e-12, rtol=0)
    torch.testing.assert_close(out_weights, weights * (1 + 3 * labels))


def test_tasks_are_summed_with_their_weights_and_masked_apart():
    logits, labels, weights = ranking_rows(3)
    weights[:25, 1] = 0
    labels[:, 2] = torch.linspace(-2, 2, 50)
    tasks = [
        Task(name="a"),
        Task(name="b", positive_weight=2.0, loss_weight=0.5),
        Task(name="c", kind="regression", loss_weight=0.25),
    ]
    loss, (losses, _, _, _) = RankingLoss(tasks)(logits, labels, weights)
    total = 0.0
    for t, task in enumerate(tasks):
        above = below = 0.0
        for i in range(50):
            z, y, w = float(logits.detach()[i, t]), float(labels[i, t]), float(weights[i, t])
            if task.kind == "regression":
                one = (z - y) ** 2
            else:
                one = -math.log(1 / (1 + math.exp(-z))) if y == 1 else -math.log(1 - 1 / (1 + math.exp(-z)))
                w *= task.positive_weight if y == 1 else 1
            assert float(losses[i, t]) == pytest.approx(one, abs=1e-9)
            above, below = above + w * one, below + w
        total += task.loss_weight * above / below
    assert float(loss) == pytest.approx(total, abs=1e-10)


def test_a_task_without_weights_gives_zero_and_no_gradient():
    logits, labels, weights = ranking_rows(2)
    weights[:, 0] = 0
    loss, _ = RankingLoss([Task(name="a"), Task(name="b")])(logits, labels, weights)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None
    assert not logits.grad[:, 0].any() and logits.grad[:, 1].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_lifted(dtype):
    logits, labels, weights = ranking_rows(1)
    half = logits.detach().to(dtype)
    loss, (_, out_logits, _, _) = RankingLoss([Task(name="y")])(half, labels.float(), weights.float())
    assert loss.dtype == out_logits.dtype == torch.float32
    expected = F.binary_cross_entropy_with_logits(half.double(), labels, weight=weights, reduction="sum") / weights.sum()
    assert float(loss) == pytest.approx(float(expected), abs=1e-6)


def test_extreme_logits_stay_finite():
    loss, _ = RankingLoss([Task(name="y")])(torch.tensor([[1e4], [-1e4]]), torch.tensor([[0.0], [1.0]]), torch.ones(2, 1))
    assert loss == 1e4


# --- retrieval --------------------------------------------------------------------------------------------------------


def pairs(num_rows: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit vectors, ids with repetitions, weights."""
    random = torch.Generator().manual_seed(seed)
    query, candidate = (F.normalize(torch.randn(2, num_rows, 3, generator=random, dtype=torch.float64), dim=2)).unbind()
    ids = torch.randint(4, (num_rows,), generator=random)
    assert len(ids.unique()) < num_rows
    weights = 0.5 + torch.rand(num_rows, 1, generator=random, dtype=torch.float64)
    return query.requires_grad_(), candidate.requires_grad_(), ids, weights


def naive_losses(
    query: Tensor, candidate: Tensor, ids: Tensor, weights: Tensor, *, temperature: float, log_q: dict[int, float], mask_hits: bool
) -> list[float]:
    """-log softmax of each row, one term after the other."""
    out = []
    for i in range(len(ids)):
        terms = []
        for j in range(len(ids)):
            hit = mask_hits and ids[i] == ids[j] and weights[i] > 0
            if j != i and (hit or weights[j] == 0):
                continue
            score = float(query[i] @ candidate[j]) / temperature - log_q.get(int(ids[j]), 0.0)
            terms.append((score, j == i))
        own = next(score for score, is_own in terms if is_own)
        out.append(math.log(sum(math.exp(score - own) for score, _ in terms)))
    return out


@pytest.mark.parametrize("mask_hits", [True, False])
@pytest.mark.parametrize("log_q", [True, False])
def test_equals_a_loop_over_pairs(log_q, mask_hits):
    query, candidate, ids, weights = pairs()
    weights[2] = 0
    loss_of = InBatchSoftmax(4, temperature=0.1, log_q=log_q, mask_hits=mask_hits)
    known: dict[int, float] = {}
    if log_q:  # sights in an earlier batch, so that gaps differ
        loss_of(*pairs(seed=1))
        loss_of(*pairs(seed=2))
    loss, (losses, own, ones, out_weights) = loss_of(query, candidate, ids, weights)
    if log_q:
        known = {i: -math.log(float(loss_of.gap_steps[i])) for i in range(4)}
        assert len(set(known.values())) > 1
    expected = naive_losses(query, candidate, ids, weights, temperature=0.1, log_q=known, mask_hits=mask_hits)
    assert losses[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    mean = sum(w * x for w, x in zip(weights[:, 0].tolist(), expected)) / float(weights.sum())
    assert float(loss) == pytest.approx(mean, abs=1e-6)
    positive = [float(query[i] @ candidate[i]) / 0.1 - known.get(int(ids[i]), 0.0) for i in range(6)]
    assert own[:, 0].tolist() == pytest.approx(positive, abs=1e-5)
    assert losses.shape == own.shape == ones.shape == out_weights.shape == (6, 1)


def test_closed_form_of_equal_scores():
    """All scores equal and no correction: log of the number of candidates that are left."""
    ones = torch.ones(5, 2)
    ids = torch.tensor([0, 0, 1, 2, 3])
    _, (losses, *_) = InBatchSoftmax(4, log_q=False)(ones, ones, ids, torch.ones(5, 1))
    assert losses[:, 0].tolist() == pytest.approx([math.log(4)] * 2 + [math.log(5)] * 3)


def test_formula_of_tfrs():
    """TFRS sums the weighted losses where we divide by the sum of weights."""
    query, candidate, ids, weights = pairs()
    loss_of = InBatchSoftmax(4, temperature=0.1)
    loss_of(*pairs(seed=1))
    loss, _ = loss_of(query, candidate, ids, weights)
    with torch.no_grad():
        q, c, w = (x.numpy() for x in (query, candidate, weights[:, 0]))
        probability = (1 / loss_of.gap_steps[ids]).numpy()
    scores = q @ c.T / 0.1 - np.log(np.clip(probability, 1e-6, 1.0))[None, :]
    labels = np.eye(6)
    scores += ((ids[:, None] == ids[None, :]).numpy() - labels) * (np.finfo(np.float32).min / 100)
    top = scores.max(axis=1, keepdims=True)
    cross_entropy = np.log(np.exp(scores - top).sum(axis=1)) + top[:, 0] - np.diag(scores)
    assert float(loss) == pytest.approx(float((w * cross_entropy).sum() / w.sum()), abs=1e-6)


def test_row_of_weight_zero_is_not_there():
    """Neither as a positive, nor as a negative, nor as a sight."""
    query, candidate, ids, weights = pairs(8)
    weights[6:] = 0
    ids[6:] = 3
    results = []
    for rows in (8, 6):
        loss_of = InBatchSoftmax(5)
        query.grad = candidate.grad = None
        loss, (losses, *_) = loss_of(query[:rows], candidate[:rows], ids[:rows], weights[:rows])
        loss.backward()
        assert losses.isfinite().all()
        results.append((loss.detach(), losses[:6], query.grad.clone(), candidate.grad.clone(), loss_of.state_dict()))
    torch.testing.assert_close(*results)


def test_all_weights_zero_gives_zero():
    query, candidate, ids, weights = pairs()
    loss, (losses, *_) = InBatchSoftmax(4)(query, candidate, ids, weights * 0)
    loss.backward()
    assert loss == 0 and losses.isfinite().all() and not query.grad.any() and not candidate.grad.any()


def test_evaluation_neither_corrects_nor_counts():
    query, candidate, ids, weights = pairs()
    loss_of = InBatchSoftmax(4, temperature=0.1)
    loss_of(query, candidate, ids, weights)
    before = {name: value.clone() for name, value in loss_of.state_dict().items()}
    loss, _ = loss_of.eval()(query, candidate, ids, weights)
    torch.testing.assert_close(loss, InBatchSoftmax(4, temperature=0.1, log_q=False)(query, candidate, ids, weights)[0])
    assert all(torch.equal(value, before[name]) for name, value in loss_of.state_dict().items())


def test_bfloat16_vectors_and_autocast_do_not_coarsen_the_scores():
    query, candidate, ids, weights = (x.detach().to(torch.bfloat16) if x.is_floating_point() else x for x in pairs())
    exact = InBatchSoftmax(4, log_q=False)(query.double(), candidate.double(), ids, weights.double())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = InBatchSoftmax(4, log_q=False)(query, candidate, ids, weights.float())[0]
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact), rel=1e-5)


def test_learned_temperature_is_clamped_and_comes_back():
    low, high = InBatchSoftmax.TEMPERATURES
    for bound, start, candidates in ((low, 0.011, [[1.0, 0.0], [0.0, 1.0]]), (high, 0.9, [[0.0, 1.0], [1.0, 0.0]])):
        loss_of = InBatchSoftmax(2, temperature=start, learn_temperature=True, log_q=False)
        optimizer = torch.optim.SGD(loss_of.parameters(), lr=1.0)
        query, candidate = torch.eye(2), torch.tensor(candidates)
        arguments = (query, 0.1 * candidate, torch.arange(2), torch.ones(2, 1))
        with torch.no_grad():
            loss_of.log_temperature += 3 if bound == high else -3
        loss_of(*arguments)[0].backward()
        assert float(loss_of.log_temperature.exp()) == pytest.approx(bound)
        assert loss_of.log_temperature.grad.abs() > 0
        # pairs that are told apart better, or worse, than by chance: the temperature leaves the bound again
        optimizer.zero_grad()
        loss_of(query, 0.1 * candidate.flip(0), torch.arange(2), torch.ones(2, 1))[0].backward()
        optimizer.step()
        inside = float(loss_of.log_temperature.exp())
        assert inside > low if bound == low else inside < high


def test_a_fixed_temperature_is_taken_as_it_is():
    query, candidate, ids, weights = pairs()
    found = InBatchSoftmax(4, temperature=5.0, log_q=False)(query, candidate, ids, weights)[1][0]
    expected = naive_losses(query, candidate, ids, weights, temperature=5.0, log_q={}, mask_hits=True)
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert not InBatchSoftmax(4).log_temperature.requires_grad


def test_a_learned_temperature_starts_within_its_bounds():
    with pytest.raises(ValueError, match=r"stays within \[0.01, 1.0\]; it cannot start at 2.0"):
        InBatchSoftmax(4, temperature=2.0, learn_temperature=True)


def test_estimator_is_algorithm_2():
    """Yi et al. 2019, Algorithm 2, without hashing, one candidate after the other; the step size falls as 1 / sights first."""
    random = np.random.default_rng(0)
    loss_of = InBatchSoftmax(20, step_size=0.2)
    last, gap, sights = np.zeros(20), np.zeros(20), np.zeros(20)
    for t in range(1, 60):
        ids = random.choice(20, size=8, p=np.arange(1, 21) / 210)
        vectors = torch.ones(8, 2)
        loss_of(vectors, vectors, torch.from_numpy(ids), torch.ones(8, 1))
        for i in sorted(set(ids.tolist())):
            sights[i] += 1
            alpha = max(0.2, 1 / sights[i])
            gap[i] = (1 - alpha) * gap[i] + alpha * (t - last[i])
            last[i] = t
    seen = sights > 0
    np.testing.assert_allclose(loss_of.gap_steps.numpy()[seen], gap[seen], rtol=1e-5)
    assert loss_of.step == 59 and np.array_equal(loss_of.last_seen.numpy(), last)


def test_estimator_finds_the_true_frequencies():
    """One over the mean gap is the probability that a batch holds the candidate, 1 - (1 - p)^B; log Q is off by < 0.2."""
    random = np.random.default_rng(0)
    p = 1 / (np.arange(200) + 5)
    p /= p.sum()
    loss_of = InBatchSoftmax(200)
    for _ in range(1000):
        ids = torch.from_numpy(random.choice(200, size=32, p=p))
        loss_of._see(ids)
    wrong = -loss_of.gap_steps.log().numpy() - np.log(1 - (1 - p) ** 32)
    assert np.sqrt((wrong**2).mean()) < 0.15
    assert abs(wrong.mean()) < 0.02
