"""DNN: an MLP over everything side by side.

The deep part of Cheng et al. 2016, arXiv 1606.07792, alone; "YoutubeDNN" in the BARS tables.
"""

from pydantic import Field
from torch import Tensor

from torchrec_models.layers.fields import FlatFields
from torchrec_models.layers.mlp import MLP
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class DNN(Net):
    """`y = MLP([fields; sequences; numbers])`."""

    summary = "an MLP over all embeddings side by side (Covington et al., RecSys 2016)"

    class Config(NetConfig):
        hidden_units: tuple[int, ...] = (400, 400, 400)
        activation: str = "relu"
        batch_norm: bool = False
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FlatFields(spec, who="DNN")
        self.mlp = MLP(
            self.fields.out_width,
            config.hidden_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            out_width=spec.num_tasks,
        )

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs)
        return self.mlp(self.fields(inputs))
