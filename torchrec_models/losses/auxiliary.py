"""What a net adds to its loss while it trains.

A net with branches returns a `TrainingOutput` in training mode, and says by `Net.auxiliary_losses()` which of these read its
branches. The training loop knows nothing of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_models.net import TrainingOutput

from .mean import with_value_of_all

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(logits [B, T], targets [B, T]) -> [T]: the tasks' own loss, this process's part of the mean over all weighted rows, see
`weighted_mean`."""


class AuxiliaryLoss(nn.Module):
    """Base of what is added to each task's loss.

    Class attributes:
        binary_only: True if it makes no sense for a regression.
    """

    binary_only: ClassVar[bool] = False

    def forward(self, criterion: Criterion, main_T: Tensor, output: TrainingOutput, labels_BT: Tensor) -> Tensor:
        """[T], to be added to the tasks' losses `main_T` of `output.logits_BT`."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """What logs call it."""
        raise NotImplementedError

    def whole(self, branches: Mapping[str, Tensor]) -> Tensor | None:
        """[B, T], the logits of the whole where they are a function of the branches' logits; None: they are not.

        A net with others inside it asks: it turns the vectors of their branches into logits first.
        """
        return None


class BranchLoss(AuxiliaryLoss):
    """`weight * loss(branch, labels)`: the branch learns the labels, too.

    Args:
        branch: its name in `TrainingOutput.branches`.
        weight: > 0.
    """

    def __init__(self, branch: str, *, weight: float = 1.0) -> None:
        super().__init__()
        self.branch = branch
        self.weight = weight

    @property
    def name(self) -> str:
        return self.branch

    def forward(self, criterion: Criterion, main_T: Tensor, output: TrainingOutput, labels_BT: Tensor) -> Tensor:
        return self.weight * criterion(output.branches[self.branch], labels_BT)


class TriBCE(AuxiliaryLoss):
    """`sum_b w_b l_b` with `w_b = max(0, l_b - l)`: a branch is pulled as hard as it lags behind the whole.

    Li et al. 2024, arXiv 2407.13349 ("Tri-BCE"). The losses are those of whole batches.

    Args:
        branches: their names in `TrainingOutput.branches`.
        detach_weights: take the weights as constants. The authors' code (salmon1802/FCN, `src/DCNv3.py`) does not, which
            changes the gradient far more than the weights themselves.
    """

    def __init__(self, branches: Sequence[str], *, detach_weights: bool = False) -> None:
        super().__init__()
        self.branches = tuple(branches)
        self.detach_weights = detach_weights

    @property
    def name(self) -> str:
        return "tri_bce"

    def forward(self, criterion: Criterion, main_T: Tensor, output: TrainingOutput, labels_BT: Tensor) -> Tensor:
        of_branches = [criterion(output.branches[name], labels_BT) for name in self.branches]
        main_1T, losses_NT = with_value_of_all(torch.stack([main_T, *of_branches])).split([1, len(of_branches)])
        weights_NT = F.relu(losses_NT - main_1T)
        if self.detach_weights:
            weights_NT = weights_NT.detach()
        return (weights_NT * losses_NT).sum(dim=0)


class SelfEnsemble(AuxiliaryLoss):
    """Two passes with different dropout learn from their mean: `BCE(p1, sg(p)) + BCE(p2, sg(p))`, `p = (p1 + p2) / 2`.

    Li et al., KDD 2025, arXiv 2505.17999 (self-ensemble loss); `sg` stops the gradient. The net's logits are those of `p`,
    made by `mean_logits`, so that the tasks' own loss is the paper's first term, BCE(p, y).

    Args:
        branches: names of the two passes in `TrainingOutput.branches`.
    """

    binary_only = True

    def __init__(self, branches: tuple[str, str]) -> None:
        super().__init__()
        self.branches = branches

    @property
    def name(self) -> str:
        return "self_ensemble"

    def whole(self, branches: Mapping[str, Tensor]) -> Tensor:
        first, second = self.branches
        return self.mean_logits(branches[first], branches[second])

    def forward(self, criterion: Criterion, main_T: Tensor, output: TrainingOutput, labels_BT: Tensor) -> Tensor:
        targets_BT = output.logits_BT.detach().sigmoid()
        first, second = self.branches
        return criterion(output.branches[first], targets_BT) + criterion(output.branches[second], targets_BT)

    @staticmethod
    def mean_logits(first_BT: Tensor, second_BT: Tensor) -> Tensor:
        """The logit of the mean probability, without leaving the log domain: [B, T]."""
        positive_BT = torch.logaddexp(F.logsigmoid(first_BT), F.logsigmoid(second_BT))
        return positive_BT - torch.logaddexp(F.logsigmoid(-first_BT), F.logsigmoid(-second_BT))
