"""Task weights against their formulas, and what a step without a task does to them."""

import math

import pytest
import torch

from torchrec_models.losses import FixedWeights, RankingLoss, ScheduledWeights, UncertaintyWeights, WeightSchedule
from torchrec_models.schema import Task

TASKS = [Task(name="click"), Task(name="watch", kind="regression", loss_weight=0.5), Task(name="chat", loss_weight=2.0)]
LOSSES = torch.tensor([0.6, 4.0, 0.1])
ALL = torch.tensor([True, True, True])


def test_fixed_weights():
    assert float(FixedWeights(TASKS)(LOSSES, ALL)) == pytest.approx(0.6 + 0.5 * 4 + 2 * 0.1)


def test_schedules_over_steps():
    weighting = ScheduledWeights(
        TASKS,
        {
            "watch": WeightSchedule(kind="linear", from_weight=0.0, from_step=2, to_step=6),
            "chat": WeightSchedule(kind="geometric", from_weight=0.125, to_step=4),
        },
    )
    linear = [0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.5]
    for step, weight in enumerate(linear):
        assert weighting.weights().tolist() == pytest.approx([1, weight, 0.125 * 2 ** min(step, 4)])
        loss = weighting(LOSSES, ALL)
        assert float(loss) == pytest.approx(0.6 + 4 * weight + 0.1 * 0.125 * 2 ** min(step, 4), abs=1e-6)
    assert int(weighting.step) == len(linear)
    weighting.eval()(LOSSES, ALL)
    assert int(weighting.step) == len(linear), "evaluation is no step"
    again = ScheduledWeights(TASKS, {"watch": WeightSchedule(from_weight=0.0, from_step=2, to_step=20)})
    again.load_state_dict({"step": torch.tensor(11)})  # what a checkpoint keeps is the step alone
    assert again.weights().tolist() == pytest.approx([1, 0.25, 2])


def test_cosine_schedule():
    weighting = ScheduledWeights(TASKS, {"chat": WeightSchedule(kind="cosine", from_weight=0.0, to_step=4)})
    for step in range(6):
        assert float(weighting.weights()[2]) == pytest.approx(2 * (1 - math.cos(math.pi * min(step / 4, 1))) / 2, abs=1e-6)
        weighting(LOSSES, ALL)


def test_uncertainty_is_the_likelihood_of_the_paper():
    """Kendall et al., eq. 7: l / (2 s2) + log s for a squared error; eq. 10: l / s2 + log s for a cross-entropy."""
    weighting = UncertaintyWeights(TASKS)
    sigma = torch.tensor([0.5, 1.5, 3.0])
    with torch.no_grad():
        weighting.log_variance_T.copy_(2 * sigma.log())
    expected = 0.6 / 0.25 + math.log(0.5) + 4 / (2 * 2.25) + math.log(1.5) + 0.1 / 9 + math.log(3)
    assert float(weighting(LOSSES, ALL)) == pytest.approx(expected, abs=1e-6)
    assert weighting.weights().tolist() == pytest.approx([4, 0.5 / 2.25, 1 / 9])


def test_uncertainty_comes_to_rest_where_each_task_adds_a_half():
    """d/ds (c e^-s l + s / 2) = 0 where c e^-s l = 1/2: in the mean of a squared error, sigma^2 is that error."""
    weighting = UncertaintyWeights(TASKS)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        weighting(LOSSES, ALL).backward()
        optimizer.step()
    assert (weighting.weights() * LOSSES).tolist() == pytest.approx([0.5] * 3, abs=1e-3)
    assert float(weighting.log_variance_T[1].exp()) == pytest.approx(4.0, abs=0.02)


def test_a_task_that_no_row_has_keeps_its_uncertainty():
    weighting = UncertaintyWeights(TASKS)
    weighting(torch.tensor([0.6, 0.0, 0.1]), torch.tensor([True, False, True])).backward()
    assert weighting.log_variance_T.grad[1] == 0 and weighting.log_variance_T.grad[0] != 0


def test_uncertainty_is_clamped_and_comes_back():
    weighting = UncertaintyWeights(TASKS)
    with torch.no_grad():
        weighting.log_variance_T.fill_(-9)
    weighting(LOSSES, ALL).backward()
    assert weighting.log_variance_T.tolist() == [-5.0] * 3
    assert (weighting.log_variance_T.grad < 0).all(), "the gradient leads back inside"


def test_masked_rows_are_no_task():
    """Through RankingLoss: presence is of weights, not of rows."""
    logits, labels, weights = torch.zeros(4, 3), torch.zeros(4, 3), torch.ones(4, 3)
    weights[:, 2] = 0
    loss_of = RankingLoss(TASKS, weighting=UncertaintyWeights(TASKS))
    with torch.no_grad():
        loss_of.weighting.log_variance_T.fill_(1.0)
    loss, _ = loss_of(logits, labels, weights)
    assert float(loss) == pytest.approx(math.exp(-1) * math.log(2) + 0.5 + 0.5, abs=1e-6)  # click, its s / 2, and watch's
    assert loss_of.shown["weight_watch"] == pytest.approx(0.5 * math.exp(-1))
