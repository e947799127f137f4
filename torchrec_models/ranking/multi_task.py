"""What nets with several objectives share: any nets as bottom or experts, and towers on top.

Shapes: B batch, M experts, K the width of their vectors, X all inputs side by side, T tasks.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from torchrec_models.layers.mlp import ACTIVATIONS
from torchrec_models.losses.auxiliary import AuxiliaryLoss
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig, TrainingOutput
from torchrec_models.ranking.nested import NestedNet, finish


class MultiTaskConfig(NetConfig):
    """What every such net can be told.

    Args:
        tower_units: hidden layers of each task's tower.
        activation: of the vectors that the inner nets give, and in the towers.
        batch_norm, dropout: of the towers.
    """

    tower_units: tuple[int, ...] = (64,)
    activation: str = "relu"
    batch_norm: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)

    @property
    def inner(self) -> NestedNet:
        """The net inside."""
        raise NotImplementedError


class BottomConfig(MultiTaskConfig):
    """One net, shared by all tasks, that gives `bottom_width` numbers."""

    bottom: NestedNet = Field(default_factory=lambda: NestedNet.model_validate({"name": "dnn", "hidden_units": (256,)}))
    bottom_width: int = Field(128, ge=1)

    @property
    def inner(self) -> NestedNet:
        return self.bottom


class ExpertConfig(MultiTaskConfig):
    """Several nets of one kind, each of which gives `expert_width` numbers, and gates.

    Args:
        gate_units: see `Gate`.
    """

    expert: NestedNet = Field(default_factory=lambda: NestedNet.model_validate({"name": "dnn", "hidden_units": (256,)}))
    expert_width: int = Field(128, ge=1)
    gate_units: tuple[int, ...] = ()

    @property
    def inner(self) -> NestedNet:
        return self.expert


class Experts(nn.Module):
    """Several nets with the same options, each with weights of its own.

    Args:
        spec: sizes of the inputs.
        inner: the net and its options; asked for vectors, see `Net`.
        num_experts: M.
        width: K.
        activation: of the vectors, one of `ACTIVATIONS`.

    Shapes:
        inputs -> [B, M, K], or a `TrainingOutput` of such where the nets have branches.
    """

    def __init__(self, spec: InputSpec, inner: NestedNet, *, num_experts: int, width: int, activation: str = "identity") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        self.activation = activation
        self.nets = nn.ModuleList(inner.build_vectors(spec, width) for _ in range(num_experts))

    def auxiliary_losses(self) -> Sequence[AuxiliaryLoss]:
        """Those of one of the nets: a branch of that name has the vectors of all."""
        first = self.nets[0]
        assert isinstance(first, Net)
        return first.auxiliary_losses()

    def forward(self, inputs: Inputs) -> Tensor | TrainingOutput:
        outputs = [net(inputs) for net in self.nets]
        if not isinstance(outputs[0], TrainingOutput):
            return self._stack(outputs)
        branches = {name: self._stack([output.branches[name] for output in outputs]) for name in outputs[0].branches}
        return TrainingOutput(self._stack([output.logits_BT for output in outputs]), branches)

    def _stack(self, vectors: list[Tensor]) -> Tensor:
        return ACTIVATIONS[self.activation](torch.stack(vectors, dim=1))


class MultiTaskNet(Net):
    """Inner nets, then what a subclass does with their vectors.

    Where the inner nets have auxiliary losses (DCN v3, QNN-alpha, encoders of histories), their branches go through the rest
    of the net, too, see `finish`. A net of this kind can itself be the head behind a sequence encoder.

    Raises:
        ValueError: fewer than two tasks.
    """

    def __init__(self, spec: InputSpec, config: MultiTaskConfig) -> None:
        super().__init__()
        if spec.num_tasks < 2:
            raise ValueError(f"{type(self).__name__} needs at least two labels; for one, take model.name: {config.inner.name}")
        self.spec = spec
        self.reads_first_order = config.inner.wants_first_order
        self.experts: Experts

    @classmethod
    def wants_first_order(cls, config: NetConfig) -> bool:
        assert isinstance(config, MultiTaskConfig)
        return config.inner.wants_first_order

    def auxiliary_losses(self) -> Sequence[AuxiliaryLoss]:
        return self.experts.auxiliary_losses()

    def forward(self, inputs: Inputs) -> Tensor | TrainingOutput:
        self.spec.check(inputs, first_order=self.reads_first_order)
        return finish(self.experts(inputs), lambda experts_BMK: self.logits(experts_BMK, inputs), self.auxiliary_losses())

    def logits(self, experts_BMK: Tensor, inputs: Inputs) -> Tensor:
        """Vectors of the experts -> [B, T]."""
        raise NotImplementedError
