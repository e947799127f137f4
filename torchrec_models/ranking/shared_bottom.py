"""Shared bottom: one net for all tasks, and a tower for each.

Caruana, Machine Learning 28, 1997 (multitask learning by a shared representation); Ma et al., KDD 2018, eq. 1.
"""

from torch import Tensor

from torchrec_models.layers.task_towers import TaskTowers
from torchrec_models.net import Inputs, InputSpec
from torchrec_models.ranking.multi_task import BottomConfig, Experts, MultiTaskNet


class SharedBottom(MultiTaskNet):
    """`z_t = tower_t(activation(bottom(x)))`."""

    summary = "one net under a tower per task (Caruana, 1997)"

    class Config(BottomConfig):
        pass

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__(spec, config)
        self.experts = Experts(spec, config.bottom, num_experts=1, width=config.bottom_width, activation=config.activation)
        self.towers = TaskTowers(
            config.bottom_width,
            spec.num_tasks,
            config.tower_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )

    def logits(self, experts_BMK: Tensor, inputs: Inputs) -> Tensor:
        return self.towers([experts_BMK.squeeze(1)] * self.spec.num_tasks)
