"""The transformer block of the sequence encoders.

Shapes in names: B batch, T tokens, E their width, H heads, W = E / H.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from .dropout import dropout
from .linear import Linear, SplitLinear


class TransformerBlock(nn.Module):
    """`S = LN(x + Drop(MHA(x)))`, `O = LN(S + Drop(W2 LeakyReLU(W1 S)))`: norms last.

    Vaswani et al. 2017, with the activation of BST (Chen et al. 2019, arXiv 1905.06874, eq. 4-6). The scores of attention are
    never kept for backward: they go through `scaled_dot_product_attention`, whose fused kernels recompute them.

    Args:
        width: E.
        num_heads: H, a divisor of E.
        attention_dropout: of the attention weights; torch has no fused kernel with it on CPUs, where it then keeps [B, H, T, T].
        dropout: of both branches.
        layer_norm: False leaves both norms out (the BARS recipes).
        causal: a token sees itself and what is before it.

    Shapes:
        [B, T, E] and, unless causal, a mask [B, T] bool of the tokens that may be seen -> [B, T, E]. Tokens outside the mask
        get some finite value.

    Raises:
        ValueError: a width that `num_heads` does not divide.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        layer_norm: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"the width of a transformer's tokens must be a multiple of num_heads, got {width} and {num_heads}")
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.causal = causal
        self.qkv = SplitLinear(width, (width,) * 3)
        self.out = Linear(width, width)
        self.ffn_in = Linear(width, width)
        self.ffn_out = Linear(width, width)
        self.norm_attention = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.norm_ffn = nn.LayerNorm(width) if layer_norm else nn.Identity()

    def forward(self, x_BTE: Tensor, mask_BT: Tensor) -> Tensor:
        query_BHTW, key_BHTW, value_BHTW = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x_BTE).split(self.qkv.out_widths, dim=2)
        )
        attended_BHTW = F.scaled_dot_product_attention(
            query_BHTW,
            key_BHTW,
            value_BHTW,
            attn_mask=None if self.causal else mask_BT[:, None, None, :],
            dropout_p=self.attention_dropout if self.training else 0.0,
            is_causal=self.causal,
        )
        attended_BTE = self.out(attended_BHTW.transpose(1, 2).flatten(2))
        s_BTE = self.norm_attention(x_BTE + dropout(attended_BTE, self.dropout, training=self.training))
        ffn_BTE = self.ffn_out(F.leaky_relu(self.ffn_in(s_BTE)))
        return self.norm_ffn(s_BTE + dropout(ffn_BTE, self.dropout, training=self.training))
