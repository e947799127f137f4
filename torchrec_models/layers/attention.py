"""Attention between vectors of one row.

Shapes in names: B batch, N vectors, E their width, A width of the result, H heads, W = A / H width of a head.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .linear import SplitLinear
from .small_attention import small_attention, suits_small_attention

LayerNormPlace = Literal["none", "pre_relu", "post_relu"]
Residual = Literal["none", "identity", "project", "auto"]


class InteractingLayer(nn.Module):
    """AutoInt's interacting layer: `ReLU(concat_h sum_k a^h_mk V^h e_k + W_res e_m)`, `a^h_mk = softmax_k <Q^h e_m, K^h e_k>`.

    Song et al., CIKM 2019, arXiv 1810.11921, eq. 5-8. The defaults are the paper's; three codes that are called AutoInt differ:

    | | paper | authors | FuxiCTR |
    |---|---|---|---|
    | `qkv_relu`, `qkv_bias` (of the residual projection, too) | no | yes | no |
    | `scale`: scores / sqrt(W) | no | yes | option |
    | `layer_norm` | none | post_relu (epsilon 1e-8) | none or pre_relu (epsilon 1e-5) |
    | `residual` | auto | project | auto |

    (DeepGraphLearning/RecommenderSystems of 2020-04-10, `featureRec/autoint/model.py`; reczoo/FuxiCTR of 2026-06-05,
    `model_zoo/AutoInt/src/AutoInt.py`.)

    Args:
        in_width: E.
        out_width: A, of all heads together.
        num_heads: H, a divisor of A.
        residual: `auto` is the identity where E = A, else a projection.
        dropout: of the attention weights.

    Shapes:
        [B, N, E] -> [B, N, A]; or groups of vectors that do not see each other, [B, G, N, E] -> [B, G, N, A].

    Raises:
        ValueError: a width that `num_heads` does not divide; `residual: identity` between different widths.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        num_heads: int = 2,
        qkv_relu: bool = False,
        qkv_bias: bool = False,
        scale: bool = False,
        layer_norm: LayerNormPlace = "none",
        residual: Residual = "auto",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if out_width % num_heads:
            raise ValueError(f"the attention width must be a multiple of num_heads, got {out_width} and {num_heads}")
        if residual == "identity" and in_width != out_width:
            raise ValueError(
                f"residual: identity needs an attention width equal to the width of its input ({in_width}), got {out_width}; "
                "use residual: auto, which projects where they differ"
            )
        if residual == "auto":
            residual = "identity" if in_width == out_width else "project"
        self.num_heads = num_heads
        self.head_width = out_width // num_heads
        self.qkv_relu = qkv_relu
        self.scale = self.head_width**-0.5 if scale else 1.0
        self.residual = residual
        self.dropout = dropout
        self.projections = SplitLinear(in_width, (out_width,) * (4 if residual == "project" else 3), bias=qkv_bias)
        self.norm_before = nn.LayerNorm(out_width) if layer_norm == "pre_relu" else nn.Identity()
        self.norm_after = nn.LayerNorm(out_width, eps=1e-8) if layer_norm == "post_relu" else nn.Identity()

    def forward(self, x_BNE: Tensor) -> Tensor:
        projected = self.projections(x_BNE)
        if self.qkv_relu:
            projected = F.relu(projected)
        widths = self.projections.out_widths
        qkv_BNC, *projected_residual = projected.split([sum(widths[:3]), *widths[3:]], dim=-1)
        out_BNA = self._attend(qkv_BNC)
        if self.residual == "project":
            out_BNA = out_BNA + projected_residual[0]
        elif self.residual == "identity":
            out_BNA = out_BNA + x_BNE
        return self.norm_after(F.relu(self.norm_before(out_BNA)))

    def _attend(self, qkv_BNC: Tensor) -> Tensor:
        """[B, N, 3 A] -> [B, N, A]."""
        dropout = self.dropout if self.training else 0.0
        if suits_small_attention(qkv_BNC):
            out = small_attention(qkv_BNC.flatten(0, -3), num_heads=self.num_heads, scale=self.scale, dropout=dropout)
            return out.unflatten(0, qkv_BNC.shape[:-2])
        query_BHNW, key_BHNW, value_BHNW = (self._heads(x_BNA) for x_BNA in qkv_BNC.chunk(3, dim=-1))
        out_BHNW = F.scaled_dot_product_attention(query_BHNW, key_BHNW, value_BHNW, dropout_p=dropout, scale=self.scale)
        return out_BHNW.unflatten(1, (*qkv_BNC.shape[1:-2], self.num_heads)).transpose(-2, -3).flatten(-2)

    def _heads(self, x_BNA: Tensor) -> Tensor:
        """[B, N, A] -> [B, H, N, W]. Groups count as heads: fused kernels on GPUs take at most 65,535 as the first size."""
        return x_BNA.unflatten(-1, (self.num_heads, self.head_width)).transpose(-2, -3).flatten(1, -3)
