"""The byte masks: right probability, independent, reproducible, and torch's dropout wherever they are not used."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchrec_models.layers.dropout import MAX_DROPOUT, dropout, relu_dropout_

ROWS, WIDTH = 4000, 500
NUM_ELEMENTS = ROWS * WIDTH


def kept(p: float, *, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return dropout(torch.ones(ROWS, WIDTH), p, training=True) != 0


@pytest.mark.parametrize("p", [0.0005, 0.002, 0.2, 0.5, 0.9, MAX_DROPOUT])
def test_an_element_is_dropped_with_the_probability_given_and_not_with_a_multiple_of_1_in_256(p: float) -> None:
    dropped = 1 - kept(p).double().mean().item()
    # sum over rows of a binomial whose p varies by at most 1/256 between rows
    sigma = (p * (1 - p) / NUM_ELEMENTS + 2**-18 / ROWS) ** 0.5
    assert dropped == pytest.approx(p, abs=5 * sigma)
    if p in (0.0005, 0.002):
        assert abs(dropped - round(256 * p) / 256) > 5 * sigma


def test_masks_of_neighbours_are_uncorrelated() -> None:
    centred = kept(0.3).double() - 0.7
    variance = 0.3 * 0.7
    for left, right in [
        (centred[:, :-1], centred[:, 1:]),
        (centred[:, :-8], centred[:, 8:]),
        (centred[:-1], centred[1:]),
    ]:
        correlation = (left * right).mean().item() / variance
        assert abs(correlation) < 5 / left.numel() ** 0.5 + 2**-18 / variance


@pytest.mark.parametrize("shape", [(3,), (5, 7), (2, 3, 11), (4, 1), (0, 8)])
def test_kept_elements_are_scaled_and_gradients_follow_the_mask(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.4, training=True)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, (y != 0).double() / 0.6, rtol=1e-15, atol=0)
    torch.testing.assert_close(y, x * grad, rtol=1e-15, atol=0)


def test_relu_dropout_is_dropout_of_relu_with_the_same_mask() -> None:
    x = torch.randn(64, 33, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(64, 33, dtype=torch.float64)
    torch.manual_seed(7)
    expected = dropout(torch.relu(x), 0.3, training=True)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.manual_seed(7)
    found = relu_dropout_(x * 1, 0.3, training=True)
    (found_grad,) = torch.autograd.grad((found * weights).sum(), x)
    assert (expected == 0).double().mean() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(found_grad, expected_grad, rtol=1e-15, atol=0)


def test_the_default_generator_alone_decides_and_its_saved_state_repeats_the_mask() -> None:
    torch.manual_seed(3)
    kept_before = dropout(torch.ones(9, 9), 0.5, training=True)
    state = torch.get_rng_state()
    first = dropout(torch.ones(9, 9), 0.5, training=True)
    torch.set_rng_state(state)
    again = dropout(torch.ones(9, 9), 0.5, training=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, kept_before)


@pytest.mark.parametrize("drop", [dropout, relu_dropout_])
def test_nothing_is_drawn_in_evaluation_or_at_p_0(drop: Callable[..., Tensor]) -> None:
    x = torch.rand(5, 4)
    state = torch.get_rng_state()
    assert torch.equal(drop(x, 0.5, training=False), x)
    assert torch.equal(drop(x, 0.0, training=True), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_compiled_code_draws_the_same_masks_and_keeps_them_for_backward() -> None:
    def both(x: Tensor, y: Tensor) -> Tensor:
        return dropout(torch.sin(x), 0.3, training=True) + relu_dropout_(y * 1.5, 0.2, training=True)

    inputs = [torch.randn(64, 40, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    torch.manual_seed(1)
    expected = both(*inputs)
    expected_grads = torch.autograd.grad(expected.sum(), inputs)
    torch.manual_seed(1)
    found = torch.compile(both, backend="aot_eager", fullgraph=True)(*inputs)
    found_grads = torch.autograd.grad(found.sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(found_grads, expected_grads, rtol=1e-15, atol=1e-15)
