"""Ranking nets, one file each. `NETS` is the registry: greppable, typed, without import tricks."""

from torchrec_models.net import Net
from torchrec_models.ranking.behaviour import Recurrent
from torchrec_models.ranking.deepfm import DeepFM
from torchrec_models.ranking.dlrm import DLRM
from torchrec_models.ranking.dnn import DNN

NETS: dict[str, type[Net]] = {
    "deepfm": DeepFM,
    "dlrm": DLRM,
    "dnn": DNN,
    "recurrent": Recurrent,
}
