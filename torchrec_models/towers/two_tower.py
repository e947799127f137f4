"""Two towers: a query encoder and a candidate encoder whose vectors meet in a dot product.

Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from torchrec_models.net import Inputs, InputSpec, NetConfig
from torchrec_models.towers.tower import Tower


class TwoTower(nn.Module):
    """Encoders of both sides. The scoring rule (cosine or dot, temperature) is part of the config, the loss is not.

    Shapes:
        (query `Inputs`, candidate `Inputs`) -> ([B, K], [B, K]).
    """

    summary: ClassVar[str] = "query and candidate towers, in-batch softmax with log Q correction (Yi et al., RecSys 2019)"

    class Config(NetConfig):
        out_width: int = Field(64, ge=1)
        query: Tower.Config = Tower.Config()
        candidate: Tower.Config = Tower.Config()
        cosine: bool = True
        temperature: float = Field(0.05, gt=0)
        learn_temperature: bool = False
        log_q: bool = True
        mask_hits: bool = True

    def __init__(self, query: InputSpec, candidate: InputSpec, config: Config) -> None:
        super().__init__()
        self.query = Tower(query, config.query, out_width=config.out_width, normalize=config.cosine)
        self.candidate = Tower(candidate, config.candidate, out_width=config.out_width, normalize=config.cosine)

    def forward(self, query: Inputs, candidate: Inputs) -> tuple[Tensor, Tensor]:
        return self.query(query), self.candidate(candidate)
