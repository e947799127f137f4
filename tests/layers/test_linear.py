"""Initial weights, and several maps in one."""

import pytest
import torch
from torch import nn

from torchrec_models.layers.linear import Linear, SplitLinear


def test_linear_starts_xavier_normal_with_zero_bias():
    torch.manual_seed(0)
    linear = Linear(300, 100)
    assert linear.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.03)
    assert not linear.bias.any()


def test_split_linear_starts_each_map_as_a_linear_of_its_own():
    torch.manual_seed(0)
    maps = SplitLinear(300, (100, 500))
    first, second = maps.weight.split(maps.out_widths)
    assert first.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.03)
    assert second.std().item() == pytest.approx((2 / 800) ** 0.5, rel=0.03)
    assert not maps.bias.any()


def test_split_linear_is_its_maps_side_by_side():
    maps, x = SplitLinear(6, (2, 3), bias=False), torch.randn(4, 5, 6)
    parts = [nn.functional.linear(x, weight) for weight in maps.weight.split((2, 3))]
    torch.testing.assert_close(maps(x), torch.cat(parts, dim=-1))
