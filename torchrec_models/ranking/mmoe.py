"""MMoE: shared experts, and a gate and a tower per task.

Ma et al., KDD 2018, "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", eq. 5-7.
"""

from pydantic import Field
from torch import Tensor, nn

from torchrec_models.layers.fields import FlatFields
from torchrec_models.layers.gate import Gate
from torchrec_models.layers.task_towers import TaskTowers
from torchrec_models.net import Inputs, InputSpec
from torchrec_models.ranking.multi_task import ExpertConfig, Experts, MultiTaskNet


class MMoE(MultiTaskNet):
    """`z_t = tower_t(sum_k softmax(W_t x)_k activation(expert_k(x)))`, x being all inputs side by side.

    `gate_units` makes the gates MLPs with a bias: (128, 64) is the default of reczoo/FuxiCTR (`model_zoo/multitask/MMoE`).
    """

    summary = "experts shared by tasks, one gate per task (Ma et al., KDD 2018)"

    class Config(ExpertConfig):
        num_experts: int = Field(4, ge=1)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__(spec, config)
        self.flat = FlatFields(spec, who="MMoE")
        self.experts = Experts(
            spec, config.expert, num_experts=config.num_experts, width=config.expert_width, activation=config.activation
        )
        self.gates = nn.ModuleList(
            Gate(self.flat.out_width, config.num_experts, hidden_units=config.gate_units, activation=config.activation)
            for _ in range(spec.num_tasks)
        )
        self.towers = TaskTowers(
            config.expert_width,
            spec.num_tasks,
            config.tower_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )

    def logits(self, experts_BMK: Tensor, inputs: Inputs) -> Tensor:
        x_BX = self.flat(inputs)
        return self.towers([gate(x_BX, experts_BMK) for gate in self.gates])
