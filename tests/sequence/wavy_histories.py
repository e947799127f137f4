"""Histories and encoders whose numbers are fixed waves (see `waves.py`)."""

import torch
from torch import Tensor, nn
from waves import wave

from torchrec_models.sequence.encoder import History, HistorySpec

SPEC = HistorySpec((3, 2), (3, 2), 4, (), 5)  # two parallel sequences, 4 events


def wavy_history(lengths: tuple[int, ...]) -> History:
    """The candidate is wave(20), the events are wave(21), zero where padded."""
    mask_BL = torch.arange(SPEC.max_len) < torch.tensor(lengths)[:, None]
    target_BE = wave(len(lengths), SPEC.width, phase=20).requires_grad_()
    values_BLE = (wave(len(lengths), SPEC.max_len, SPEC.width, phase=21) * mask_BL[:, :, None]).requires_grad_()
    nothing_B0, nothing_BL0 = target_BE[:, :0], values_BLE[:, :, :0]
    return History(target_BE, values_BLE, mask_BL, target_BE, values_BLE, nothing_B0, nothing_BL0)


def make_wavy(module: nn.Module) -> None:
    """Parameter i in alphabetic order becomes wave(i)."""
    module.double()
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(module.named_parameters())):
            parameter.copy_(wave(*parameter.shape, phase=i))


def gradient_sums(module: nn.Module, **inputs: Tensor) -> dict[str, float]:
    """sum(gradient * wave(0.3)) of each parameter and input."""
    found = {name: p.grad for name, p in module.named_parameters()} | {name: x.grad for name, x in inputs.items()}
    return {name: float((g * wave(*g.shape, phase=0.3)).sum()) for name, g in found.items() if g is not None}
