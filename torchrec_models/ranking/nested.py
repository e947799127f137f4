"""A net inside a net: the head behind a sequence encoder, the experts of a multi-task net."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from torchrec_models.net import InputSpec, Net, NetConfig, find_class


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
