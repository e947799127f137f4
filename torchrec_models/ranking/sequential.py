"""A sequence encoder in front of any interaction net.

Each history becomes a vector (see `sequence/encoder.py`), which the head sees as further fields beside the candidate and the rest
of the row. So any encoder meets any head: `{name: dare, head: {name: qnn_alpha}}`.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchrec_models.layers.activations import Dice
from torchrec_models.layers.mlp import MLP
from torchrec_models.losses.auxiliary import AuxiliaryLoss, BranchLoss
from torchrec_models.net import FieldSpec, Inputs, InputSpec, Net, NetConfig, SequenceSpec, TrainingOutput
from torchrec_models.ranking.nested import NestedNet
from torchrec_models.sequence.encoder import Encoding, History, HistorySpec, SequenceEncoder


class HistoryConfig(NetConfig):
    """Which features make one history.

    Args:
        sequences: parallel sequences of the same events, for example [item_history, category_history].
        targets: the candidate's field for each of them; default: the first categorical feature of the same table.
        attention: sequences that attention scores, where these have tables of their own (DARE); default: `sequences`.
        attention_targets: their candidates; default as for `targets`. Given without `attention`: fields of any tables, by
            which attention sees the candidate (FESeq's output table).
        intervals: sequences that say how long before the candidate each event was, as buckets; nothing else reads their tables.
    """

    sequences: tuple[str, ...] = Field(min_length=1)
    targets: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    attention_targets: tuple[str, ...] = ()
    intervals: tuple[str, ...] = ()


class ResolvedHistory(NamedTuple):
    """A history with every name looked up; `attention` is `sequences` itself unless tables are decoupled."""

    sequences: tuple[SequenceSpec, ...]
    targets: tuple[FieldSpec, ...]
    attention: tuple[SequenceSpec, ...]
    attention_targets: tuple[FieldSpec, ...]
    intervals: tuple[SequenceSpec, ...]

    @property
    def name(self) -> str:
        return self.sequences[0].name

    def spec(self, context: tuple[FieldSpec, ...]) -> HistorySpec:
        return HistorySpec(
            tuple(s.width for s in self.sequences),
            tuple(s.width for s in self.attention),
            self.sequences[0].max_len,
            context,
            sum(f.width for f in self.attention_targets),
            sum(s.width for s in self.intervals),
            self.attention is not self.sequences,
        )


class SequentialNet(Net):
    """`head([fields; encoder(history); encoder(history) * candidate])`.

    Subclasses name the encoder. Sequences that are part of no history go to the head as they are; candidates by attention's
    own tables go to the encoder alone. `product` adds the elementwise product of the encoded history and the candidate.
    `auxiliary_units` is the MLP that predicts the labels from an encoder's auxiliary vector in training, given
    [candidate; vector; product] (DARE, SIM).

    `rows_per_pass`, in training, encodes so many rows at a time and keeps only what goes in: backward encodes them anew. The
    encoder's memory is then that of these rows, for about a third more time in it. 0: all rows at once.

    Raises:
        ValueError: no history; a name that is no sequence or field; parallel sequences of different `max_len`; decoupled
            tables with an encoder that scores and sums the same vectors; a product of different widths; `rows_per_pass` with
            an encoder that normalises over the batch.
    """

    encoder_class: ClassVar[type[SequenceEncoder]]

    class Config(NetConfig):
        histories: tuple[HistoryConfig, ...] = ()
        encoder: NetConfig = NetConfig()
        head: NestedNet = Field(default_factory=lambda: NestedNet.model_validate({"name": "dnn", "hidden_units": [200, 80]}))
        product: bool = False
        auxiliary_units: tuple[int, ...] = (200,)
        rows_per_pass: int = Field(0, ge=0)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.histories = resolve_histories(spec, config.histories, self.encoder_class)
        attended = {f.name for h in self.histories for f in h.attention_targets if f not in h.targets}
        encoded = {s.name for h in self.histories for s in (*h.sequences, *h.attention, *h.intervals)}
        fields = [f for f in spec.fields if f.name not in attended]
        self.kept = [f.name for f in fields]
        self.context = [[f.name for f in fields if f not in h.targets] for h in self.histories]
        encoders = [
            self.encoder_class(history.spec(tuple(f for f in fields if f.name in names)), config.encoder)
            for history, names in zip(self.histories, self.context)
        ]
        self.encoders = nn.ModuleList(encoders)
        self.auxiliary_weights = [e.auxiliary_weight for e in encoders]
        self.product = config.product
        self.rows_per_pass = config.rows_per_pass
        if config.rows_per_pass and any(isinstance(m, Dice | nn.BatchNorm1d) for m in self.encoders.modules()):
            raise ValueError(
                f"{self.encoder_class.__name__} normalises over the batch here (batch_norm, Dice), which rows_per_pass: "
                f"{config.rows_per_pass} would take apart; use rows_per_pass: 0, or another activation"
            )
        new = [f for h, e in zip(self.histories, encoders) for f in _new_fields(h, e, product=config.product)]
        self.num_new = len(new)
        self.left = [s for s in spec.sequences if s.name not in encoded]
        self.head = config.head.build(spec._replace(fields=(*fields, *new), sequences=tuple(self.left)))
        self.head_first_order = config.head.wants_first_order
        self.auxiliary = nn.ModuleDict(
            {
                f"{h.name}_auxiliary": MLP(
                    3 * (h.spec(()).width + e.position_width), config.auxiliary_units, out_width=spec.num_tasks
                )
                for h, e in zip(self.histories, encoders)
                if e.auxiliary_weight
            }
        )

    @classmethod
    def wants_first_order(cls, config: NetConfig) -> bool:
        assert isinstance(config, SequentialNet.Config)
        return config.head.wants_first_order

    def parallel_sequences(self) -> list[tuple[str, ...]]:
        return [tuple(s.name for s in (*h.sequences, *h.attention, *h.intervals)) for h in self.histories]

    def auxiliary_losses(self) -> list[AuxiliaryLoss]:
        weights = filter(None, self.auxiliary_weights)
        own: list[AuxiliaryLoss] = [BranchLoss(name, weight=weight) for name, weight in zip(self.auxiliary, weights)]
        return [*own, *self.head.auxiliary_losses()]

    def forward(self, inputs: Inputs) -> Tensor | TrainingOutput:
        self.spec.check(inputs, first_order=self.head_first_order)
        widths = [f.width for f in self.spec.fields]
        fields = dict(zip([f.name for f in self.spec.fields], inputs.fields_BC.split(widths, dim=1))) if widths else {}
        vectors = [fields[name] for name in self.kept]
        branches: dict[str, Tensor] = {}
        for resolved, names, encoder, weight in zip(self.histories, self.context, self.encoders, self.auxiliary_weights):
            history = _gather(resolved, names, fields, inputs)
            assert isinstance(encoder, SequenceEncoder)
            pooled_BK, auxiliary_BE = self._encode(encoder, history)
            vectors.append(pooled_BK)
            if self.product:
                vectors.append(pooled_BK * encoder.target(history))
            if self.training and weight:
                name, target_BE = f"{resolved.name}_auxiliary", encoder.target(history)
                branches[name] = self.auxiliary[name](torch.cat([target_BE, auxiliary_BE, target_BE * auxiliary_BE], dim=1))
        left = {s.name: inputs.sequences[s.name] for s in self.left}
        first_BF = self._first_order(inputs) if self.head_first_order else inputs.first_order_BF
        output = self.head(Inputs(inputs.dense_BD, torch.cat(vectors, dim=1), first_BF, left))
        if isinstance(output, TrainingOutput):
            return TrainingOutput(output.logits_BT, branches | output.branches)
        return TrainingOutput(output, branches) if branches else output

    def _encode(self, encoder: nn.Module, history: History) -> Encoding:
        if not (self.rows_per_pass and self.training and torch.is_grad_enabled()) or torch.compiler.is_compiling():
            return encoder(history)
        parts = zip(*(member.split(self.rows_per_pass) for member in history))
        encodings = [checkpoint(encoder, History(*part), use_reentrant=False) for part in parts]
        return Encoding(*(torch.cat(members) for members in zip(*encodings)))

    def _first_order(self, inputs: Inputs) -> Tensor:
        """First-order weights in the head's order: the histories' weights are summed into the first new field."""
        columns = [f.name for f in self.spec.fields] + [s.name for s in self.spec.sequences]
        weights = dict(zip(columns, inputs.first_order_BF.split(1, dim=1)))
        left = [s.name for s in self.left]
        taken = torch.stack([weights[name] for name in columns if name not in self.kept and name not in left]).sum(dim=0)
        new_BN = torch.cat([taken, taken.new_zeros(taken.shape[0], self.num_new - 1)], dim=1)
        return torch.cat([*[weights[n] for n in self.kept], new_BN, *[weights[n] for n in left]], dim=1)


def resolve_histories(spec: InputSpec, configs: tuple[HistoryConfig, ...], encoder: type[SequenceEncoder]) -> list[ResolvedHistory]:
    """The histories that a config names; without any, each sequence that the encoder can take is one.

    Raises:
        ValueError: see `SequentialNet`.
    """
    who = encoder.__name__
    if not configs:
        configs = tuple(HistoryConfig(sequences=(s.name,)) for s in spec.sequences if s.targets or not encoder.needs_target)
    if not configs:
        what = "whose table a categorical feature (the candidate) reads, too" if encoder.needs_target else "feature"
        raise ValueError(f"{who} needs at least one history: a sequence {what}")
    out = []
    for config in configs:
        sequences = tuple(_named(spec.sequences, name, "sequence", who) for name in config.sequences)
        targets = _targets(spec, sequences, config.targets, who, needed=encoder.needs_target)
        attention = tuple(_named(spec.sequences, name, "sequence", who) for name in config.attention)
        if attention and not encoder.decouples:
            raise ValueError(
                f"{who} scores and sums the same vectors; leave out `attention`, or take an encoder that decouples them"
            )
        if attention or not config.attention_targets:
            attention_targets = _targets(spec, attention, config.attention_targets, who, needed=True)
        elif encoder.decouples_target:
            attention_targets = tuple(_named(spec.fields, name, "categorical feature", who) for name in config.attention_targets)
        else:
            raise ValueError(f"{who}: attention_targets need `attention`, the sequences that read the same tables")
        intervals = tuple(_named(spec.sequences, name, "sequence", who) for name in config.intervals)
        if intervals and not encoder.takes_intervals:
            raise ValueError(f"{who} makes no use of intervals; list them in `sequences`, or leave them out")
        lengths = {s.name: s.max_len for s in (*sequences, *attention, *intervals)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"parallel sequences of one history need the same max_len, got {lengths}")
        out.append(ResolvedHistory(sequences, targets, attention or sequences, attention_targets or targets, intervals))
    return out


def _targets(
    spec: InputSpec, sequences: tuple[SequenceSpec, ...], given: tuple[str, ...], who: str, *, needed: bool
) -> tuple[FieldSpec, ...]:
    if given and len(given) != len(sequences):
        raise ValueError(f"{len(sequences)} sequences need as many targets, got {len(given)}: {', '.join(given)}")
    names = given or tuple(s.targets[0] if s.targets else "" for s in sequences)
    for sequence, name in zip(sequences, names):
        if not name and needed:
            raise ValueError(f"{who}: no categorical feature reads the table of {sequence.name!r}, so it has no candidate")
        if name and name not in sequence.targets:
            readers = ", ".join(sequence.targets) or "none"
            raise ValueError(f"{who}: {name!r} does not read the table of {sequence.name!r}; those that do: {readers}")
    return tuple(_named(spec.fields, name, "categorical feature", who) for name in names) if all(names) else ()


def _named(specs: tuple[Any, ...], name: str, kind: str, who: str) -> Any:
    for spec in specs:
        if spec.name == name:
            return spec
    raise ValueError(f"{who}: no {kind} {name!r}; there are: {', '.join(s.name for s in specs) or 'none'}")


def _new_fields(history: ResolvedHistory, encoder: SequenceEncoder, *, product: bool) -> list[FieldSpec]:
    """The head's fields for one history: one per sequence where the encoder keeps widths, else one of its own width."""
    width, out_width = history.spec(()).width + encoder.position_width, encoder.out_width
    if out_width == width:
        pooled = [FieldSpec(f"{s.name}_encoded", s.width) for s in history.sequences]
        pooled += [FieldSpec(f"{history.name}_position_encoded", encoder.position_width)] if encoder.position_width else []
    elif product:
        raise ValueError(f"product: true needs an encoding as wide as the candidate, {width}; got {out_width}")
    else:
        pooled = [FieldSpec(f"{history.name}_encoded", out_width)]
    if product and not history.targets:
        raise ValueError(f"product: true needs a candidate, and the history {history.name!r} has none")
    return pooled + [FieldSpec(f"{f.name}_product", f.width) for f in pooled] * product


def _gather(resolved: ResolvedHistory, context: list[str], fields: dict[str, Tensor], inputs: Inputs) -> History:
    nothing_B0, nothing_BL0 = inputs.fields_BC[:, :0], inputs.sequences[resolved.name][0][:, :, :0]

    def side_by_side(names: list[str]) -> Tensor:
        return torch.cat([fields[name] for name in names], dim=1) if names else nothing_B0

    def parallel(sequences: tuple[SequenceSpec, ...]) -> Tensor:
        parts = [inputs.sequences[s.name][0] for s in sequences] or [nothing_BL0]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    target_BE, values_BLE = side_by_side([f.name for f in resolved.targets]), parallel(resolved.sequences)
    return History(
        target_BE,
        values_BLE,
        inputs.sequences[resolved.name][1],
        target_BE if resolved.attention_targets is resolved.targets else side_by_side([f.name for f in resolved.attention_targets]),
        values_BLE if resolved.attention is resolved.sequences else parallel(resolved.attention),
        side_by_side(context),
        parallel(resolved.intervals),
    )
