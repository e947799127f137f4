"""The affine maps of every net."""

from collections.abc import Sequence

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


class SplitLinear(Linear):
    """Several maps of one input in one matrix product, each initialised as a `Linear` of its own.

    Args:
        in_width: width of the input.
        out_widths: width of each map's output.
        bias: as in `nn.Linear`.

    Shapes:
        [..., in_width] -> [..., sum of out_widths]: the outputs side by side, to be taken apart by `split(out_widths, dim=-1)`.
    """

    def __init__(self, in_width: int, out_widths: Sequence[int], *, bias: bool = True) -> None:
        self.out_widths = tuple(out_widths)
        super().__init__(in_width, sum(out_widths), bias=bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for weight in self.weight.split(self.out_widths):
            nn.init.xavier_normal_(weight)
