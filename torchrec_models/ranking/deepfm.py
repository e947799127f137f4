"""DeepFM: a factorization machine and an MLP over the same embeddings.

Guo et al., IJCAI 2017, arXiv 1703.04247, eq. 1-4: `y = sigmoid(y_FM + y_DNN)`, a plain sum of logits.
"""

from pydantic import Field
from torch import Tensor

from torchrec_models.layers.fields import FieldStack
from torchrec_models.layers.interaction import FactorizationMachine
from torchrec_models.layers.linear import Linear
from torchrec_models.layers.mlp import MLP
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class DeepFM(Net):
    """First-order weights + second-order interactions + MLP. The global bias is the MLP's output bias."""

    summary = "factorization machine + MLP on shared embeddings (Guo et al., IJCAI 2017)"
    first_order = True

    class Config(NetConfig):
        hidden_units: tuple[int, ...] = (400, 400, 400)
        activation: str = "relu"
        batch_norm: bool = False
        dropout: float = Field(0.0, ge=0, lt=1)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FieldStack(spec, who="DeepFM")
        self.dense_weight = Linear(spec.num_dense, 1, bias=False) if spec.num_dense else None
        self.fm = FactorizationMachine()
        self.mlp = MLP(
            self.fields.num_fields * self.fields.width,
            config.hidden_units,
            activation=config.activation,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
            out_width=spec.num_tasks,
        )

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs, first_order=True)
        fields_BNE = self.fields(inputs)
        first_B1 = inputs.first_order_BF.sum(dim=1, keepdim=True)
        if self.dense_weight is not None:
            first_B1 = first_B1 + self.dense_weight(inputs.dense_BD)
        return first_B1 + self.fm(fields_BNE) + self.mlp(fields_BNE.flatten(1))
