"""FinalMLP: two MLPs over differently gated embeddings, fused by a bilinear form.

Mao et al., AAAI 2023, arXiv 2304.00902.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from torchrec_models.layers.dropout import MAX_DROPOUT
from torchrec_models.layers.fields import FieldStack
from torchrec_models.layers.linear import Linear
from torchrec_models.layers.mlp import MLP
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class FeatureGate(nn.Module):
    """`2 sigmoid(MLP(context))`, a factor in (0, 2) for every number of the stream's input.

    Args:
        context: places of the context fields in the stack; without any, a learned vector is the context of all rows.
        width: E.
        hidden_units: of the MLP.
        out_width: D, of the gated vector.

    Shapes:
        [B, N, E] -> [B, D], or [1, D] without context fields.
    """

    def __init__(self, context: list[int], width: int, hidden_units: tuple[int, ...], out_width: int) -> None:
        super().__init__()
        self.context = context
        self.context_1E = None if context else nn.Parameter(torch.empty(1, width))
        self.mlp = MLP(width * max(1, len(context)), hidden_units, out_width=out_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """At the zeros of FuxiCTR (2026-06-05) no gradient passes the ReLU and the MLP would never move, but for its last bias."""
        if self.context_1E is not None:
            nn.init.normal_(self.context_1E, std=0.01)

    def forward(self, fields_BNE: Tensor) -> Tensor:
        context = self.context_1E if self.context_1E is not None else take_fields(fields_BNE, self.context)
        return 2 * self.mlp(context).sigmoid()


class BilinearFusion(nn.Module):
    """`w1 o1 + w2 o2 + b + sum_h o1_h^T W_h o2_h`, one set of weights per task.

    `b` is the sum of two parameters, one with each `w`, as in the authors' code.

    Args:
        first_width, second_width: of the two streams, multiples of `num_heads`.
        num_heads: chunks of each stream; chunk h of one meets chunk h of the other.
        num_tasks: T.

    Shapes:
        ([B, first_width], [B, second_width]) -> [B, T].

    Raises:
        ValueError: a width that `num_heads` does not divide.
    """

    def __init__(self, first_width: int, second_width: int, *, num_heads: int, num_tasks: int) -> None:
        super().__init__()
        if first_width % num_heads or second_width % num_heads:
            raise ValueError(
                f"the last widths of mlp1_units and mlp2_units must be multiples of num_heads ({num_heads}), "
                f"got {first_width} and {second_width}"
            )
        self.first = Linear(first_width, num_tasks)
        self.second = Linear(second_width, num_tasks)
        self.weight_HXTY = nn.Parameter(torch.empty(num_heads, first_width // num_heads, num_tasks, second_width // num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-normal of a matrix [H X Y, T], as in FuxiCTR (2026-06-05, `model_zoo/FinalMLP/src/FinalMLP.py`)."""
        num_heads, first, num_tasks, second = self.weight_HXTY.shape
        nn.init.normal_(self.weight_HXTY, std=(2 / (num_heads * first * second + num_tasks)) ** 0.5)

    def forward(self, first_BX: Tensor, second_BY: Tensor) -> Tensor:
        num_heads, first, num_tasks, second = self.weight_HXTY.shape
        first_HBX = first_BX.unflatten(1, (num_heads, first)).transpose(0, 1)
        products_HBTY = torch.bmm(first_HBX, self.weight_HXTY.flatten(2)).unflatten(2, (num_tasks, second))
        second_HB1Y = second_BY.unflatten(1, (num_heads, 1, second)).transpose(0, 1)
        bilinear_BT = (products_HBTY * second_HB1Y).sum(dim=(0, 3))
        return self.first(first_BX) + self.second(second_BY) + bilinear_BT


