"""The loss of ranking: one term per task, and what the net adds."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_models.net import TrainingOutput
from torchrec_models.schema import Task

from .auxiliary import AuxiliaryLoss
from .mean import LossOutput, at_least_float32, total_weights, weighted_mean
from .weighting import FixedWeights, TaskWeighting


class RankingLoss(nn.Module):
    """Binary cross-entropy (binary tasks) or squared error (regression), summed over tasks with weights.

    Args:
        tasks: what is predicted.
        auxiliary: what a net adds to each task's loss while it trains, see `Net.auxiliary_losses`.
        weighting: how the tasks' losses are summed; default: with their `loss_weight`.

    Attributes:
        shown: what a log should show of the last training step beside its losses: `auxiliary_<name>` [], what each auxiliary
            loss added, and with several tasks `weight_<task>` [].

        log_negative_rate: log of the share of negatives that training sees: one, or [N], one for each row of the training split,
            looked up by row_id. While training, the losses are those of `logits - log_negative_rate`, so that the logits are those
            of all rows: logit p = logit q - log w is the inverse of He et al., ADKDD 2014, section 6.3. Nothing has to be
            corrected afterwards.

    Shapes:
        logits [B, T] (or the `TrainingOutput` of a net with branches), labels [B, T], weights [B, T], row_id [B] int64 (read
        where log_negative_rate is a tensor) -> loss [],
        (losses [B, T], logits [B, T], labels [B, T], weights [B, T]); the losses are those of the logits alone, and the
        weights that come back are multiplied by `positive_weight` where the label is 1.

    Raises:
        ValueError: an auxiliary loss for binary tasks only, and a task that is a regression.
    """

    def __init__(
        self, tasks: Sequence[Task], auxiliary: Sequence[AuxiliaryLoss] = (), *, weighting: TaskWeighting | None = None
    ) -> None:
        super().__init__()
        self.names = [t.name for t in tasks]
        self.binary = [t.kind == "binary" for t in tasks]
        for loss in auxiliary:
            if loss.binary_only and not all(self.binary):
                names = ", ".join(t.name for t in tasks if t.kind != "binary")
                raise ValueError(
                    f"{type(loss).__name__} is for binary labels, and these are regressions: {names}; "
                    f"switch {loss.name} off in the net's options"
                )
        self.auxiliary = nn.ModuleList(auxiliary)
        self.weighting = weighting or FixedWeights(tasks)
        self.shown: dict[str, Tensor] = {}
        self.log_negative_rate: float | Tensor = 0.0
        self.positive_weight_T: Tensor
        self.register_buffer("positive_weight_T", torch.tensor([t.positive_weight for t in tasks]), persistent=False)

    def forward(
        self, output: Tensor | TrainingOutput, labels_BT: Tensor, weights_BT: Tensor, row_id_B: Tensor | None = None
    ) -> LossOutput:
        if not isinstance(output, TrainingOutput):
            output = TrainingOutput(output, {})
        logits_BT = at_least_float32(output.logits_BT)
        weights_BT = weights_BT * torch.where(labels_BT > 0.5, self.positive_weight_T, 1.0)
        total_T = total_weights(weights_BT)
        rate = self._log_rate(row_id_B)
        losses_BT = self._elementwise(logits_BT, labels_BT, rate)
        main_T = loss_T = weighted_mean(losses_BT, weights_BT, total_T)
        added: dict[str, Tensor] = {}
        if output.branches:
            output = TrainingOutput(logits_BT, {name: at_least_float32(z_BT) for name, z_BT in output.branches.items()})

            def criterion(logits_BT: Tensor, targets_BT: Tensor) -> Tensor:
                return weighted_mean(self._elementwise(logits_BT, targets_BT, rate), weights_BT, total_T)

            for auxiliary in self.auxiliary:
                assert isinstance(auxiliary, AuxiliaryLoss)
                added[auxiliary.name] = auxiliary(criterion, main_T, output, labels_BT)
                loss_T = loss_T + added[auxiliary.name]
        if self.training:
            self._show(added)
        loss = self.weighting(loss_T, total_T > 0)
        return loss, (losses_BT.detach(), logits_BT.detach(), labels_BT, weights_BT)

    @torch.no_grad()
    def _show(self, added: dict[str, Tensor]) -> None:
        self.shown = {f"auxiliary_{name}": added_T.detach().sum() for name, added_T in added.items()}
        if len(self.names) > 1:
            self.shown |= {f"weight_{name}": w for name, w in zip(self.names, self.weighting.weights().unbind())}

    def _log_rate(self, row_id_B: Tensor | None) -> float | Tensor:
        """0 outside of training, one number, or [B, 1]."""
        rate = self.log_negative_rate
        if not self.training or not isinstance(rate, Tensor):
            return rate if self.training else 0.0
        assert row_id_B is not None, "a rate for each row needs to know the rows"
        if rate.device != row_id_B.device:  # once
            self.log_negative_rate = rate = rate.to(row_id_B.device)
        return rate[row_id_B][:, None]

    def _elementwise(self, logits_BT: Tensor, targets_BT: Tensor, log_rate: float | Tensor) -> Tensor:
        if isinstance(log_rate, Tensor) or log_rate:
            logits_BT = logits_BT - log_rate
        if all(self.binary):
            return F.binary_cross_entropy_with_logits(logits_BT, targets_BT, reduction="none")
        return torch.stack(
            [
                F.binary_cross_entropy_with_logits(z, y, reduction="none") if binary else (z - y) ** 2
                for binary, z, y in zip(self.binary, logits_BT.unbind(1), targets_BT.unbind(1))
            ],
            dim=1,
        )
