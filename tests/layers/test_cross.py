"""Cross networks against their formulas, written index by index in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from torchrec_models.layers.cross import CrossNet, LowRankCrossNet, MixtureCrossNet, masked_cross

WIDTH, RANK, NUM_EXPERTS, NUM_LAYERS = 5, 2, 3, 2
GATES = {
    "softmax": lambda scores: [math.exp(s) / sum(math.exp(t) for t in scores) for s in scores],
    "sigmoid": lambda scores: [1 / (1 + math.exp(-s)) for s in scores],
    "constant": lambda scores: [1.0 for _ in scores],
}


def randomised(net: nn.Module) -> nn.Module:
    net.double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.5)
    return net


def product(matrix: list[list[float]], x: list[float]) -> list[float]:
    return [sum(w * v for w, v in zip(row, x, strict=True)) for row in matrix]


def transposed(matrix: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*matrix)]


@pytest.mark.parametrize("shared_gate", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_mixture_of_experts_is_equation_3(gate, shared_gate):
    net = randomised(
        MixtureCrossNet(
            WIDTH,
            num_layers=NUM_LAYERS,
            rank=RANK,
            num_experts=NUM_EXPERTS,
            activation="tanh",
            gate=gate,
            shared_gate=shared_gate,
        )
    )
    x_BD = torch.randn(4, WIDTH, dtype=torch.float64)
    expected = []
    for x0 in x_BD.tolist():
        x = x0
        for i, layer in enumerate(net.layers):
            matrix = [] if gate == "constant" else net.gates[0 if shared_gate else i].weight.tolist()
            weights = GATES[gate](product(matrix, x) if matrix else [0.0] * NUM_EXPERTS)
            new = list(x)
            for k, weight in enumerate(weights):
                inner = [math.tanh(v) for v in product(layer.v_KRD[k].tolist(), x)]
                inner = [math.tanh(v) for v in product(layer.c_KRR[k].tolist(), inner)]
                outer = product(transposed(layer.u_KRD[k].tolist()), inner)
                for d in range(WIDTH):
                    new[d] += weight * x0[d] * (outer[d] + float(layer.bias_D[d]))
            x = new
        expected.append(x)
    torch.testing.assert_close(net(x_BD), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_low_rank_is_full_rank_with_the_product_of_both_factors():
    low = randomised(LowRankCrossNet(WIDTH, num_layers=NUM_LAYERS, rank=RANK))
    full = CrossNet(WIDTH, num_layers=NUM_LAYERS).double()
    with torch.no_grad():
        for linear, down, up in zip(full.linears, low.downs, low.ups, strict=True):
            linear.weight.copy_(up.weight @ down.weight)
            linear.bias.copy_(up.bias)
    x_BD = torch.randn(4, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(low(x_BD), full(x_BD), atol=1e-12, rtol=0)


def formula(first, x, crossing, mask, bias):
    return (x if first is None else first) * (torch.cat([crossing, crossing * mask], dim=-1) + bias) + x


def arguments(*, squares: bool) -> list[torch.Tensor | None]:
    torch.manual_seed(0)
    shapes = [(3, 2, 6), (3, 2, 6), (3, 2, 3), (3, 2, 3), (6,)]
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return [None, *tensors[1:]] if squares else list(tensors)


@pytest.mark.parametrize("squares", [True, False])
def test_masked_cross_is_its_formula(squares):
    """The result and all gradients, in place and under torch.compile; numerical gradients of the hand-written backward."""
    given = arguments(squares=squares)
    leaves = [x for x in given if x is not None]
    weight = torch.randn(3, 2, 6, dtype=torch.float64)
    results = {}
    for name, function in {
        "formula": formula,
        "in place": masked_cross,
        "compiled": torch.compile(masked_cross, backend="aot_eager", fullgraph=True),
    }.items():
        y = function(*given)
        results[name] = (y, *torch.autograd.grad((y * weight).sum(), leaves))
    torch.testing.assert_close(results["in place"], results["formula"], atol=1e-12, rtol=0)
    torch.testing.assert_close(results["compiled"], results["formula"], atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(masked_cross, given)


def test_masked_cross_under_autocast_keeps_the_input_in_float32():
    x = torch.randn(8, 6, requires_grad=True)
    weight = torch.randn(3, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        crossing = functional.linear(x, weight)
        y = masked_cross(x, x, crossing, crossing.relu(), torch.rand(6))
    assert crossing.dtype == torch.bfloat16 and y.dtype == torch.float32
    y.sum().backward()
    assert x.grad is not None and weight.grad is not None and weight.grad.isfinite().all()
