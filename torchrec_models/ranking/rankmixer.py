"""RankMixer: tokens that mix by a transpose, each with a feed-forward network of its own.

Zhu et al., CIKM 2025, arXiv 2507.15551. No code of the authors is public.

Shapes in names: B batch, X width of all features, T tokens (not tasks, here), D width of a token, K width of a hidden layer.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_models.layers.fields import FlatFields
from torchrec_models.layers.linear import Linear
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class TokenLinear(nn.Module):
    """`y_t = x_t W_t + b_t`: one Linear per token, as one batched product. [B, T, in] -> [B, T, out]."""

    def __init__(self, num_tokens: int, in_width: int, out_width: int) -> None:
        super().__init__()
        self.weight_TIO = nn.Parameter(torch.empty(num_tokens, in_width, out_width))
        self.bias_T1O = nn.Parameter(torch.empty(num_tokens, 1, out_width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-normal for each token, zero biases."""
        nn.init.normal_(self.weight_TIO, std=(2 / sum(self.weight_TIO.shape[1:])) ** 0.5)
        nn.init.zeros_(self.bias_T1O)

    def forward(self, x_BTI: Tensor) -> Tensor:
        return torch.baddbmm(self.bias_T1O, x_BTI.transpose(0, 1), self.weight_TIO).transpose(0, 1)


class RankMixerBlock(nn.Module):
    """`S = LN(mix(X) + X)`, `X' = LN(PFFN(S) + S)`, both norms over D.

    mix: each token is cut into T heads; new token h is head h of all tokens, side by side. No parameters.
    PFFN: `W2_t GELU(W1_t s_t + b1_t) + b2_t`, other weights for each token.

    Shapes:
        [B, T, D] -> the same; T divides D.
    """

    def __init__(self, num_tokens: int, width: int, hidden_width: int) -> None:
        super().__init__()
        self.expand = TokenLinear(num_tokens, width, hidden_width)
        self.contract = TokenLinear(num_tokens, hidden_width, width)
        self.mix_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        mixed_BTD = x_BTD.unflatten(2, (x_BTD.shape[1], -1)).transpose(1, 2).flatten(2)
        s_BTD = self.mix_norm(mixed_BTD + x_BTD)
        return self.norm(self.contract(F.gelu(self.expand(s_BTD))) + s_BTD)


class RankMixer(Net):
    """All features side by side, cut into T slices, each mapped to a token; blocks; the mean token; one Linear per task.

    The dense form; the paper's sparse mixture of experts in place of the PFFN is not here.

    Config:
        num_tokens: T. Features are cut in schema order, so put what belongs together side by side; a last slice that is
            shorter is filled up with zeros.
        width: D, a multiple of T.
        num_blocks: L.
        expansion: hidden width of the PFFN over D.
    """

    summary = "token mixing by a transpose, per-token feed-forward networks (Zhu et al., CIKM 2025)"

    class Config(NetConfig):
        num_tokens: int = Field(8, ge=1)
        width: int = Field(128, ge=1)
        num_blocks: int = Field(2, ge=1)
        expansion: float = Field(4.0, gt=0)

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FlatFields(spec, who="RankMixer")
        num_features, num_tokens = self.fields.out_width, config.num_tokens
        if config.width % num_tokens:
            raise ValueError(f"RankMixer: width must be a multiple of num_tokens, got {config.width} and {num_tokens}")
        slice_width = -(-num_features // num_tokens)
        if slice_width * (num_tokens - 1) >= num_features:
            raise ValueError(
                f"RankMixer cannot cut {num_features} numbers into num_tokens = {num_tokens} slices of {slice_width} without an "
                f"empty one; {-(-num_features // slice_width)} tokens work"
            )
        self.num_missing = slice_width * num_tokens - num_features
        self.num_tokens = num_tokens
        self.tokenize = TokenLinear(num_tokens, slice_width, config.width)
        hidden_width = max(1, int(config.width * config.expansion))
        self.blocks = nn.Sequential(*(RankMixerBlock(num_tokens, config.width, hidden_width) for _ in range(config.num_blocks)))
        self.out = Linear(config.width, spec.num_tasks)

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs)
        slices_BTI = F.pad(self.fields(inputs), (0, self.num_missing)).unflatten(1, (self.num_tokens, -1))
        return self.out(self.blocks(self.tokenize(slices_BTI)).mean(dim=1))
