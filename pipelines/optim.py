"""Two optimizers and one clock: tables are updated inside backward, the dense part by a keyed optimizer, both on one schedule."""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torchrec import optim as trec
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper, OptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from .config import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig, TrainConfig

logger = logging.getLogger(__name__)

SPARSE: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": trec.Adagrad,
    "sgd": trec.SGD,
    "adam": trec.Adam,
    "partial_rowwise_adam": trec.PartialRowWiseAdam,
    "lamb": trec.LAMB,
}
ON_CPU = ("rowwise_adagrad", "adagrad", "sgd")


def fuse_sparse_optimizer(tables: Iterable[nn.Parameter], config: SparseOptimizerConfig, *, device: torch.device) -> None:
    """Mark tables to be updated in backward. Must run before they are sharded.

    Raises:
        ValueError: an optimizer, or weight decay, that FBGEMM's kernels do not have on this device.
    """
    if device.type == "cpu" and config.optimizer not in ON_CPU:
        raise ValueError(
            f"train.sparse.optimizer: given {config.optimizer!r}; on CPU the fused kernels have {', '.join(ON_CPU)} "
            "(or use train.mode=unfused, where the dense optimizer trains the tables)"
        )
    if device.type == "cpu" and config.weight_decay:
        raise ValueError(
            f"train.sparse.weight_decay: given {config.weight_decay}; FBGEMM's kernels for the CPU ignore it "
            "(use train.mode=unfused with train.dense.weight_decay or train.embedding_l2)"
        )
    kwargs: dict[str, Any] = {"lr": config.lr}
    if config.optimizer != "sgd":
        kwargs["eps"] = config.eps
    if config.weight_decay:
        kwargs["weight_decay"] = config.weight_decay
    apply_optimizer_in_backward(SPARSE[config.optimizer], list(tables), kwargs)


def _parameter_groups(dense: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """What the loss learns (temperature, task weights) has no decay: it would pull a logarithm to 0, a value with a meaning."""
    of_loss = [p for name, p in dense.items() if name.removeprefix("module.").startswith("loss.")]
    of_net = [p for name, p in dense.items() if not name.removeprefix("module.").startswith("loss.")]
    return [{"params": of_net}] + ([{"params": of_loss, "weight_decay": 0.0}] if of_loss else [])


def _dense_optimizer(params: list[dict[str, Any]], config: DenseOptimizerConfig) -> torch.optim.Optimizer:
    decay = config.weight_decay
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(params, config.lr, betas=config.betas, eps=config.eps, weight_decay=decay, fused=True)
        case "adam":
            return torch.optim.Adam(params, config.lr, betas=config.betas, eps=config.eps, weight_decay=decay, fused=True)
        case "adagrad":
            return torch.optim.Adagrad(params, config.lr, eps=config.eps, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(params, config.lr, momentum=config.momentum, weight_decay=decay, fused=True)
    raise AssertionError(config.optimizer)


class Schedule:
    """step -> factor on every learning rate: linear warm-up, then constant, linear or cosine decay, times the plateau factor."""

    def __init__(self, config: ScheduleConfig, *, num_steps: int) -> None:
        self.config = config
        self.num_steps = num_steps
        self.plateau_factor = 1.0

    def factor(self, step: int) -> float:
        c = self.config
        if step < c.warmup_steps:
            return (step + 1) / c.warmup_steps
        if c.kind in ("constant", "plateau"):
            return self.plateau_factor
        progress = min(1.0, (step - c.warmup_steps) / max(1, self.num_steps - c.warmup_steps))
        shape = 1.0 - progress if c.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return c.min_factor + (1.0 - c.min_factor) * shape

    def no_improvement(self) -> None:
        """Called at each evaluation that brought no improvement."""
        if self.config.kind == "plateau":
            self.plateau_factor = max(self.plateau_factor * self.config.factor, self.config.min_factor)


class TrainOptimizer(OptimizerWrapper):
    """Everything that happens between backward and the next forward: whole-table L2, clipping, step, averaging.

    Args:
        model: a DistributedModelParallel (fused), or any module (unfused).
        config: the run's `train` section.
        num_steps: length of the schedule.
        tables: in unfused mode, the embedding weights that `embedding_l2` regularises.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, *, num_steps: int, tables: Mapping[str, nn.Parameter] | None = None
    ) -> None:
        dense = {k: p for k, p in in_backward_optimizer_filter(model.named_parameters()) if p.requires_grad}
        self.dense_params = dense
        self.dense = KeyedOptimizerWrapper(dense, lambda _: _dense_optimizer(_parameter_groups(dense), config.dense))
        self.fused = model.fused_optimizer if isinstance(model, DistributedModelParallel) else None
        super().__init__(CombinedOptimizer([*([self.fused] if self.fused is not None else []), ("dense", self.dense)]))
        self.config = config
        self.schedule = Schedule(config.schedule, num_steps=num_steps)
        self.tables = list((tables or {}).values())
        self.last_norm: Tensor | None = None
        self.average = {k: p.detach().clone() for k, p in dense.items()} if config.ema else {}
        if config.clip_norm and self.fused is not None:
            logger.info("clip_norm = %g covers the dense parameters only: tables are updated inside backward", config.clip_norm)

    def set_step(self, step: int) -> float:
        """Give both sides the learning rates of `step`; returns the factor. TBE kernels learn theirs from `zero_grad`."""
        factor = self.schedule.factor(step)
        for group in self.dense.param_groups:
            group["lr"] = self.config.dense.lr * factor
        if self.fused is not None:
            for group in self.fused.param_groups:
                group["lr"] = self.config.sparse.lr * factor
            self.fused.zero_grad()
        return factor

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._optimizer.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if self.config.embedding_l2:
            # the gradient of (l2 / 2) |W|^2, written into .grad: exact, and without a pass through autograd
            torch._foreach_add_([w.grad for w in self.tables], list[Tensor](self.tables), alpha=self.config.embedding_l2)  # type: ignore[misc]
        if self.config.clip_norm:
            self.last_norm = nn.utils.clip_grad_norm_(list(self.dense_params.values()), self.config.clip_norm)
        self._optimizer.step(closure)
        if self.average:
            torch._foreach_lerp_(list(self.average.values()), list(self.dense_params.values()), 1.0 - self.config.ema)

    def init_state(self) -> None:
        """Create the dense state before a checkpoint is read into it: an empty state would silently stay empty.

        It is a step with zero gradients, which weight decay makes move the weights: read the checkpoint afterwards.
        """
        self.dense.init_state()
