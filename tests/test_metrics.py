"""Oracles: scikit-learn, all pairs by brute force, closed forms. Properties by hypothesis."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from torchrec_models import metrics

VALUES = ("auc", "average_precision", "log_loss", "normalized_entropy", "wll", "contest_score", "calibration_ratio")


def rows(seed: int, num_rows: int = 500, *, distinct: int | None = None, dtype=torch.float64):
    """Labels, probabilities that predict them a little, weights. `distinct`: so many different scores, hence ties."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 4, num_rows)
    y = rng.random(num_rows) < p
    score = np.clip(p + 0.1 * rng.standard_normal(num_rows), 0.01, 0.99)
    if distinct:
        score = np.round(score * distinct) / distinct
    return torch.tensor(y.astype(np.int64)), torch.tensor(score, dtype=dtype), torch.tensor(rng.gamma(1.0, 1.0, num_rows))


def pairwise_auc(y, s, w) -> float:
    """All pairs of a positive and a negative."""
    y, s, w = (np.asarray(x, dtype=np.float64) for x in (y, s, w))
    pos, neg = y == 1, y == 0
    won = (s[pos][:, None] > s[neg]) + 0.5 * (s[pos][:, None] == s[neg])
    pair = w[pos][:, None] * w[neg]
    return float((won * pair).sum() / pair.sum())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("distinct", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scikit_learn_agrees(weighted, distinct, dtype):
    y, s, w = rows(1, distinct=distinct, dtype=dtype)
    weights = w if weighted else None
    given_ = {"sample_weight": w.numpy()} if weighted else {}
    assert metrics.auc(y, s, weights=weights) == pytest.approx(sk.roc_auc_score(y, s, **given_), abs=1e-12)
    assert metrics.average_precision(y, s, weights=weights) == pytest.approx(sk.average_precision_score(y, s, **given_), abs=1e-12)
    clipped = s.double().clamp(1e-7, 1 - 1e-7)
    assert metrics.log_loss(y, s, weights=weights) == pytest.approx(sk.log_loss(y, clipped, **given_), abs=1e-12)
    assert metrics.rmse(y, s, weights=weights) == pytest.approx(sk.root_mean_squared_error(y, s, **given_), rel=1e-6)
    assert metrics.mae(y, s, weights=weights) == pytest.approx(sk.mean_absolute_error(y, s, **given_), rel=1e-6)


@pytest.mark.parametrize("distinct", [None, 3])
def test_auc_equals_all_pairs(distinct):
    y, s, w = rows(2, 120, distinct=distinct)
    assert metrics.auc(y, s) == pytest.approx(pairwise_auc(y, s, torch.ones(120)), abs=1e-12)
    assert metrics.auc(y, s, weights=w) == pytest.approx(pairwise_auc(y, s, w), abs=1e-12)


def test_counts_are_the_roc_curve():
    y, s, w = rows(3, distinct=20)
    true_B, false_B = metrics.BinaryRows(y, s, weights=w).counts()
    fpr, tpr, _ = sk.roc_curve(y, s, sample_weight=w, drop_intermediate=False)
    torch.testing.assert_close(true_B / true_B[-1], torch.tensor(tpr[1:]))
    torch.testing.assert_close(false_B / false_B[-1], torch.tensor(fpr[1:]))


@pytest.mark.parametrize("weighted", [False, True])
def test_gauc_equals_a_loop_over_users(weighted):
    y, s, w = rows(4, 400, distinct=10)
    users = torch.tensor(np.random.default_rng(5).integers(-3, 60, 400)) * 10**15
    weights = w if weighted else torch.ones(400)
    total, mean, covered, used = 0.0, 0.0, 0.0, 0
    for user in users.unique():
        mine = users == user
        if len(y[mine].unique()) == 2:
            mean += pairwise_auc(y[mine], s[mine], weights[mine]) * float(weights[mine].sum())
            total += float(weights[mine].sum())
            used += 1
    covered = total / float(weights.sum())
    got = metrics.gauc(y, s, users, weights=weights if weighted else None)
    assert got.value == pytest.approx(mean / total, abs=1e-12)
    assert got.coverage == pytest.approx(covered, abs=1e-12)
    assert (got.num_groups, got.num_groups_used) == (len(users.unique()), used)
    assert used < got.num_groups  # else the data would not test the exclusion


def test_gauc_with_fractional_weights_does_not_invent_a_class():
    """Cumulative sums of 0.1 leave 1e-17s behind; a user with negatives only must still be left out."""
    users = torch.arange(1000).repeat_interleave(3)
    y = torch.tensor([0, 1, 0]).repeat(1000)
    y[3:6] = 0
    y[-3:] = 1
    per_group = metrics.BinaryRows(y, torch.rand(3000).double(), weights=torch.full((3000,), 0.1)).per_group_auc(users)
    assert per_group.auc.isnan().nonzero()[:, 0].tolist() == [1, 999]


def test_closed_forms():
    y = torch.tensor([1, 0, 0, 1])
    p = torch.tensor([0.8, 0.4, 0.2, 0.4])
    assert metrics.auc(y, p) == 3.5 / 4
    # Distinct scores .8 (1 of 1 right), .4 (2 of 3), .2: 1/2 * 1 + 1/2 * 2/3.
    assert metrics.average_precision(y, p) == pytest.approx(1 / 2 + 1 / 3)
    positive, negative = -(math.log(0.8) + math.log(0.4)) / 2, -(math.log(0.6) + math.log(0.8)) / 2
    assert metrics.log_loss(y, p) == pytest.approx((positive + negative) / 2, rel=1e-6)
    assert metrics.wll(y, p) == pytest.approx((positive + negative) / 2, rel=1e-6)  # classes are balanced here
    assert metrics.wll(y, p, weights=torch.tensor([1, 5, 5, 1])) == pytest.approx((positive + negative) / 2, rel=1e-6)
    assert metrics.contest_score(y, p) == pytest.approx(0.5 * (5 / 6) + 0.5 / (1 + (positive + negative) / 2), rel=1e-6)
    assert metrics.calibration_ratio(y, p) == pytest.approx(1.8 / 2, rel=1e-6)
    assert metrics.normalized_entropy(y, p) == pytest.approx((positive + negative) / 2 / math.log(2), rel=1e-6)


def test_the_base_rate_model_has_known_values():
    """Predicting the mean: AUC 1/2, AP the mean, NE 1, ECE 0, ratio 1; with the logit shifted to even odds WLL is log 2."""
    y = torch.tensor([1] * 30 + [0] * 70)
    got = metrics.BinaryRows(y, torch.full((100,), 0.3)).metrics()
    assert got["auc"] == 0.5
    assert got["average_precision"] == pytest.approx(0.3)
    assert got["normalized_entropy"] == pytest.approx(1, rel=1e-6)
    assert got["calibration_ratio"] == pytest.approx(1, rel=1e-6)
    assert metrics.ece(y, torch.full((100,), 0.3)) == pytest.approx(0, abs=1e-7)
    assert metrics.wll(y, torch.full((100,), 0.5)) == pytest.approx(math.log(2))


def test_normalized_entropy_against_another_base_rate():
    y, s, w = rows(6)
    mean = float((y * w).sum() / w.sum())
    assert metrics.normalized_entropy(y, s, weights=w, base_rate=mean) == pytest.approx(metrics.normalized_entropy(y, s, weights=w))
    constant = torch.full_like(s, 0.4)
    assert metrics.normalized_entropy(y, constant, base_rate=0.4) == pytest.approx(1)
    with pytest.raises(ValueError, match="base_rate must lie between 0 and 1, got 1"):
        metrics.normalized_entropy(y, s, base_rate=1)


def test_log_loss_is_clipped_at_1e_7():
    assert metrics.log_loss(torch.tensor([1, 0]), torch.tensor([0.0, 1.0])) == pytest.approx(-math.log(1e-7))
    assert metrics.log_loss(torch.tensor([1, 0]), torch.tensor([1.0, 0.0])) == pytest.approx(1e-7, rel=1e-3)


def test_ece_equals_a_loop_over_bins():
    y, s, _ = rows(7, 1000)
    order = s.argsort()
    bins = zip(s[order].view(10, 100), y[order].double().view(10, 100))
    expected = sum(float((a.mean() - b.mean()).abs()) / 10 for a, b in bins)
    assert metrics.ece(y, s, num_bins=10) == pytest.approx(expected, abs=1e-12)


def test_reliability_bins_hold_all_weight_rise_and_keep_ties_together():
    y, s, w = rows(8, distinct=6)
    curve = metrics.BinaryRows(y, s, weights=w).reliability(num_bins=50)
    assert float(curve.weight.sum()) == pytest.approx(float(w.sum()))
    assert (curve.mean_score.diff() > 0).all()
    assert len(curve.weight) <= 7
    for score, label in zip(curve.mean_score, curve.mean_label):
        tied = (s - score).abs() < 1e-9
        assert float(label) == pytest.approx(float((y * w)[tied].sum() / w[tied].sum()))


LABELS_SCORES = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.int64, n, elements=st.integers(0, 1)),
        hnp.arrays(np.int64, n, elements=st.integers(0, 12)),
        hnp.arrays(np.int64, n, elements=st.integers(0, 3)),
        st.permutations(range(n)),
    )
)


