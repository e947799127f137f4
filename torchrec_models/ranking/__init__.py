"""Ranking nets, one file each. `NETS` is the registry: greppable, typed, without import tricks."""

from torchrec_models.net import Net
from torchrec_models.ranking.autoint import AutoInt
from torchrec_models.ranking.behaviour import BST, DARE, DIN, HSTU, SDIM, SIM, FESeq, Recurrent
from torchrec_models.ranking.dbmtl import DBMTL
from torchrec_models.ranking.dcnv2 import DCNv2
from torchrec_models.ranking.dcnv3 import DCNv3
from torchrec_models.ranking.deepfm import DeepFM
from torchrec_models.ranking.dlrm import DLRM
from torchrec_models.ranking.dnn import DNN
from torchrec_models.ranking.esmm import ESMM
from torchrec_models.ranking.finalmlp import FinalMLP
from torchrec_models.ranking.fm import FM
from torchrec_models.ranking.gdcn import GDCN
from torchrec_models.ranking.lr import LR
from torchrec_models.ranking.masknet import MaskNet
from torchrec_models.ranking.mmoe import MMoE
from torchrec_models.ranking.ple import PLE
from torchrec_models.ranking.qnn_alpha import QNNAlpha
from torchrec_models.ranking.rankmixer import RankMixer
from torchrec_models.ranking.shared_bottom import SharedBottom
from torchrec_models.ranking.wukong import Wukong

NETS: dict[str, type[Net]] = {
    "autoint": AutoInt,
    "bst": BST,
    "dare": DARE,
    "dbmtl": DBMTL,
    "dcnv2": DCNv2,
    "dcnv3": DCNv3,
    "deepfm": DeepFM,
    "din": DIN,
    "dlrm": DLRM,
    "dnn": DNN,
    "esmm": ESMM,
    "feseq": FESeq,
    "finalmlp": FinalMLP,
    "fm": FM,
    "gdcn": GDCN,
    "hstu": HSTU,
    "lr": LR,
    "masknet": MaskNet,
    "mmoe": MMoE,
    "ple": PLE,
    "qnn_alpha": QNNAlpha,
    "rankmixer": RankMixer,
    "recurrent": Recurrent,
    "sdim": SDIM,
    "shared_bottom": SharedBottom,
    "sim": SIM,
    "wukong": Wukong,
}
