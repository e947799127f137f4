"""Oracles: the definitions, pair by pair."""

from itertools import combinations

import pytest
import torch

from torchrec_models.layers.interaction import DotInteraction, FactorizationMachine


def test_factorization_machine_is_the_sum_over_pairs():
    fields_BNE = torch.randn(5, 4, 3, dtype=torch.float64)
    expected_B = sum((fields_BNE[:, i] * fields_BNE[:, j]).sum(dim=1) for i, j in combinations(range(4), 2))
    torch.testing.assert_close(FactorizationMachine()(fields_BNE), expected_B[:, None], atol=1e-12, rtol=0)


def test_factorization_machine_of_one_field_is_zero():
    assert FactorizationMachine()(torch.randn(5, 1, 3, dtype=torch.float64)).abs().max() < 1e-15


@pytest.mark.parametrize("num_fields", [1, 2, 3, 6])
def test_dot_interaction_goes_row_by_row_below_the_diagonal(num_fields):
    fields_BNE = torch.randn(5, num_fields, 3, dtype=torch.float64)
    dot = DotInteraction(num_fields)
    pairs = [(i, j) for i in range(num_fields) for j in range(i)]
    assert dot.num_pairs == len(pairs)
    found_BP = dot(fields_BNE)
    assert found_BP.shape == (5, len(pairs))
    for column, (i, j) in enumerate(pairs):
        torch.testing.assert_close(found_BP[:, column], (fields_BNE[:, i] * fields_BNE[:, j]).sum(dim=1))


def test_dot_interaction_keeps_its_index_out_of_checkpoints():
    assert not DotInteraction(4).state_dict()


@pytest.mark.parametrize("layer", [FactorizationMachine(), DotInteraction(4)])
def test_gradients(layer):
    assert torch.autograd.gradcheck(layer, torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True))
