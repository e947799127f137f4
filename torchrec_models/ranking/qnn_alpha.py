"""QNN-alpha: layers that multiply their input with sums of ReLUs of it, trained with the self-ensemble loss.

Li et al., KDD 2025, arXiv 2505.17999 (multi-head Khatri-Rao product, mid-activation, self-ensemble loss); for what the text
leaves open, the authors' code (salmon1802/QNN, `src/QNN_T26.py`).
"""

from collections.abc import Sequence

from pydantic import Field, model_validator
from torch import Tensor, nn

from torchrec_models.layers.dropout import dropout, relu_dropout_
from torchrec_models.layers.fields import FieldStack
from torchrec_models.layers.linear import Linear
from torchrec_models.losses.auxiliary import AuxiliaryLoss, SelfEnsemble
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig, TrainingOutput


class QNNAlpha(Net):
    """`x_{l+1} = dropout(x_l * sum_m h_m + x_l)`, `h = dropout(ReLU(BN(W_l x_l + b_l)))`, m = 1 .. M; `y = w x_L + b`.

    In training the net is run twice on the same embeddings, with different dropout, and both passes learn from their mean.

    Options:
        num_rows: M, how many half-spaces gate each channel.
        num_heads: heads of the Khatri-Rao product. They only say which output of W_l meets which channel of x_l, so with
            any number of them the net is the same function, as long as channels keep their places.
        head_shuffle: with several heads, the authors' code multiplies x_l in the order (head, field, channel) and adds it in
            the order (field, head, channel), so that every layer shuffles the channels. True matches it; it is another net.
        self_ensemble: two passes and `SelfEnsemble`; needs dropout.
    """

    summary = "quadratic layers with ReLU gates, self-ensemble loss (Li et al., KDD 2025)"

    class Config(NetConfig):
        num_layers: int = Field(3, ge=1)
        num_rows: int = Field(2, ge=1)
        num_heads: int = Field(1, ge=1)
        head_shuffle: bool = False
        batch_norm: bool = False
        dropout: float = Field(0.1, ge=0, lt=1)
        self_ensemble: bool = True

        @model_validator(mode="after")
        def _options_have_effect(self) -> "QNNAlpha.Config":
            if self.self_ensemble and self.dropout == 0:
                raise ValueError(
                    "self_ensemble needs dropout > 0, without which both passes are the same; or say self_ensemble: false"
                )
            if (self.num_heads > 1) != self.head_shuffle:
                raise ValueError(
                    f"num_heads={self.num_heads} with head_shuffle={self.head_shuffle}: several heads differ from one only in "
                    "the shuffle; use num_heads: 1, or more with head_shuffle: true"
                )
            return self

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FieldStack(spec, who="QNN-alpha")
        if self.fields.width % config.num_heads:
            raise ValueError(f"QNN-alpha needs a dim that num_heads={config.num_heads} divides, got {self.fields.width}")
        width = self.fields.num_fields * self.fields.width
        self.layers = nn.ModuleList(_QuadraticLayer(width, self.fields.num_fields, config) for _ in range(config.num_layers))
        self.out = Linear(width, spec.num_tasks)
        self.self_ensemble = config.self_ensemble

    def auxiliary_losses(self) -> Sequence[AuxiliaryLoss]:
        return (SelfEnsemble(("first", "second")),) if self.self_ensemble else ()

    def forward(self, inputs: Inputs) -> Tensor | TrainingOutput:
        self.spec.check(inputs)
        x_BC = self.fields(inputs).flatten(1)
        if not (self.training and self.self_ensemble):
            return self._logits(x_BC)
        first_BT, second_BT = self._logits(x_BC), self._logits(x_BC)
        return TrainingOutput(SelfEnsemble.mean_logits(first_BT, second_BT), {"first": first_BT, "second": second_BT})

    def _logits(self, x_BC: Tensor) -> Tensor:
        for layer in self.layers:
            x_BC = layer(x_BC)
        return self.out(x_BC)


class _QuadraticLayer(nn.Module):
    """One layer, [B, C] -> [B, C]; W has M * C outputs in the order (head, row, channel of the head)."""

    def __init__(self, width: int, num_fields: int, config: QNNAlpha.Config) -> None:
        super().__init__()
        self.num_fields = num_fields
        self.num_heads = config.num_heads
        self.num_rows = config.num_rows
        self.dropout = config.dropout
        self.linear = Linear(width, config.num_rows * width)
        self.norm = nn.BatchNorm1d(config.num_rows * width) if config.batch_norm else nn.Identity()

    def forward(self, x_BC: Tensor) -> Tensor:
        h_BMC = relu_dropout_(self.norm(self.linear(x_BC)), self.dropout, training=self.training)
        gate_BC = h_BMC.unflatten(1, (self.num_heads, self.num_rows, -1)).sum(dim=2).flatten(1)
        shuffled_BC = x_BC
        if self.num_heads > 1:
            shuffled_BC = x_BC.unflatten(1, (self.num_fields, self.num_heads, -1)).transpose(1, 2).flatten(1)
        return dropout(shuffled_BC * gate_BC + x_BC, self.dropout, training=self.training)
