"""DBMTL: tasks that depend on each other, as a Bayesian network does.

Wang et al. 2019, arXiv 1902.09154: `p(y_1 .. y_T | x) = prod_t p(y_t | x, parents of t)`, where a task sees the hidden vectors
of its parents (not their labels).
"""

from graphlib import CycleError, TopologicalSorter

import torch
from pydantic import Field
from torch import Tensor, nn

from torchrec_models.layers.fields import FlatFields
from torchrec_models.layers.gate import Gate
from torchrec_models.layers.linear import Linear
from torchrec_models.layers.mlp import MLP
from torchrec_models.net import Inputs, InputSpec
from torchrec_models.ranking.multi_task import BottomConfig, Experts, MultiTaskNet


class DBMTL(MultiTaskNet):
    """`h_t = MLP_t(bottom)`, `r_t = MLP([h_t; r_p for p in parents(t)])` where t has parents, else `r_t = h_t`; `z_t = w_t r_t`.

    The form is that of alibaba/TorchEasyRec (`tzrec/models/dbmtl.py`), where `num_experts` above 1 puts an MMoE under the tasks.

    Options:
        relations: task -> the tasks that it depends on, `{buy: [click]}`.
        tower_units: of `MLP_t`; `relation_units`: of the relation MLPs.
        num_experts: 1 (default): one bottom; more: so many bottoms, mixed by a gate per task (`gate_units`, see `Gate`).
        detach_parents: children do not train their parents; default False, as in the paper.

    Raises:
        ValueError: no relations, a task that does not exist, or tasks that depend on themselves; options without effect.
    """

    summary = "towers that see the towers of the tasks they depend on (Wang et al., 2019)"

    class Config(BottomConfig):
        relations: dict[str, tuple[str, ...]] = Field({})
        relation_units: tuple[int, ...] = Field((32,), min_length=1)
        num_experts: int = Field(1, ge=1)
        gate_units: tuple[int, ...] = ()
        detach_parents: bool = False

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__(spec, config)
        if config.gate_units and config.num_experts == 1:
            raise ValueError("gate_units: has no effect with num_experts: 1; leave it out")
        self.parents = parents_of([task.name for task in spec.tasks], config.relations)
        self.order = list(TopologicalSorter(dict(enumerate(self.parents))).static_order())
        self.detach_parents = config.detach_parents
        self.experts = Experts(
            spec, config.bottom, num_experts=config.num_experts, width=config.bottom_width, activation=config.activation
        )
        self.flat = FlatFields(spec, who="DBMTL") if config.num_experts > 1 else None
        self.gates = nn.ModuleList()
        if self.flat is not None:
            for _ in self.parents:
                gate = Gate(self.flat.out_width, config.num_experts, hidden_units=config.gate_units, activation=config.activation)
                self.gates.append(gate)

        def mlp(in_width: int, hidden_units: tuple[int, ...]) -> MLP:
            return MLP(in_width, hidden_units, activation=config.activation, batch_norm=config.batch_norm, dropout=config.dropout)

        self.task_mlps = nn.ModuleList(mlp(config.bottom_width, config.tower_units) for _ in self.parents)
        task_width = (config.bottom_width, *config.tower_units)[-1]
        widths = [config.relation_units[-1] if parents else task_width for parents in self.parents]
        self.relation_mlps = nn.ModuleList(
            mlp(task_width + sum(widths[p] for p in parents), config.relation_units) if parents else nn.Identity()
            for parents in self.parents
        )
        self.outputs = nn.ModuleList(Linear(width, 1) for width in widths)

    def logits(self, experts_BMK: Tensor, inputs: Inputs) -> Tensor:
        if self.flat is None:
            states = [experts_BMK.squeeze(1)] * len(self.parents)
        else:
            x_BX = self.flat(inputs)
            states = [gate(x_BX, experts_BMK) for gate in self.gates]
        hidden = [mlp(state) for mlp, state in zip(self.task_mlps, states, strict=True)]
        related = list(hidden)
        for task in self.order:
            seen = [related[p].detach() if self.detach_parents else related[p] for p in self.parents[task]]
            related[task] = self.relation_mlps[task](torch.cat([hidden[task], *seen], dim=1))
        return torch.cat([output(r_BK) for output, r_BK in zip(self.outputs, related, strict=True)], dim=1)


def parents_of(names: list[str], relations: dict[str, tuple[str, ...]]) -> list[list[int]]:
    """For each task the positions of its parents.

    Raises:
        ValueError: no relation at all, a name that is no task, a parent given twice, a task that is its own ancestor.
    """
    if not any(relations.values()):
        raise ValueError("DBMTL needs relations such as {buy: [click]}; for none, take model.name: shared_bottom")
    for child, parents in relations.items():
        unknown = [name for name in (child, *parents) if name not in names]
        if unknown:
            raise ValueError(f"relations: no label {', '.join(map(repr, unknown))}; there are: {', '.join(names) or 'none'}")
        if not parents or len(set(parents)) < len(parents):
            raise ValueError(f"relations.{child}: needs parents, each named once; got {', '.join(parents) or 'none'}")
    try:
        TopologicalSorter(relations).prepare()
    except CycleError as error:
        raise ValueError(f"relations: these depend on themselves: {' -> '.join(error.args[1])}") from None
    return [[names.index(parent) for parent in relations.get(name, ())] for name in names]
