"""What nets add to their loss, against closed forms in float64, written out task by task."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from torchrec_models.losses import BranchLoss, RankingLoss, SelfEnsemble, TriBCE
from torchrec_models.net import TrainingOutput
from torchrec_models.schema import Task

CLICK, BUY = Task(name="click"), Task(name="buy", positive_weight=2.0, loss_weight=0.25)


def rows(num_branches: int, num_tasks: int = 1, seed: int = 0) -> tuple[list[Tensor], Tensor, Tensor]:
    """Leaf logits [B, T] of the whole and the branches, labels, weights."""
    random = torch.Generator().manual_seed(seed)
    logits = [
        (0.5 * torch.randn(40, num_tasks, generator=random, dtype=torch.float64)).requires_grad_() for _ in range(num_branches + 1)
    ]
    labels = (torch.rand(40, num_tasks, generator=random) < 0.4).double()
    return logits, labels, torch.rand(40, num_tasks, generator=random, dtype=torch.float64)


def mean_bce(z: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (w * F.binary_cross_entropy_with_logits(z, y, reduction="none")).sum() / w.sum()


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, of, retain_graph=True)
    return found


@pytest.mark.parametrize("detach", [False, True])
def test_tri_bce_gradients(detach):
    """dL = (1 - l_D - l_S) dl + (2 l_D - l) dl_D + (2 l_S - l) dl_S where the weights are no constants and both are active,
    and dl + w_D dl_D + w_S dl_S where they are."""
    (z, deep, shallow), y, w = rows(2)
    with torch.no_grad():
        z += 2 * (2 * y - 1)  # the whole is better than its parts
    output = TrainingOutput(z, {"deep": deep, "shallow": shallow})
    loss_of = RankingLoss([CLICK], [TriBCE(("deep", "shallow"), detach_weights=detach)])
    loss, (losses, *_) = loss_of(output, y, w)
    whole, d, s = (mean_bce(x, y, w) for x in (z, deep, shallow))
    assert d > whole and s > whole
    added = (d - whole) * d + (s - whole) * s
    torch.testing.assert_close(loss, whole + added, atol=1e-12, rtol=0)
    coefficients = (1, d - whole, s - whole) if detach else (1 - d - s, 2 * d - whole, 2 * s - whole)
    for x, one, coefficient in zip((z, deep, shallow), (whole, d, s), coefficients):
        torch.testing.assert_close(gradient(loss, x), coefficient * gradient(one, x), atol=1e-12, rtol=0)
    torch.testing.assert_close(losses, F.binary_cross_entropy_with_logits(z, y, reduction="none"))
    assert set(loss_of.shown) == {"auxiliary_tri_bce"}
    torch.testing.assert_close(loss_of.shown["auxiliary_tri_bce"], added.detach())


def test_the_coefficients_of_tri_bce_at_the_start():
    """All three losses log 2, in the limit where both weights are just active: about -0.39, 0.69, 0.69."""
    (z, deep, shallow), y, w = rows(2)
    with torch.no_grad():
        z.mul_(0).add_(1e-6 * (2 * y - 1))
        deep.zero_()
        shallow.zero_()
    output = TrainingOutput(z, {"deep": deep, "shallow": shallow})
    loss, _ = RankingLoss([CLICK], [TriBCE(("deep", "shallow"))])(output, y, w)
    for x, expected in ((z, 1 - 2 * math.log(2)), (deep, math.log(2)), (shallow, math.log(2))):
        of_bce = w * (x.detach().sigmoid() - y) / w.sum()
        torch.testing.assert_close(gradient(loss, x), expected * of_bce, atol=1e-6, rtol=0)


def test_a_branch_that_is_better_than_the_whole_is_left_alone():
    (z, deep, shallow), y, w = rows(2)
    with torch.no_grad():
        deep += 4 * (2 * y - 1)
    output = TrainingOutput(z, {"deep": deep, "shallow": shallow})
    loss, _ = RankingLoss([CLICK], [TriBCE(("deep", "shallow"))])(output, y, w)
    assert not gradient(loss, deep).any()


def test_self_ensemble_gradients():
    """BCE(p, y) + BCE(p1, sg p) + BCE(p2, sg p): d/dz1 = (p - y) / (p (1 - p)) * p1 (1 - p1) / 2 + p1 - p, all over sum w."""
    (_, first, second), y, w = rows(2)
    whole = SelfEnsemble.mean_logits(first, second)
    p1, p2 = first.sigmoid(), second.sigmoid()
    p = (p1 + p2) / 2
    torch.testing.assert_close(whole.sigmoid(), p, atol=1e-14, rtol=0)
    output = TrainingOutput(whole, {"first": first, "second": second})
    loss, _ = RankingLoss([CLICK], [SelfEnsemble(("first", "second"))])(output, y, w)
    for z, own in ((first, p1), (second, p2)):
        expected = w / w.sum() * ((p - y) / (p * (1 - p)) * own * (1 - own) / 2 + own - p)
        torch.testing.assert_close(gradient(loss, z), expected.detach(), atol=1e-12, rtol=0)


def test_the_mean_of_probabilities_far_out():
    """p = (s(-800) + s(-790)) / 2: the logit is -790 - log 2, though both probabilities are 0 in float64."""
    low, high = torch.tensor([[-800.0]], dtype=torch.float64), torch.tensor([[-790.0]], dtype=torch.float64)
    assert float(SelfEnsemble.mean_logits(low, high)) == pytest.approx(-790 + math.log1p(math.exp(-10)) - math.log(2))
    assert float(SelfEnsemble.mean_logits(-low, -high)) == pytest.approx(790 - math.log1p(math.exp(-10)) + math.log(2))


def test_branch_losses_take_part_in_task_weights_and_masks():
    (z, branch), y, w = rows(1, num_tasks=2)
    w[:20, 1] = 0
    loss_of = RankingLoss([CLICK, BUY], [BranchLoss("side", weight=0.3)])
    loss, (_, _, _, out_w) = loss_of(TrainingOutput(z, {"side": branch}), y, w)
    expected = sum(
        task.loss_weight * (mean_bce(z[:, t], y[:, t], out_w[:, t]) + 0.3 * mean_bce(branch[:, t], y[:, t], out_w[:, t]))
        for t, task in enumerate((CLICK, BUY))
    )
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)
    assert not gradient(loss, branch)[:20, 1].any()
    side = sum(0.3 * mean_bce(branch[:, t], y[:, t], out_w[:, t]) for t in range(2))
    torch.testing.assert_close(loss_of.shown["auxiliary_side"], side.detach())
    assert [float(loss_of.shown[f"weight_{name}"]) for name in ("click", "buy")] == [1, 0.25]


@pytest.mark.parametrize("auxiliary", [TriBCE(("first", "second")), SelfEnsemble(("first", "second")), BranchLoss("first")])
def test_without_any_weight_nothing_is_added(auxiliary):
    (_, first, second), y, w = rows(2)
    whole = SelfEnsemble.mean_logits(first, second)
    loss, _ = RankingLoss([CLICK], [auxiliary])(TrainingOutput(whole, {"first": first, "second": second}), y, 0 * w)
    assert loss == 0 and not gradient(loss, first).any()


def test_in_evaluation_there_are_no_branches_and_nothing_is_added():
    (z,), y, w = rows(0)
    loss_of = RankingLoss([CLICK], [BranchLoss("side")])
    torch.testing.assert_close(loss_of(z, y, w)[0], mean_bce(z, y, w))


def test_a_regression_has_no_mean_of_probabilities():
    with pytest.raises(ValueError, match="SelfEnsemble is for binary labels, and these are regressions: spend"):
        RankingLoss([CLICK, Task(name="spend", kind="regression")], [SelfEnsemble(("a", "b"))])
