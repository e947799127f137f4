"""AutoInt and AutoInt+: self-attention between fields, alone or beside an MLP.

Song et al., CIKM 2019, arXiv 1810.11921, eq. 5-9.
"""

from pydantic import Field
from torch import Tensor, nn

from torchrec_models.layers.attention import InteractingLayer, LayerNormPlace, Residual
from torchrec_models.layers.dropout import MAX_DROPOUT
from torchrec_models.layers.fields import FieldStack
from torchrec_models.layers.linear import Linear
from torchrec_models.layers.mlp import MLP
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class AutoInt(Net):
    """`y = w vec(e^(L)) + b`, `e^(l+1) = InteractingLayer(e^(l))`; AutoInt+ adds `MLP(vec(e^(0)))`.

    The defaults are the paper's. The authors' code: `qkv_relu: true, qkv_bias: true, scale: true, layer_norm: post_relu,
    residual: project`. BARS: `layer_norm: pre_relu` where it lists layer_norm, `residual: auto` where it lists use_residual (else
    none), its net_dropout for both `dropout` and `attention_dropout`. See `InteractingLayer`.

    Config:
        num_layers, num_heads: of the attention.
        attention_width: of all heads together (`attention_dim` in FuxiCTR and the authors' code, not in DeepCTR).
        hidden_units: of the MLP of AutoInt+; empty (default): AutoInt.
        wide: add first-order weights.
    """

    summary = "self-attention between fields, with hidden_units beside an MLP: AutoInt+ (Song et al., CIKM 2019)"

    class Config(NetConfig):
        num_layers: int = Field(3, ge=1)
        num_heads: int = Field(2, ge=1)
        attention_width: int = Field(64, ge=1)
        qkv_relu: bool = False
        qkv_bias: bool = False
        scale: bool = False
        layer_norm: LayerNormPlace = "none"
        residual: Residual = "auto"
        attention_dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)
        hidden_units: tuple[int, ...] = ()
        activation: str = "relu"
        batch_norm: bool = False
        dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)
        wide: bool = False

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.wide = config.wide
        self.fields = FieldStack(spec, who="AutoInt")
        self.attention = nn.Sequential(
            *(
                InteractingLayer(
                    config.attention_width if i else self.fields.width,
                    config.attention_width,
                    num_heads=config.num_heads,
                    qkv_relu=config.qkv_relu,
                    qkv_bias=config.qkv_bias,
                    scale=config.scale,
                    layer_norm=config.layer_norm,
                    residual=config.residual,
                    dropout=config.attention_dropout,
                )
                for i in range(config.num_layers)
            )
        )
        self.out = Linear(self.fields.num_fields * config.attention_width, spec.num_tasks)
        self.dense_weight = Linear(spec.num_dense, 1, bias=False) if config.wide and spec.num_dense else None
        self.mlp = None
        if config.hidden_units:
            self.mlp = MLP(
                self.fields.num_fields * self.fields.width,
                config.hidden_units,
                activation=config.activation,
                batch_norm=config.batch_norm,
                dropout=config.dropout,
                out_width=spec.num_tasks,
            )

    @classmethod
    def wants_first_order(cls, config: NetConfig) -> bool:
        assert isinstance(config, cls.Config)
        return config.wide

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs, first_order=self.wide)
        fields_BNE = self.fields(inputs)
        logits_BT = self.out(self.attention(fields_BNE).flatten(1))
        if self.mlp is not None:
            logits_BT = logits_BT + self.mlp(fields_BNE.flatten(1))
        if self.wide:
            logits_BT = logits_BT + inputs.first_order_BF.sum(dim=1, keepdim=True)
        if self.dense_weight is not None:
            logits_BT = logits_BT + self.dense_weight(inputs.dense_BD)
        return logits_BT
