"""Everything that a net is given, as one stack of vectors."""

import torch
from torch import Tensor, nn

from torchrec_models.net import Inputs, InputSpec


class FieldStack(nn.Module):
    """`Inputs` -> [B, N, E]: categorical fields, then numeric ones, then sequences.

    A numeric field j is its value times a vector of its own, `x_j * v_j` (DeepFM and AutoInt papers); a sequence is the mean
    of its vectors (an empty one is zero).

    Args:
        spec: sizes; all widths must be equal.
        numeric: include numeric fields (a net that treats them apart says False).
        who: the net's name, for the error.

    Shapes:
        output [B, N, E] with N = F + D (if `numeric`) + S, see `num_fields`.
    """

    def __init__(self, spec: InputSpec, *, who: str, numeric: bool = True) -> None:
        super().__init__()
        self.width = spec.uniform_width(who)
        self.sequences = [s.name for s in spec.sequences]
        self.num_categorical = len(spec.fields)
        num_numeric = spec.num_dense if numeric else 0
        self.num_fields = self.num_categorical + num_numeric + len(self.sequences)
        self.numeric_DE = nn.Parameter(torch.empty(num_numeric, self.width)) if num_numeric else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.numeric_DE is not None:
            nn.init.normal_(self.numeric_DE, std=0.01)

    def forward(self, inputs: Inputs) -> Tensor:
        parts = [inputs.fields_BC.unflatten(1, (self.num_categorical, self.width))] if self.num_categorical else []
        if self.numeric_DE is not None:
            parts.append(inputs.dense_BD[:, :, None] * self.numeric_DE)
        parts += [masked_mean(*inputs.sequences[name])[:, None, :] for name in self.sequences]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class FlatFields(nn.Module):
    """`Inputs` -> [B, X]: everything side by side, for nets that take one vector and do not mind unequal widths.

    Categorical fields, then sequences (the mean of their vectors), then numeric values as they are.

    Args:
        spec: sizes.
        who: the net's name, for the error.

    Shapes:
        output [B, X] with X = C + sum of sequence widths + D, see `out_width`; `widths` lists the parts, 1 per number.

    Raises:
        ValueError: if there is no feature at all.
    """

    def __init__(self, spec: InputSpec, *, who: str) -> None:
        super().__init__()
        self.sequences = [s.name for s in spec.sequences]
        self.widths = [f.width for f in spec.fields] + [s.width for s in spec.sequences] + [1] * spec.num_dense
        self.out_width = sum(self.widths)
        if not self.widths:
            raise ValueError(f"{who} needs at least one feature")

    def forward(self, inputs: Inputs) -> Tensor:
        pooled = [masked_mean(*inputs.sequences[name]) for name in self.sequences]
        return torch.cat([inputs.fields_BC, *pooled, inputs.dense_BD], dim=1)


def masked_mean(values_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """[B, E]: mean over the positions where the mask is True; zero for an empty row. Padding must be zero already."""
    return values_BLE.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True).clamp(min=1)