@settings(max_examples=60, deadline=None)
@given(LABELS_SCORES)
def test_properties(case):
    """Scores lie on a coarse grid, so ties are common; one-class cases are nan on both sides."""
    y, s, w, order = (torch.tensor(x) for x in case)
    p = (s.double() + 1) / 14
    same = {"nan_ok": True, "abs": 1e-9}
    full = metrics.BinaryRows(y, p, weights=w)
    values = full.metrics() | {"ece": metrics.expected_calibration_error(full.reliability(num_bins=5))}
    # Order of rows.
    permuted = metrics.BinaryRows(y[order], p[order], weights=w[order])
    assert permuted.metrics() == pytest.approx(full.metrics(), **same)
    # Rows of weight 0 have no effect, and a weight of 3 is the row three times.
    copies = metrics.BinaryRows(y.repeat_interleave(w), p.repeat_interleave(w))
    assert copies.metrics() == pytest.approx(full.metrics(), **same)
    assert metrics.expected_calibration_error(copies.reliability(num_bins=5)) == pytest.approx(values["ece"], **same)
    assert (full.undefined() == {}) == (not math.isnan(values["auc"]))
    assert {k for k, v in values.items() if math.isnan(v)} == set(full.undefined()) & set(values)
    # Monotone transforms keep the order; reversing it mirrors the AUC.
    assert metrics.auc(y, torch.special.logit(p), weights=w) == pytest.approx(values["auc"], **same)
    assert metrics.auc(y, -p, weights=w) == pytest.approx(1 - values["auc"], **same)
    # One group is no group; groups as numerous as rows define nothing.
    one = metrics.gauc(y, p, torch.full_like(y, 7), weights=w)
    assert one.value == pytest.approx(values["auc"], **same)
    assert math.isnan(metrics.gauc(y, p, torch.arange(len(y)), weights=w).value)
    groups = s % 3
    assert metrics.gauc(y[order], p[order], groups[order], weights=w[order]) == pytest.approx(
        metrics.gauc(y, p, groups, weights=w), **same
    )


