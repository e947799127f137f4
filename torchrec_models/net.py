"""The net protocol: what every ranking net is given, and what it must return.

Shapes in names: B batch, D dense features, F fields, E embedding width, C = sum of widths, L sequence length, T tasks.

A net is a plain `nn.Module`: tensors in, logits out. It owns a `Config`, never sees a KeyedJaggedTensor, a device, a loss or
an optimizer, and so can be tested, compiled, cast and exported on its own.
"""

from typing import ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from torchrec_models.schema import Schema, Side


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
    """The sizes that a net is built from."""

    dense: tuple[str, ...]
    fields: tuple[FieldSpec, ...]
    sequences: tuple[SequenceSpec, ...]
    num_tasks: int = 1

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


class NetConfig(BaseModel):
    """Base of every net's `Config`: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Net(nn.Module):
    """Base of ranking nets. Subclasses take `(spec, config)` and return logits [B, T].

    Class attributes:
        Config: the net's own options.
        first_order: True if the net reads `Inputs.first_order_BF` (one extra 1-wide table per categorical table).
        summary: one line, with paper and year, for `trm list`.
    """

    Config: ClassVar[type[NetConfig]] = NetConfig
    first_order: ClassVar[bool] = False
    summary: ClassVar[str] = ""

    def forward(self, inputs: Inputs) -> Tensor:
        raise NotImplementedError
