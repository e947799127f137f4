"""How much each task counts: fixed weights, weights that follow a schedule, weights that are learnt.

Shapes: T tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from torchrec_models.schema import Task


class TaskWeighting(nn.Module):
    """Base: losses [T] and, for each task, whether any row of the step has it [T] -> the number to minimise []."""

    def forward(self, loss_T: Tensor, present_T: Tensor) -> Tensor:
        raise NotImplementedError

    def weights(self) -> Tensor:
        """[T], what a task's loss is multiplied by at this step."""
        raise NotImplementedError


class FixedWeights(TaskWeighting):
    """`sum_t w_t l_t` with the tasks' `loss_weight`."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.weight_T: Tensor
        self.register_buffer("weight_T", torch.tensor([t.loss_weight for t in tasks]), persistent=False)

    def forward(self, loss_T: Tensor, present_T: Tensor) -> Tensor:
        return (loss_T * self.weights()).sum()

    def weights(self) -> Tensor:
        return self.weight_T


@dataclass(frozen=True, kw_only=True)
class WeightSchedule:
    """From `from_weight` (until step `from_step`) to the task's `loss_weight` (from step `to_step` on).

    `linear` and `cosine` (half a wave) add, `geometric` multiplies by the same factor at each step: `w = w_0 g^step`, the decay
    of Tang et al., RecSys 2020 (PLE), eq. 8.
    """

    kind: Literal["linear", "cosine", "geometric"] = "linear"
    from_weight: float
    from_step: int = 0
    to_step: int


class ScheduledWeights(FixedWeights):
    """`sum_t w_t(step) l_t`. Steps are counted by the training forwards; checkpoints keep the count.

    Args:
        tasks: what is predicted.
        schedules: by task; the others keep their `loss_weight`.
    """

    def __init__(self, tasks: Sequence[Task], schedules: Mapping[str, WeightSchedule]) -> None:
        super().__init__(tasks)
        constant = {t.name: WeightSchedule(from_weight=t.loss_weight, to_step=1) for t in tasks}
        chosen = [{**constant, **schedules}[t.name] for t in tasks]
        self.kinds = [s.kind for s in chosen]
        self.step: Tensor
        self.from_weight_T: Tensor
        self.steps_2T: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("from_weight_T", torch.tensor([s.from_weight for s in chosen]), persistent=False)
        steps = [[s.from_step for s in chosen], [s.to_step for s in chosen]]
        self.register_buffer("steps_2T", torch.tensor(steps), persistent=False)

    def forward(self, loss_T: Tensor, present_T: Tensor) -> Tensor:
        loss = super().forward(loss_T, present_T)
        if self.training:
            self.step += 1
        return loss

    def weights(self) -> Tensor:
        first_T, last_T = self.steps_2T
        progress_T = ((self.step - first_T) / (last_T - first_T)).clamp(0, 1)
        weights = []
        for kind, start, end, progress in zip(self.kinds, self.from_weight_T, self.weight_T, progress_T):
            if kind == "geometric":
                weights.append(start ** (1 - progress) * end**progress)
                continue
            share = progress if kind == "linear" else (1 - torch.cos(torch.pi * progress)) / 2
            weights.append(start + (end - start) * share)
        return torch.stack(weights)


class UncertaintyWeights(TaskWeighting):
    """`sum_t c_t e^(-s_t) l_t + s_t / 2`, `s_t = log sigma_t^2` learnt with the net; c is 1 for binary tasks, 1/2 for regressions.

    Kendall, Gal, Cipolla, CVPR 2018, arXiv 1705.07115: eq. 7 for squared errors, eq. 10 for cross-entropies. At rest the weight
    of a task is `1 / (2 l_t)`, so a `loss_weight` would have no effect. A loss near 0 would get an endless weight: s is kept
    within `BOUNDS`. A task without rows in a step leaves its s alone. The sum can be negative.
    """

    BOUNDS = (-5.0, 5.0)

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.log_variance_T = nn.Parameter(torch.empty(len(tasks)))
        self.factor_T: Tensor
        self.register_buffer("factor_T", torch.tensor([1.0 if t.kind == "binary" else 0.5 for t in tasks]), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.log_variance_T)

    def forward(self, loss_T: Tensor, present_T: Tensor) -> Tensor:
        if self.training:
            # not a clamp in the graph: its gradient outside the bounds is zero and would hold s there
            with torch.no_grad():
                self.log_variance_T.clamp_(*self.BOUNDS)
        return (self.weights() * loss_T + self.log_variance_T / 2 * present_T).sum()

    def weights(self) -> Tensor:
        return self.factor_T * torch.exp(-self.log_variance_T)
