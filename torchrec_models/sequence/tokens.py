"""The history and the candidate as one sequence: T = L + 1 tokens of a transformer.

Tokens of a row run from the oldest event to the newest, then the candidate, then padding. Since padding is last, a causal mask
hides it from every token that counts, and no mask per row is needed at all. Positions count backwards from the candidate, so they
do not depend on how far the sequence is padded; published codes, which pad in front, get the same from slot numbers.

Shapes in names: B batch, L events, T = L + 1 tokens, E width of an event, P width of a position.
"""

import math

import torch
from torch import Tensor, nn


def append_candidate(values_BLE: Tensor, candidate_BE: Tensor, lengths_B: Tensor) -> Tensor:
    """[B, T, E]: the events, and the candidate behind the newest. `lengths_B` counts the events."""
    padded_BTE = torch.cat([values_BLE, torch.zeros_like(candidate_BE)[:, None]], dim=1)
    slots_T = torch.arange(padded_BTE.shape[1], device=values_BLE.device)
    is_candidate_BT1 = (slots_T == lengths_B[:, None])[:, :, None]
    return torch.where(is_candidate_BT1, candidate_BE[:, None], padded_BTE)


def token_mask(lengths_B: Tensor, num_tokens: int) -> Tensor:
    """[B, T] bool: True for events and the candidate."""
    return torch.arange(num_tokens, device=lengths_B.device) <= lengths_B[:, None]


def candidate_token(tokens_BTE: Tensor, lengths_B: Tensor) -> Tensor:
    """[B, E]: the token at the candidate's place."""
    return tokens_BTE.gather(1, lengths_B[:, None, None].expand(-1, 1, tokens_BTE.shape[2]))[:, 0]


class Positions(nn.Module):
    """A trainable vector for each distance from the candidate: 0 is the candidate itself, 1 the newest event.

    Args:
        max_len: most events.
        width: P.
        sinusoids: start from the Transformer's sinusoids of slot numbers, the candidate in slot `max_len` (FuxiCTR's BST);
            otherwise from N(0, 0.01^2).

    Shapes:
        lengths [B], T -> [B, T, P].
    """

    def __init__(self, max_len: int, width: int, *, sinusoids: bool = False) -> None:
        super().__init__()
        self.sinusoids = sinusoids
        self.by_distance = nn.Parameter(torch.empty(max_len + 1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if not self.sinusoids:
            nn.init.normal_(self.by_distance, std=0.01)
            return
        num_tokens, width = self.by_distance.shape
        device = self.by_distance.device
        slots_T1 = torch.arange(num_tokens - 1, -1, -1, device=device)[:, None]
        even = torch.arange(0, width, 2, device=device)
        angles = slots_T1 * torch.exp(even * (-math.log(10_000.0) / width))
        with torch.no_grad():
            self.by_distance[:, 0::2] = angles.sin()
            self.by_distance[:, 1::2] = angles.cos()[:, : width // 2]

    def forward(self, lengths_B: Tensor, num_tokens: int) -> Tensor:
        distance_BT = (lengths_B[:, None] - torch.arange(num_tokens, device=lengths_B.device)).clamp(min=0)
        return nn.functional.embedding(distance_BT, self.by_distance)


class CandidateInterval(nn.Module):
    """The interval of the candidate to itself, a vector that is learned: [B, L, I] -> [B, T, I]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.zero_interval = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.zero_interval, std=0.01)

    def forward(self, intervals_BLI: Tensor, lengths_B: Tensor) -> Tensor:
        return append_candidate(intervals_BLI, self.zero_interval.expand(intervals_BLI.shape[0], -1), lengths_B)
