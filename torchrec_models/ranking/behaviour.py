"""The named sequence nets: one encoder each, any head behind it."""

from torchrec_models.ranking.sequential import SequentialNet
from torchrec_models.sequence.recurrent import RecurrentEncoder


class Recurrent(SequentialNet):
    """GRU or LSTM over the history."""

    summary = "last state of a GRU or LSTM over the history (GRU4Rec, Hidasi et al., ICLR 2016)"
    encoder_class = RecurrentEncoder

    class Config(SequentialNet.Config):
        encoder: RecurrentEncoder.Config = RecurrentEncoder.Config()