@settings(max_examples=30, deadline=None)
@given(LABELS_SCORES)
def test_resampling_equals_weighting(case):
    y, s, counts, _ = (torch.tensor(x) for x in case)
    p = (s.double() + 1) / 14
    ranked = metrics.BinaryRows(y, p)
    in_sorted_order = counts[ranked.order_N]
    assert ranked.metrics(in_sorted_order) == pytest.approx(
        metrics.BinaryRows(y, p, weights=counts).metrics(), nan_ok=True, abs=1e-9
    )


@pytest.mark.parametrize(
    ("labels", "undefined", "reason"),
    [
        ([1, 1, 1], {"auc", "gauc", "normalized_entropy", "wll", "contest_score"}, "all 3 rows have label 1"),
        (
            [0, 0, 0],
            {"auc", "gauc", "normalized_entropy", "wll", "contest_score", "average_precision", "calibration_ratio"},
            "all 3 rows have label 0",
        ),
        ([], {*metrics.DIRECTION, "calibration_ratio"}, "no rows with weight > 0"),
    ],
)
def test_degenerate_rows_are_nan_with_the_reason(labels, undefined, reason):
    y = torch.tensor(labels, dtype=torch.int64)
    ranked = metrics.BinaryRows(y, torch.full((len(labels),), 0.25))
    assert ranked.undefined() == dict.fromkeys(undefined, reason)
    values = ranked.metrics() | {"ece": metrics.expected_calibration_error(ranked.reliability())}
    assert {k for k, v in values.items() if math.isnan(v)} == undefined & set(values)
    assert math.isnan(ranked.per_group_auc(torch.zeros(len(labels), dtype=torch.int64)).mean().value)
    if not labels:
        assert math.isnan(metrics.rmse(y, y)) and math.isnan(metrics.mae(y, y))


