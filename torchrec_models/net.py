"""The net protocol: what every ranking net is given, and what it must return.

Shapes in names: B batch, D dense features, F fields, E embedding width, C = sum of widths, L sequence length, T tasks.

A net is a plain `nn.Module`: tensors in, logits out. It owns a `Config`, never sees a KeyedJaggedTensor, a device, a loss or
an optimizer, and so can be tested, compiled, cast and exported on its own.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from torchrec_models.schema import Schema, Side, Task

if TYPE_CHECKING:
    from torchrec_models.losses.auxiliary import AuxiliaryLoss


class FieldSpec(NamedTuple):
    """One categorical feature as a net sees it: a vector of `width` floats per row."""

    name: str
    width: int


class SequenceSpec(NamedTuple):
    """One sequence as a net sees it: at most `max_len` vectors of `width` floats; `targets` are fields of the same table."""

    name: str
    width: int
    max_len: int
    targets: tuple[str, ...]


class InputSpec(NamedTuple):
    """The sizes that a net is built from.

    `tasks` says what the `num_tasks` logits are of; it is empty where they are no logits but the vector of a net inside a net.
    """

    dense: tuple[str, ...]
    fields: tuple[FieldSpec, ...]
    sequences: tuple[SequenceSpec, ...]
    num_tasks: int = 1
    tasks: tuple[Task, ...] = ()

    @property
    def num_dense(self) -> int:
        return len(self.dense)

    @property
    def fields_width(self) -> int:
        """C: the width of all fields side by side."""
        return sum(f.width for f in self.fields)

    def uniform_width(self, who: str) -> int:
        """E, for nets that need one width for all fields and sequences.

        Raises:
            ValueError: if widths differ or there is nothing to embed.
        """
        widths = {f.name: f.width for f in self.fields} | {s.name: s.width for s in self.sequences}
        if not widths:
            raise ValueError(f"{who} needs at least one categorical or sequence feature")
        if len(set(widths.values())) > 1:
            raise ValueError(f"{who} needs the same dim for every feature, got {_listed(widths)}")
        return next(iter(widths.values()))

    def check(self, inputs: "Inputs", *, first_order: bool = False) -> None:
        """Refuse inputs of other sizes, which broadcasting would hide. A net calls it first in its forward.

        Raises:
            ValueError: naming the first member that differs, what it is and what it should be.
        """
        widths = {"dense_BD": self.num_dense, "fields_BC": self.fields_width}
        if first_order:
            widths["first_order_BF"] = len(self.fields) + len(self.sequences)
        for name, width in widths.items():
            given = getattr(inputs, name).shape[1]
            if given != width:
                raise ValueError(f"the net was built for {name} of width {width}, got {given}")
        expected = {s.name: s.width for s in self.sequences}
        found = {name: values_BLE.shape[2] for name, (values_BLE, _) in inputs.sequences.items()}
        if found != expected:
            raise ValueError(f"the net was built for sequences {_listed(expected)}, got {_listed(found)}")

    @classmethod
    def from_schema(cls, schema: Schema, *, side: Side = "") -> "InputSpec":
        """The spec of all features, or of one tower's (`side`)."""
        chosen = [f for f in schema.features if not side or f.side == side]
        return cls(
            dense=tuple(f.name for f in chosen if f.kind == "numeric"),
            fields=tuple(FieldSpec(f.name, schema.table(f.table).dim) for f in chosen if f.kind == "categorical"),
            sequences=tuple(
                SequenceSpec(
                    f.name,
                    schema.table(f.table).dim,
                    f.max_len,
                    tuple(t.name for t in chosen if t.kind == "categorical" and t.table == f.table),
                )
                for f in chosen
                if f.kind == "sequence"
            ),
            num_tasks=len(schema.tasks),
            tasks=schema.tasks,
        )


def _listed(widths: dict[str, int]) -> str:
    return ", ".join(f"{name} of width {width}" for name, width in widths.items()) or "(none)"


class Inputs(NamedTuple):
    """What a net is called with. Field order is the spec's.

    Attributes:
        dense_BD: [B, D] float32; D may be 0.
        fields_BC: [B, C] float32, the embeddings of all categorical features side by side.
        first_order_BF: [B, F + S] float32, one weight per categorical feature, then one per sequence (summed over its
            ids); [B, 0] unless the net's class says `first_order = True`.
        sequences: name -> ([B, L, E] float32, zero where padded; [B, L] bool, True where an id is).
    """

    dense_BD: Tensor
    fields_BC: Tensor
    first_order_BF: Tensor
    sequences: dict[str, tuple[Tensor, Tensor]]


class TrainingOutput(NamedTuple):
    """What a net with branches returns in training mode.

    Attributes:
        logits_BT: [B, T], what `forward` alone returns in evaluation mode.
        branches: name -> [B, T], logits that only the net's `auxiliary_losses` read.
    """

    logits_BT: Tensor
    branches: dict[str, Tensor]


class NetConfig(BaseModel):
    """Base of every net's `Config`: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Net(nn.Module):
    """Base of ranking nets. Subclasses take `(spec, config)` and return logits [B, T].

    A net may also return vectors: built with `spec._replace(num_tasks=K)` it is a bottom or an expert of width K in another net.

    Class attributes:
        Config: the net's own options.
        first_order: True if the net reads `Inputs.first_order_BF` (one extra 1-wide table per categorical table).
        summary: one line, with paper and year, for `trm list`.
        uncompiled: the part that torch.compile leaves to eager mode, which breaks the graph; empty: it captures the whole net.
    """

    Config: ClassVar[type[NetConfig]] = NetConfig
    first_order: ClassVar[bool] = False
    summary: ClassVar[str] = ""
    uncompiled: ClassVar[str] = ""

    @classmethod
    def wants_first_order(cls, config: NetConfig) -> bool:
        """Whether a net of this config reads `Inputs.first_order_BF`; a net with others inside it asks them."""
        return cls.first_order

    def parallel_sequences(self) -> Sequence[tuple[str, ...]]:
        """Sequences read side by side, event by event, which must be equally long in every row."""
        return ()

    def auxiliary_losses(self) -> Sequence["AuxiliaryLoss"]:
        """What is added to the loss in training; these read the branches of the net's `TrainingOutput`."""
        return ()

    def forward(self, inputs: Inputs) -> Tensor | TrainingOutput:
        """Logits [B, T]; in training mode, a net that has auxiliary losses returns a `TrainingOutput`."""
        raise NotImplementedError


def find_class(name: str, known: Mapping[str, type], bases: tuple[type, ...]) -> type:
    """The class behind a config's `name`: a known one, or `package.module:Class` of your own.

    Raises:
        ValueError: unknown name, module or class; a class of none of the `bases`.
    """
    if name in known:
        return known[name]
    if ":" not in str(name):
        raise ValueError(f"given {name!r}; allowed: {', '.join(known)}, or package.module:Class")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"given {name!r}; cannot import it: {error}") from error
    if not (isinstance(found, type) and issubclass(found, bases)):
        allowed = " or ".join(f"{base.__module__}.{base.__name__}" for base in bases)
        raise ValueError(f"given {name!r}; it must be a subclass of {allowed}")
    return found
