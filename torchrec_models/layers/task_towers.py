"""The last part of nets with several objectives."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .mlp import MLP


class TaskTowers(nn.Module):
    """One MLP per task: `z_t = MLP_t(x_t)`.

    Args:
        in_width: width of each `x_t`.
        num_tasks: T.
        hidden_units: of each tower; may be empty (one Linear).
        activation, batch_norm, dropout: see `MLP`.

    Shapes:
        T vectors [B, in_width] -> [B, T].
    """

    def __init__(
        self,
        in_width: int,
        num_tasks: int,
        hidden_units: Sequence[int],
        *,
        activation: str = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            MLP(in_width, hidden_units, activation=activation, batch_norm=batch_norm, dropout=dropout, out_width=1)
            for _ in range(num_tasks)
        )

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        return torch.cat([tower(x_BK) for tower, x_BK in zip(self.towers, states, strict=True)], dim=1)
