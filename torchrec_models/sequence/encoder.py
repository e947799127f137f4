"""The encoder protocol: a history in, one vector per row out.

Shapes in names: B batch, L sequence length, E width of the history's vectors, A width of the vectors that attention scores,
X width of the context, I width of the intervals, K width of the result.

A history is one sequence, or several that run in parallel (item, category, time gap of the same events), side by side. An
encoder is a plain `nn.Module`: it never sees other rows' order, a table or a loss.
"""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from torchrec_models.net import FieldSpec, NetConfig


class HistorySpec(NamedTuple):
    """The sizes that an encoder is built from.

    Attributes:
        widths: of the parallel sequences; E is their sum, and the target's width, too.
        attention_widths: of the sequences that attention scores; `widths` again unless tables are decoupled.
        max_len: most events of a row.
        context: the row's other categorical fields.
        attention_target_width: of the candidate's vector that attention reads; A, unless the candidate alone has a table of
            its own there.
        interval_width: I, 0 without intervals.
        decoupled: whether attention has tables of its own for the events.
    """

    widths: tuple[int, ...]
    attention_widths: tuple[int, ...]
    max_len: int
    context: tuple[FieldSpec, ...]
    attention_target_width: int
    interval_width: int = 0
    decoupled: bool = False

    @property
    def width(self) -> int:
        """E."""
        return sum(self.widths)

    @property
    def attention_width(self) -> int:
        """A."""
        return sum(self.attention_widths)


class History(NamedTuple):
    """What an encoder is called with. Events run from oldest to newest, then padding.

    Attributes:
        target_BE: the candidate, by the same tables as the events; [B, 0] if the encoder's `needs_target` is False and there
            is none.
        values_BLE: the events' vectors, zero where padded.
        mask_BL: bool, True where an event is.
        attention_target_BA, attention_values_BLA: the same by the tables that attention scores; without decoupled tables
            these are `target_BE` and `values_BLE` themselves.
        context_BX: the row's other categorical fields side by side.
        intervals_BLI: embedded time between each event and the candidate; zero where padded.
    """

    target_BE: Tensor
    values_BLE: Tensor
    mask_BL: Tensor
    attention_target_BA: Tensor
    attention_values_BLA: Tensor
    context_BX: Tensor
    intervals_BLI: Tensor


class Encoding(NamedTuple):
    """What an encoder returns.

    Attributes:
        pooled_BK: [B, out_width].
        auxiliary_BE: as wide as `SequenceEncoder.target` in training mode if the encoder's `auxiliary_weight` is not 0, else
            [B, 0]: a second vector, from which the net around the encoder predicts the labels, too.
    """

    pooled_BK: Tensor
    auxiliary_BE: Tensor


class SequenceEncoder(nn.Module):
    """Base of encoders. Subclasses take `(spec, config)`; an empty history must give a finite result, padding no effect.

    Class attributes:
        Config: the encoder's own options.
        needs_target: False if it makes sense without a candidate.
        decouples: True if it reads the attention members of `History`; others refuse decoupled tables.
        decouples_target: True if it reads `attention_target_BA` alone: attention may see the candidate by other tables.
        takes_intervals: True if it reads `intervals_BLI`; others refuse intervals.

    Attributes:
        out_width: K.
        auxiliary_weight: of the loss on `Encoding.auxiliary_BE`; 0 if there is none.
        position_width: P, columns that the encoder appends to the events' vectors and to the candidate.
    """

    Config: ClassVar[type[NetConfig]] = NetConfig
    needs_target: ClassVar[bool] = True
    decouples: ClassVar[bool] = False
    decouples_target: ClassVar[bool] = False
    takes_intervals: ClassVar[bool] = False
    out_width: int
    auxiliary_weight: float = 0.0
    position_width: int = 0

    def target(self, history: History) -> Tensor:
        """[B, E + P]: the candidate as it is multiplied with the encoding (`product: true`) and with the auxiliary vector."""
        return history.target_BE

    def forward(self, history: History) -> Encoding:
        raise NotImplementedError
