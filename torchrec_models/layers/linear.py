"""The affine map of every net."""

from torch import nn


class Linear(nn.Linear):
    """`nn.Linear` that starts with Xavier-normal weights and zero biases.

    Every Linear of FuxiCTR starts so (reczoo/FuxiCTR, `fuxictr/pytorch/models/rank_model.py`), with which the BARS tables were
    made. It is a class because nets built on the meta device are initialised module by module.
    """

    def reset_parameters(self) -> None:
        nn.init.xavier_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
