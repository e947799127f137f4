"""The loss of ranking: one term per task, and what the net adds."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_models.net import TrainingOutput
from torchrec_models.schema import Task

from .auxiliary import AuxiliaryLoss
from .mean import LossOutput, at_least_float32, weighted_mean


class RankingLoss(nn.Module):
    """Binary cross-entropy (binary tasks) or squared error (regression), summed over tasks with their `loss_weight`.

    Args:
        tasks: what is predicted.
        auxiliary: what a net adds to each task's loss while it trains, see `Net.auxiliary_losses`.

    Shapes:
        logits [B, T] (or the `TrainingOutput` of a net with branches), labels [B, T], weights [B, T] -> loss [],
        (losses [B, T], logits [B, T], labels [B, T], weights [B, T]); the losses are those of the logits alone, and the
        weights that come back are multiplied by `positive_weight` where the label is 1.

    Raises:
        ValueError: an auxiliary loss for binary tasks only, and a task that is a regression.
    """

    def __init__(self, tasks: Sequence[Task], auxiliary: Sequence[AuxiliaryLoss] = ()) -> None:
        super().__init__()
        self.binary = [t.kind == "binary" for t in tasks]
        for loss in auxiliary:
            if loss.binary_only and not all(self.binary):
                names = ", ".join(t.name for t in tasks if t.kind != "binary")
                raise ValueError(f"{type(loss).__name__} is for binary labels, and these are regressions: {names}")
        self.auxiliary = nn.ModuleList(auxiliary)
        self.positive_weight_T: Tensor
        self.loss_weight_T: Tensor
        self.register_buffer("positive_weight_T", torch.tensor([t.positive_weight for t in tasks]), persistent=False)
        self.register_buffer("loss_weight_T", torch.tensor([t.loss_weight for t in tasks]), persistent=False)

    def forward(self, output: Tensor | TrainingOutput, labels_BT: Tensor, weights_BT: Tensor) -> LossOutput:
        if not isinstance(output, TrainingOutput):
            output = TrainingOutput(output, {})
        logits_BT = at_least_float32(output.logits_BT)
        weights_BT = weights_BT * torch.where(labels_BT > 0.5, self.positive_weight_T, 1.0)
        losses_BT = self._elementwise(logits_BT, labels_BT)
        main_T = loss_T = weighted_mean(losses_BT, weights_BT)
        if output.branches:
            output = TrainingOutput(logits_BT, {name: at_least_float32(z_BT) for name, z_BT in output.branches.items()})

            def criterion(logits_BT: Tensor, targets_BT: Tensor) -> Tensor:
                return weighted_mean(self._elementwise(logits_BT, targets_BT), weights_BT)

            for auxiliary in self.auxiliary:
                loss_T = loss_T + auxiliary(criterion, main_T, output, labels_BT)
        loss = (loss_T * self.loss_weight_T).sum()
        return loss, (losses_BT.detach(), logits_BT.detach(), labels_BT, weights_BT)

    def _elementwise(self, logits_BT: Tensor, targets_BT: Tensor) -> Tensor:
        if all(self.binary):
            return F.binary_cross_entropy_with_logits(logits_BT, targets_BT, reduction="none")
        return torch.stack(
            [
                F.binary_cross_entropy_with_logits(z, y, reduction="none") if binary else (z - y) ** 2
                for binary, z, y in zip(self.binary, logits_BT.unbind(1), targets_BT.unbind(1))
            ],
            dim=1,
        )
