"""PLE: levels of experts, some of them shared and some of one task only.

Tang et al., RecSys 2020, "Progressive Layered Extraction (PLE)", eq. 1-5 (CGC, one level) and section 4.2 (several).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from torchrec_models.layers.fields import FlatFields
from torchrec_models.layers.gate import Gate
from torchrec_models.layers.mlp import MLP
from torchrec_models.layers.task_towers import TaskTowers
from torchrec_models.net import Inputs, InputSpec
from torchrec_models.ranking.multi_task import ExpertConfig, Experts, MultiTaskNet


class PLE(MultiTaskNet):
    """At each level, task t mixes its own experts with the shared ones; the shared state mixes the experts of all tasks.

    `s_t' = gate_t(s_t; [E_t(s_t); E_s(s_s)])`, `s_s' = gate_s(s_s; [E_1(s_1); ...; E_T(s_T); E_s(s_s)])`, `z_t = tower_t(s_t)`.
    On the first level every state is the input, so an expert there can be any net; further on an expert is an MLP. The last
    level has no shared state.

    Options:
        num_levels: 1 is CGC.
        num_task_experts, num_shared_experts: per task, and besides.
        level_units: hidden layers of the experts after the first level; their last layer has `expert_width`.
        shared_gate: "all" is the paper's; "shared" mixes the shared experts only, so that nothing a task learns reaches the
            others: reczoo/FuxiCTR (`model_zoo/multitask/PLE`), whose gates are MLPs, too (`gate_units: [128, 64]`).
    """

    summary = "levels of shared and task experts with gates (Tang et al., RecSys 2020)"

    class Config(ExpertConfig):
        num_levels: int = Field(2, ge=1)
        num_task_experts: int = Field(1, ge=1)
        num_shared_experts: int = Field(1, ge=1)
        level_units: tuple[int, ...] = (256,)
        shared_gate: Literal["all", "shared"] = "all"

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__(spec, config)
        self.flat = FlatFields(spec, who="PLE")
        self.num_task_experts, self.num_shared_experts = config.num_task_experts, config.num_shared_experts
        num_experts = spec.num_tasks * config.num_task_experts + config.num_shared_experts
        width = config.expert_width
        self.experts = Experts(spec, config.expert, num_experts=num_experts, width=width, activation=config.activation)
        self.later_experts = nn.ModuleList(
            nn.ModuleList(MLP(width, (*config.level_units, width), activation=config.activation) for _ in range(num_experts))
            for _ in range(config.num_levels - 1)
        )
        num_mixed = config.num_task_experts + config.num_shared_experts
        num_for_shared = num_experts if config.shared_gate == "all" else config.num_shared_experts
        self.gates = nn.ModuleList()
        for level in range(config.num_levels):
            sizes = [num_mixed] * spec.num_tasks + [num_for_shared] * (level < config.num_levels - 1)
            in_width = width if level else self.flat.out_width
            self.gates.append(
                nn.ModuleList(Gate(in_width, n, hidden_units=config.gate_units, activation=config.activation) for n in sizes)
            )
        self.towers = TaskTowers(
            width,
            spec.num_tasks,
            config.tower_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )
        self.shared_gate = config.shared_gate

    def logits(self, experts_BMK: Tensor, inputs: Inputs) -> Tensor:
        x_BX = self.flat(inputs)
        states = self._mix(self.gates[0], [x_BX] * (self.spec.num_tasks + 1), experts_BMK)
        for gates, experts in zip(list(self.gates)[1:], self.later_experts):
            assert isinstance(experts, nn.ModuleList)
            vectors = [expert(states[owner]) for owner, expert in zip(self._owners(), experts, strict=True)]
            states = self._mix(gates, states, torch.stack(vectors, dim=1))
        return self.towers(states)

    def _owners(self) -> list[int]:
        """For each expert the state that it reads: its task's, or (the last one) the shared state."""
        tasks = [t for t in range(self.spec.num_tasks) for _ in range(self.num_task_experts)]
        return tasks + [self.spec.num_tasks] * self.num_shared_experts

    def _mix(self, gates: nn.Module, states: list[Tensor], experts_BMK: Tensor) -> list[Tensor]:
        """The states of the next level; the shared one is last, and there is none after the last level."""
        assert isinstance(gates, nn.ModuleList)
        groups = experts_BMK.split([self.num_task_experts] * self.spec.num_tasks + [self.num_shared_experts], dim=1)
        mixed = [torch.cat([own_BMK, groups[-1]], dim=1) for own_BMK in groups[:-1]]
        mixed.append(experts_BMK if self.shared_gate == "all" else groups[-1])
        return [gate(state, group_BMK) for gate, state, group_BMK in zip(gates, states, mixed)]
