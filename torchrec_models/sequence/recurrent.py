"""A recurrent encoder: the slow baseline.

Hidasi et al., ICLR 2016, arXiv 1511.06939 (GRU4Rec) for GRUs over behaviour; the state after the newest event is the history.
"""

from typing import Literal

import torch
from torch import nn

from torchrec_models.net import NetConfig

from .encoder import Encoding, History, HistorySpec, SequenceEncoder


class RecurrentEncoder(SequenceEncoder):
    """The last hidden state of a GRU or LSTM; zero for an empty history. The candidate has no part in it.

    Padding comes after the events, so what the recurrence does there is never read.
    """

    needs_target = False

    class Config(NetConfig):
        cell: Literal["gru", "lstm"] = "gru"
        num_layers: int = 1
        hidden_width: int | None = None

    def __init__(self, spec: HistorySpec, config: Config) -> None:
        super().__init__()
        self.out_width = config.hidden_width or spec.width
        kind = nn.GRU if config.cell == "gru" else nn.LSTM
        self.recurrence = kind(spec.width, self.out_width, config.num_layers, batch_first=True)

    def forward(self, history: History) -> Encoding:
        states_BLK, _ = self.recurrence(history.values_BLE)
        lengths_B = history.mask_BL.sum(dim=1)
        last_B11 = (lengths_B - 1).clamp(min=0)[:, None, None]
        last_BK = states_BLK.gather(1, last_B11.expand(-1, 1, states_BLK.shape[2]))[:, 0]
        return Encoding(torch.where(lengths_B[:, None] > 0, last_BK, 0.0), history.values_BLE[:, 0, :0])
