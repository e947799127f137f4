"""The named sequence nets: one encoder each, any head behind it."""

from pydantic import Field

from torchrec_models.ranking.nested import NestedNet
from torchrec_models.ranking.sequential import SequentialNet
from torchrec_models.sequence.bst import BSTEncoder
from torchrec_models.sequence.dare import DAREEncoder
from torchrec_models.sequence.din import DINEncoder
from torchrec_models.sequence.feseq import FESeqEncoder
from torchrec_models.sequence.hstu import HSTUEncoder
from torchrec_models.sequence.recurrent import RecurrentEncoder
from torchrec_models.sequence.sdim import SDIMEncoder
from torchrec_models.sequence.sim import SIMEncoder


def mlp_head(*hidden_units: int, activation: str = "relu") -> NestedNet:
    """A published head: layers of these widths."""
    return NestedNet.model_validate({"name": "dnn", "hidden_units": list(hidden_units), "activation": activation})


class DARE(SequentialNet):
    """`MLP([fields; h; h * r_t])`, PReLU. The authors' code also normalises the input over the batch."""

    summary = "separate attention and representation tables, top-K search (Feng et al., ICLR 2025)"
    encoder_class = DAREEncoder

    class Config(SequentialNet.Config):
        encoder: DAREEncoder.Config = DAREEncoder.Config()
        head: NestedNet = Field(default_factory=lambda: mlp_head(200, 80, activation="prelu"))
        product: bool = True


class DIN(SequentialNet):
    """`MLP([fields; u; u * t])`, Dice; FuxiCTR leaves the product out (`product: false`)."""

    summary = "each event scored against the candidate by a small net (Zhou et al., KDD 2018)"
    encoder_class = DINEncoder

    class Config(SequentialNet.Config):
        encoder: DINEncoder.Config = DINEncoder.Config()
        head: NestedNet = Field(default_factory=lambda: mlp_head(200, 80, activation="dice"))
        product: bool = True


class BST(SequentialNet):
    """Behavior Sequence Transformer, with the paper's head."""

    summary = "transformer over the history and the candidate (BST, Chen et al., DLP-KDD 2019)"
    encoder_class = BSTEncoder

    class Config(SequentialNet.Config):
        encoder: BSTEncoder.Config = BSTEncoder.Config()
        head: NestedNet = Field(default_factory=lambda: mlp_head(1024, 512, 256, activation="leaky_relu"))


class FESeq(SequentialNet):
    """Fields of each event and of the row interact, then events do; with the authors' head."""

    summary = "fields interact within events, then events attend (FESeq, Yuan et al., Applied Sciences 2024)"
    encoder_class = FESeqEncoder

    class Config(SequentialNet.Config):
        encoder: FESeqEncoder.Config = FESeqEncoder.Config()
        head: NestedNet = Field(default_factory=lambda: mlp_head(1024, 512, 256, activation="leaky_relu"))


class HSTU(SequentialNet):
    """HSTU layers over the history and the candidate."""

    summary = "gated causal attention without softmax (HSTU, Zhai et al., ICML 2024)"
    encoder_class = HSTUEncoder

    class Config(SequentialNet.Config):
        encoder: HSTUEncoder.Config = HSTUEncoder.Config()


class Recurrent(SequentialNet):
    """GRU or LSTM over the history."""

    summary = "last state of a GRU or LSTM over the history (GRU4Rec, Hidasi et al., ICLR 2016)"
    encoder_class = RecurrentEncoder
    uncompiled = "its GRU or LSTM, which runs in the kernels of torch.nn"

    class Config(SequentialNet.Config):
        encoder: RecurrentEncoder.Config = RecurrentEncoder.Config()


class SDIM(SequentialNet):
    """Events of the candidate's hash buckets, summed; two parameter-free passes over the history."""

    summary = "events that hash like the candidate, no parameters (Cao et al., CIKM 2022)"
    encoder_class = SDIMEncoder

    class Config(SequentialNet.Config):
        encoder: SDIMEncoder.Config = SDIMEncoder.Config()


class SIM(SequentialNet):
    """Soft search over long histories, then multi-head attention over what was found."""

    summary = "soft search, then attention over the top K events (Pi et al., CIKM 2020)"
    encoder_class = SIMEncoder

    class Config(SequentialNet.Config):
        encoder: SIMEncoder.Config = SIMEncoder.Config()
        head: NestedNet = Field(default_factory=lambda: mlp_head(200, 80))
