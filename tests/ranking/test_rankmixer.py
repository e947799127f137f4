"""RankMixer has no code of its authors to compare with: the definition, token by token, in float64."""

import math

import pytest
import torch
from torch import Tensor

from torchrec_models.net import FieldSpec, Inputs, InputSpec
from torchrec_models.ranking.rankmixer import RankMixer, RankMixerBlock

SPEC = InputSpec(("x",), (FieldSpec("a", 4), FieldSpec("b", 2)), (), num_tasks=2)
EPS = 1e-5


def layer_norm(vector: list[float], weight: Tensor, bias: Tensor) -> list[float]:
    mean = sum(vector) / len(vector)
    variance = sum((v - mean) ** 2 for v in vector) / len(vector)
    return [(v - mean) / math.sqrt(variance + EPS) * float(w) + float(b) for v, w, b in zip(vector, weight, bias)]


def affine(vector: list[float], weight_IO: Tensor, bias_O: Tensor) -> list[float]:
    return [sum(v * float(weight_IO[i, o]) for i, v in enumerate(vector)) + float(bias_O[o]) for o in range(weight_IO.shape[1])]


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def block_by_definition(block: RankMixerBlock, tokens: list[list[float]]) -> list[list[float]]:
    num_tokens, head = len(tokens), len(tokens[0]) // len(tokens)
    out = []
    for h in range(num_tokens):
        mixed = [tokens[t][h * head + j] for t in range(num_tokens) for j in range(head)]
        summed = [m + x for m, x in zip(mixed, tokens[h])]
        s = layer_norm(summed, block.mix_norm.weight, block.mix_norm.bias)
        hidden = [gelu(v) for v in affine(s, block.expand.weight_TIO[h], block.expand.bias_T1O[h, 0])]
        fed = affine(hidden, block.contract.weight_TIO[h], block.contract.bias_T1O[h, 0])
        out.append(layer_norm([f + v for f, v in zip(fed, s)], block.norm.weight, block.norm.bias))
    return out


@torch.no_grad()
def test_is_its_definition():
    """7 numbers in 3 slices: the last is filled up with zeros."""
    torch.manual_seed(0)
    net = RankMixer(SPEC, RankMixer.Config(num_tokens=3, width=6, num_blocks=2, expansion=1.5)).double()
    for parameter in net.parameters():
        parameter.normal_()
    dense_BD, fields_BC = torch.randn(4, 1, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    logits_BT = net(Inputs(dense_BD, fields_BC, torch.empty(4, 0), {}))
    for row in range(4):
        numbers = [*fields_BC[row].tolist(), *dense_BD[row].tolist(), 0.0, 0.0]
        tokens = [affine(numbers[3 * t : 3 * t + 3], net.tokenize.weight_TIO[t], net.tokenize.bias_T1O[t, 0]) for t in range(3)]
        for block in net.blocks:
            tokens = block_by_definition(block, tokens)
        mean = [sum(token[d] for token in tokens) / 3 for d in range(6)]
        assert logits_BT[row].tolist() == pytest.approx(affine(mean, net.out.weight.T, net.out.bias), abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 3, "width": 8}, "width must be a multiple of num_tokens, got 8 and 3"),
        ({"num_tokens": 8, "width": 8}, "cut 7 numbers into num_tokens = 8 slices of 1 without an empty one; 7 tokens work"),
        ({"num_tokens": 5, "width": 10}, "num_tokens = 5 slices of 2 without an empty one; 4 tokens work"),
    ],
)
def test_tokens_that_cannot_be_cut_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RankMixer(SPEC, RankMixer.Config(**options))
