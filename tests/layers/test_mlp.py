"""The MLP against the nn.Sequential that it stands for, and in every way in which a net is run."""

import copy
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchrec_models.layers.dropout import dropout
from torchrec_models.layers.mlp import ACTIVATIONS, MLP
from torchrec_models.pipelines.serving.onnx_runtime import open_session

MODULES: dict[str, nn.Module] = {
    "relu": nn.ReLU(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "leaky_relu": nn.LeakyReLU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "identity": nn.Identity(),
}


class SameMask(nn.Module):
    """Dropout with the masks that the MLP draws from the same generator state."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * dropout(torch.ones_like(x), self.p, training=self.training)


def sequential(mlp: MLP) -> nn.Sequential:
    """Linear, BatchNorm1d, activation, dropout, ..., Linear with the MLP's own weights, copied."""
    layers: list[nn.Module] = []
    for linear, norm, rate in zip(mlp.linears, mlp.norms, mlp.dropout):
        layers += [copy.deepcopy(linear), copy.deepcopy(norm), MODULES[mlp.activation], SameMask(rate)]
    return nn.Sequential(*layers, copy.deepcopy(mlp.out))


def randomise(mlp: MLP) -> MLP:
    """Parameters none of which is 0 or 1."""
    for parameter in mlp.parameters():
        nn.init.normal_(parameter, mean=0.3, std=0.5)
    return mlp


def run(module: Callable[[Tensor], Tensor], x: Tensor, weights: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Output and input gradient; parameter gradients are left in place."""
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)
    y = module(x)
    (y * weights).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_is_that_of_the_sequential(activation: str, rate: float, batch_norm: bool) -> None:
    torch.manual_seed(1)
    mlp = randomise(MLP(6, [9, 5], activation=activation, batch_norm=batch_norm, dropout=[rate, rate / 2], out_width=2)).double()
    reference = sequential(mlp)
    x, weights = torch.randn(33, 6).double(), torch.randn(33, 2).double()
    for step in range(2):  # twice: running statistics and saved tensors of the first must not reach the second
        found, found_grad = run(mlp, x, weights, seed=step)
        expected, expected_grad = run(reference, x, weights, seed=step)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found_grad, expected_grad, rtol=1e-12, atol=1e-12)
    layers = list(reference)
    twins = [*layers[:-1:4], *layers[1:-1:4], layers[-1]]
    for module, twin in zip([*mlp.linears, *mlp.norms, mlp.out], twins):
        for found_parameter, expected_parameter in zip(module.parameters(), twin.parameters()):
            torch.testing.assert_close(found_parameter.grad, expected_parameter.grad, rtol=1e-12, atol=1e-12)
        for found_buffer, expected_buffer in zip(module.buffers(), twin.buffers()):
            torch.testing.assert_close(found_buffer, expected_buffer, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_evaluation_is_that_of_the_sequential_and_draws_nothing(batch_norm: bool) -> None:
    mlp = randomise(MLP(6, [9, 5], batch_norm=batch_norm, dropout=0.3, out_width=2))
    mlp(torch.randn(16, 6))
    reference = sequential(mlp).eval()
    x, state = torch.randn(7, 6), torch.get_rng_state()
    torch.testing.assert_close(mlp.eval()(x), reference(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_called_twice_before_one_backward() -> None:
    mlp = MLP(4, [8, 8], batch_norm=True, dropout=0.2, out_width=1).double()
    x = torch.randn(2, 20, 4).double()
    torch.manual_seed(0)
    (mlp(x[0]).square().sum() + mlp(x[1]).square().sum()).backward()
    together = [p.grad.clone() for p in mlp.parameters() if p.grad is not None]
    mlp.zero_grad()
    torch.manual_seed(0)
    mlp(x[0]).square().sum().backward()
    mlp(x[1]).square().sum().backward()
    for found, expected in zip([p.grad for p in mlp.parameters()], together):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_the_input_is_left_as_it_was() -> None:
    x = torch.randn(8, 4)
    before = x.clone()
    MLP(4, [4], dropout=0.5)(x)
    assert torch.equal(x, before)


def train(mlp: MLP, optimizer: torch.optim.Optimizer, *, steps: Sequence[int]) -> list[float]:
    losses = []
    for step in steps:
        x = torch.linspace(-1, 1, 64 * 5).add(step / 7).sin().view(64, 5)
        loss = (mlp(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_resuming_with_torchs_generator_state_is_bit_identical() -> None:
    def fresh() -> tuple[MLP, torch.optim.Optimizer]:
        mlp = MLP(5, [16, 16], batch_norm=True, dropout=0.2, out_width=1)
        return mlp, torch.optim.Adam(mlp.parameters(), 1e-2)

    torch.manual_seed(11)
    mlp, optimizer = fresh()
    train(mlp, optimizer, steps=range(3))
    saved = copy.deepcopy((mlp.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    expected = train(mlp, optimizer, steps=range(3, 8))
    torch.manual_seed(99)
    resumed, resumed_optimizer = fresh()
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    assert train(resumed, resumed_optimizer, steps=range(3, 8)) == expected
    assert all(torch.equal(a, b) for a, b in zip(mlp.state_dict().values(), resumed.state_dict().values()))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_bfloat16_autocast_stays_near_float32(batch_norm: bool) -> None:
    torch.manual_seed(2)
    mlp = MLP(16, [64, 64], batch_norm=batch_norm, dropout=0.2, out_width=1)
    x, weights = torch.randn(256, 16), torch.randn(256, 1)
    expected, expected_grad = run(mlp, x, weights, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        found, found_grad = run(mlp, x, weights, seed=0)
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.01 * expected.norm()
    assert (found_grad - expected_grad).norm() < 0.1 * expected_grad.norm()  # without dropout, plain modules are 0.04 to 0.06 off


def test_exports_to_onnx_with_a_dynamic_batch() -> None:
    mlp = randomise(MLP(6, [8, 8], batch_norm=True, dropout=0.3, out_width=2)).eval()
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(mlp, (torch.randn(3, 6),), dynamo=True, dynamic_shapes=dynamic, verbose=False)
    assert program is not None
    session = open_session(program.model_proto.SerializeToString())
    for rows in (1, 5):
        x = torch.randn(rows, 6)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), mlp(x).detach(), rtol=1e-5, atol=1e-5)


def test_compiles_as_one_graph_and_still_drops() -> None:
    torch.manual_seed(4)
    mlp = MLP(6, [8, 8], batch_norm=True, dropout=0.25, out_width=1)
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")  # inductor would compile C++ for half a minute
    x = torch.randn(300, 6)
    assert not torch.equal(compiled(x), compiled(x))
    mlp.eval()
    torch.testing.assert_close(compiled(x), mlp(x))
    mlp.train()
    mlp.dropout = (0.0, 0.0)
    weights = torch.randn(300, 1)
    expected = run(copy.deepcopy(mlp), x, weights, seed=0)
    torch.testing.assert_close(run(compiled, x, weights, seed=0), expected)


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_trains_under_ddp_as_without() -> None:
    torch.manual_seed(5)
    mlp = MLP(5, [8, 8], batch_norm=True, dropout=0.2, out_width=1)
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(mlp), static_graph=True)
    x, weights = torch.randn(32, 5), torch.randn(32, 1)
    for step in range(3):
        torch.testing.assert_close(run(wrapped, x, weights, seed=step), run(mlp, x, weights, seed=step))
    for found, expected in zip(wrapped.parameters(), mlp.parameters()):
        torch.testing.assert_close(found.grad, expected.grad)


def test_a_fresh_mlp_has_xavier_normal_weights_and_zero_biases_and_reset_brings_them_back() -> None:
    torch.manual_seed(6)
    mlp = MLP(200, [300], batch_norm=True, out_width=400)
    for _ in range(2):
        for linear in [module for module in mlp.modules() if isinstance(module, nn.Linear)]:
            fan_out, fan_in = linear.weight.shape
            assert linear.weight.std().item() == pytest.approx((2 / (fan_in + fan_out)) ** 0.5, rel=0.02)
            assert linear.bias.abs().max() == 0
        assert mlp.get_buffer("norms.0.running_mean").abs().max() == 0
        randomise(mlp)
        mlp(torch.randn(4, 200) + 1)
        for module in mlp.modules():
            if isinstance(module, nn.Linear | nn.BatchNorm1d):
                module.reset_parameters()


def test_no_hidden_units_and_no_output_layer_is_the_identity() -> None:
    x = torch.randn(3, 4)
    assert MLP(4, [])(x) is x
    assert MLP(4, []).out_width == 4
    assert MLP(4, [], out_width=2)(x).shape == (3, 2)
    assert MLP(4, [7]).out_width == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_width": 0}, "at least 1, got in_width=0"),
        ({"hidden_units": [3, 0]}, r"hidden_units=\[3, 0\]"),
        ({"out_width": 0}, "out_width=0"),
        ({"activation": "rleu"}, "'rleu' is unknown; choose one of relu"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 0.99\], got 1.0"),
        ({"dropout": [0.1]}, "dropout has 1 values for 2 hidden_units"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MLP(**{"in_width": 4, "hidden_units": [3, 2], **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 4), (2, 4, 4)])
def test_batch_norm_refuses_one_row_and_a_third_axis(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes \[B, 4\]|more than 1 value"):
        MLP(4, [4], batch_norm=True)(torch.randn(shape))