class FinalMLP(Net):
    """`o_s = MLP_s(gate_s * x)`, s = 1, 2; the logits are their bilinear fusion.

    Config:
        mlp1_units, mlp2_units: of the streams; both last widths must be multiples of `num_heads`.
        mlp1_dropout, mlp2_dropout, mlp1_batch_norm, mlp2_batch_norm: of the streams.
        gates: feature selection (`use_fs` in BARS); without it both streams read the embeddings as they are.
        gate_units: hidden layers of the gates (`fs_hidden_units` in BARS).
        gate1_context, gate2_context: features whose vectors steer the gates; empty (default): a learned vector, the same for
            all rows.
        context_in_streams: whether context features are inputs of the streams, too. In the released code the contexts have
            tables of their own: declare the feature twice (`user_gate: {column: user, ...}`), name the second in the context
            and say `context_in_streams: false`.
        num_heads: of the fusion.
    """

    summary = "two MLPs on gated embeddings, fused by a bilinear form (Mao et al., AAAI 2023)"

    class Config(NetConfig):
        mlp1_units: tuple[int, ...] = Field((400, 400, 400), min_length=1)
        mlp2_units: tuple[int, ...] = Field((400,), min_length=1)
        mlp1_dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)
        mlp2_dropout: float = Field(0.0, ge=0, le=MAX_DROPOUT)
        mlp1_batch_norm: bool = False
        mlp2_batch_norm: bool = False
        activation: str = "relu"
        gates: bool = True
        gate_units: tuple[int, ...] = (64,)
        gate1_context: tuple[str, ...] = ()
        gate2_context: tuple[str, ...] = ()
        context_in_streams: bool = True
        num_heads: int = Field(1, ge=1)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FieldStack(spec, who="FinalMLP")
        names = [*(f.name for f in spec.fields), *spec.dense, *(s.name for s in spec.sequences)]
        contexts = _check_contexts(config, names)
        apart = set() if config.context_in_streams else set(contexts)
        self.stream_fields = [i for i, name in enumerate(names) if name not in apart]
        width = len(self.stream_fields) * self.fields.width
        self.gates = None
        if config.gates:
            self.gates = nn.ModuleList(
                FeatureGate([names.index(name) for name in context], self.fields.width, config.gate_units, width)
                for context in (config.gate1_context, config.gate2_context)
            )
        self.mlp1 = MLP(
            width,
            config.mlp1_units,
            activation=config.activation,
            batch_norm=config.mlp1_batch_norm,
            dropout=config.mlp1_dropout,
        )
        self.mlp2 = MLP(
            width,
            config.mlp2_units,
            activation=config.activation,
            batch_norm=config.mlp2_batch_norm,
            dropout=config.mlp2_dropout,
        )
        self.fusion = BilinearFusion(self.mlp1.out_width, self.mlp2.out_width, num_heads=config.num_heads, num_tasks=spec.num_tasks)

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs)
        fields_BNE = self.fields(inputs)
        first_BX = second_BX = take_fields(fields_BNE, self.stream_fields)
        if self.gates is not None:
            gate1, gate2 = self.gates
            first_BX, second_BX = gate1(fields_BNE) * first_BX, gate2(fields_BNE) * second_BX
        return self.fusion(self.mlp1(first_BX), self.mlp2(second_BX))


def take_fields(fields_BNE: Tensor, places: list[int]) -> Tensor:
    """[B, len(places) * E]: these fields side by side."""
    if places == list(range(fields_BNE.shape[1])):
        return fields_BNE.flatten(1)
    return torch.cat([fields_BNE[:, i] for i in places], dim=1)


def _check_contexts(config: FinalMLP.Config, names: list[str]) -> list[str]:
    """All context features.

    Raises:
        ValueError: unknown names; contexts that have no effect; streams without input.
    """
    contexts = [*config.gate1_context, *config.gate2_context]
    unknown = [name for name in contexts if name not in names]
    if unknown:
        raise ValueError(f"gate1_context and gate2_context name features; given {', '.join(unknown)}; there are {', '.join(names)}")
    if contexts and not config.gates:
        raise ValueError("gate1_context and gate2_context have no effect with gates: false")
    if not config.context_in_streams and not contexts:
        raise ValueError("context_in_streams: false has no effect without gate1_context or gate2_context")
    if not config.context_in_streams and set(names) == set(contexts):
        raise ValueError("with context_in_streams: false the streams need a feature that is no context")
    return contexts
