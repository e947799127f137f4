"""A net inside a net: the head behind a sequence encoder, the experts of a multi-task net."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from torchrec_models.losses.auxiliary import AuxiliaryLoss
from torchrec_models.net import InputSpec, Net, NetConfig, TrainingOutput, find_class


class NestedNet(BaseModel):
    """A section such as `{name: dcnv2, num_layers: 3}`: a net's name and its own options, as strict as `model:` itself.

    Raises:
        ValueError: an unknown net or options that it does not have.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="after")
    def _options_are_the_nets(self) -> "NestedNet":
        assert self.config is not None
        return self

    @property
    def net(self) -> type[Net]:
        from torchrec_models.ranking import NETS  # which imports the nets that hold others

        return find_class(self.name, NETS, (Net,))

    @property
    def options(self) -> dict[str, Any]:
        return self.model_extra or {}

    @property
    def config(self) -> NetConfig:
        return self.net.Config(**self.options)

    @property
    def wants_first_order(self) -> bool:
        return self.net.wants_first_order(self.config)

    def build(self, spec: InputSpec) -> Net:
        return self.net(spec, self.config)

    def build_vectors(self, spec: InputSpec, width: int) -> Net:
        """The net as a function to vectors [B, width]."""
        return self.build(spec._replace(num_tasks=width, tasks=()))


def finish(
    inner: Tensor | TrainingOutput, rest: Callable[[Tensor], Tensor], auxiliary: Sequence[AuxiliaryLoss]
) -> Tensor | TrainingOutput:
    """What a net makes of the output of the nets inside it: logits of the whole, and of each of their branches.

    A branch goes the same way as the whole, as if it were all that the inner nets had to say; so its loss is the tasks' loss,
    and trains what comes behind the inner nets, too.

    Args:
        inner: what they returned, of any shape.
        rest: -> logits [B, T].
        auxiliary: their losses.
    """
    if not isinstance(inner, TrainingOutput):
        return rest(inner)
    branches = {name: rest(branch) for name, branch in inner.branches.items()}
    for loss in auxiliary:
        whole_BT = loss.whole(branches)
        if whole_BT is not None:
            return TrainingOutput(whole_BT, branches)
    return TrainingOutput(rest(inner.logits_BT), branches)
