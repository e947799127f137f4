"""SDIM: events that hash to the candidate's bucket are summed; there is nothing to learn.

Cao et al., CIKM 2022, arXiv 2205.10249.

Shapes in names: B batch, L events, E width, G signatures, T bits of a signature.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from torchrec_models.net import NetConfig

from .encoder import Encoding, History, HistorySpec, SequenceEncoder
from .search import exact_scores


class SDIMEncoder(SequenceEncoder):
    """`1/G sum_g l2(sum_j [sig_g(v_j) = sig_g(t)] v_j)`, `sig_g(x)` the signs of T random projections.

    In expectation an event weighs `(1 - angle / pi)^T`. Projections are drawn once from `seed`, saved with the net, and the same
    in training and serving (reczoo/FuxiCTR, `model_zoo/LongCTR/SDIM/SDIM.py`, has `normalize: false` by default). An empty
    bucket gives 0. Signs are taken in float32 under autocast, too: rounding would change buckets.
    """

    rotations_EGT: Tensor

    class Config(NetConfig):
        num_signatures: int = Field(16, ge=1)
        num_bits: int = Field(3, ge=1)
        normalize: bool = True
        seed: int = 0

    def __init__(self, spec: HistorySpec, config: Config) -> None:
        super().__init__()
        self.out_width = spec.width
        self.normalize = config.normalize
        self.seed = config.seed
        shape = (spec.width, config.num_signatures, config.num_bits)
        self.register_buffer("rotations_EGT", torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        random = torch.Generator().manual_seed(self.seed)
        self.rotations_EGT.copy_(torch.randn(self.rotations_EGT.shape, generator=random, device="cpu"))

    def signatures(self, x: Tensor) -> Tensor:
        """[..., E] -> [..., G, T] bool."""
        with exact_scores(x):
            return (x.detach() @ self.rotations_EGT.flatten(1) > 0).unflatten(-1, self.rotations_EGT.shape[1:])

    def forward(self, history: History) -> Encoding:
        agree_BLGT = self.signatures(history.values_BLE) == self.signatures(history.target_BE)[:, None]
        collide_BLG = agree_BLGT.all(dim=3) & history.mask_BL[:, :, None]
        sums_BGE = collide_BLG.transpose(1, 2).to(history.values_BLE.dtype) @ history.values_BLE
        if self.normalize:
            sums_BGE = F.normalize(sums_BGE, dim=2)
        return Encoding(sums_BGE.mean(dim=1), history.target_BE[:, :0])
