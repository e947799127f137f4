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


def masked_mean(values_BLE: Tensor, mask_BL: Tensor) -> Tensor:
    """[B, E]: mean over the positions where the mask is True; zero for an empty row. Padding must be zero already."""
    return values_BLE.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True).clamp(min=1)