def test_all_weights_zero_is_no_rows():
    ranked = metrics.BinaryRows(torch.tensor([0, 1]), torch.tensor([0.1, 0.2]), weights=torch.zeros(2))
    assert set(ranked.undefined().values()) == {"no rows with weight > 0"}
    assert math.isnan(ranked.metrics()["log_loss"])


def _ok(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([0, 1, 0, 1])[:n], torch.tensor([0.1, 0.4, 0.3, 0.9])[:n]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.tensor([0.1, 0.2, math.nan, math.nan])}, "scores: NaN at row 2 (first of 2 such rows"),
        ({"scores": torch.tensor([0.1, 0.2, 0.3, 1.7])}, "scores: outside [0, 1], so not a probability (a logit?) at row 3"),
        ({"labels": torch.tensor([0.0, 0.5, 1.0, 1.0])}, "labels: neither 0 nor 1 at row 1"),
        ({"labels": torch.tensor([0.0, math.nan, 1.0, 1.0])}, "labels: neither 0 nor 1 at row 1"),
        ({"weights": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "weights: not a finite number >= 0 at row 1"),
        ({"weights": torch.tensor([1.0, 1.0, math.nan, 1.0])}, "weights: not a finite number >= 0 at row 2"),
        ({"weights": torch.ones(3)}, "one value per row expected, got 4 labels, 4 scores, 3 weights"),
        ({"labels": torch.zeros(4, 1)}, "labels: one value per row expected, got shape [4, 1]"),
    ],
)
def test_malformed_input_is_refused_by_name_and_row(change, message):
    labels, scores = _ok()
    given_ = {"labels": labels, "scores": scores, "weights": None} | change
    with pytest.raises(ValueError) as error:
        metrics.BinaryRows(given_["labels"], given_["scores"], weights=given_["weights"])
    assert message in str(error.value)


def test_malformed_groups_bins_and_regression():
    labels, scores = _ok()
    with pytest.raises(ValueError, match=r"groups: one per row expected, got shape \[3\]"):
        metrics.gauc(labels, scores, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="groups: integer ids expected"):
        metrics.gauc(labels, scores, torch.zeros(4))
    with pytest.raises(ValueError, match="num_bins must be >= 1, got 0"):
        metrics.ece(labels, scores, num_bins=0)
    with pytest.raises(ValueError, match="predictions: not a finite number at row 1"):
        metrics.rmse(labels, torch.tensor([0.0, math.inf, 0.0, 0.0]))


def test_infinite_scores_still_rank():
    assert metrics.auc(torch.tensor([0, 1]), torch.tensor([-math.inf, math.inf])) == 1.0
