"""What every retriever must do. A new one needs a line in CASES and nothing else."""

import io
import math

import pytest
import torch
from fixtures import RETRIEVAL_SCHEMA, as_batch, categorical, make_batch, make_inputs, make_rows, make_schema, take
from torch import Tensor, nn

from torchrec_models.model import RetrievalTask, build
from torchrec_models.net import Inputs, InputSpec
from torchrec_models.pipelines.data.rows import Rows
from torchrec_models.pipelines.serving.onnx_runtime import open_session
from torchrec_models.towers import TOWERS
from torchrec_models.towers.two_tower import TwoTower

SMALL = {"out_width": 6, "query": {"hidden_units": (16, 8)}, "candidate": {"hidden_units": (12,)}}
CASES = {
    "two_tower": ("two_tower", SMALL),
    "two_tower_dot": ("two_tower", {**SMALL, "cosine": False, "temperature": 1.0}),
    "two_tower_learned": ("two_tower", {**SMALL, "learn_temperature": True}),
}
SIDES = ("query", "candidate")

each_case = pytest.mark.parametrize("case", CASES)
each_side = pytest.mark.parametrize("side", SIDES)


def make_task(case: str) -> RetrievalTask:
    name, options = CASES[case]
    torch.manual_seed(0)
    task = build(RETRIEVAL_SCHEMA, name, options)
    assert isinstance(task, RetrievalTask)
    return task


def make_net(case: str) -> tuple[TwoTower, dict[str, InputSpec]]:
    name, options = CASES[case]
    specs = {side: InputSpec.from_schema(RETRIEVAL_SCHEMA, side=side) for side in SIDES}
    torch.manual_seed(0)
    return TOWERS[name](specs["query"], specs["candidate"], TOWERS[name].Config(**options)), specs


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_every_retriever_has_a_case():
    assert {name for name, _ in CASES.values()} == set(TOWERS)
    assert all(net.summary for net in TOWERS.values())


@each_case
def test_vectors_and_gradients(case):
    task = make_task(case)
    batch = make_batch(RETRIEVAL_SCHEMA, 32)
    query, candidate = task.model(batch)
    assert query.shape == candidate.shape == (32, 6)
    if CASES[case][1].get("cosine", True):
        torch.testing.assert_close(query.norm(dim=1), torch.ones(32))
        torch.testing.assert_close(candidate.norm(dim=1), torch.ones(32))
    found = gradients(task, task(batch)[0])
    assert set(found) == {name for name, p in task.named_parameters() if p.requires_grad}
    assert ("loss.log_temperature" in found) == (case == "two_tower_learned")
    for name, gradient in found.items():
        assert gradient.isfinite().all() and gradient.any(), name


@each_case
def test_rows_of_weight_zero_have_no_effect(case):
    rows = make_rows(RETRIEVAL_SCHEMA, 24)
    rows.weights[16:] = 0
    results = []
    for some in (rows, rows.slice(0, 16)):
        task = make_task(case)
        loss = task(as_batch(RETRIEVAL_SCHEMA, some))[0]
        results.append((loss.detach(), gradients(task, loss), task.loss.state_dict()))
    torch.testing.assert_close(*results)


@each_case
def test_permuted_rows_give_permuted_vectors(case):
    model = make_task(case).eval().model
    rows, order = make_rows(RETRIEVAL_SCHEMA, 16), torch.randperm(16)
    found = model(as_batch(RETRIEVAL_SCHEMA, rows.take(order)))
    torch.testing.assert_close(found, tuple(vector[order] for vector in model(as_batch(RETRIEVAL_SCHEMA, rows))))


@each_case
def test_a_row_alone_has_the_same_vectors(case):
    model = make_task(case).eval().model
    rows = make_rows(RETRIEVAL_SCHEMA, 8)
    together = model(as_batch(RETRIEVAL_SCHEMA, rows))
    alone = [model(as_batch(RETRIEVAL_SCHEMA, rows.slice(i, i + 1))) for i in range(8)]
    torch.testing.assert_close(tuple(torch.cat(side) for side in zip(*alone)), together)


@each_case
@each_side
def test_padding_has_no_effect(case, side):
    net, specs = make_net(case)
    inputs = make_inputs(specs[side], 8, first_order=False)
    for values_BLE, mask_BL in inputs.sequences.values():
        values_BLE[:, 2:] = 0
        mask_BL[:, 2:] = False
    short = inputs._replace(sequences={n: (values[:, :2], mask[:, :2]) for n, (values, mask) in inputs.sequences.items()})
    tower = getattr(net.eval(), side)
    torch.testing.assert_close(tower(short), tower(inputs))


@each_case
def test_finds_the_partner_of_every_user(case):
    """User i goes with item 31 i + 7 modulo 40: after training, the best of all items is that one."""
    schema = make_schema(
        [categorical("user", side="query"), categorical("item", side="candidate")], tasks=(), candidate_id="item", num_rows=40
    )
    name, options = CASES[case]
    torch.manual_seed(0)
    task = build(schema, name, {**options, "query": {"hidden_units": ()}, "candidate": {"hidden_units": ()}, "out_width": 8})
    users = torch.arange(40, dtype=torch.int32)
    ids = torch.stack([users, (31 * users + 7) % 40], dim=1)
    rows = Rows(torch.empty(40, 0), ids, (), torch.empty(40, 0), torch.ones(40, 1))
    batch = as_batch(schema, rows)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        task(batch)[0].backward()
        optimizer.step()
    query, candidate = task.eval().model(batch)
    assert ((query @ candidate.T).argmax(dim=1) == torch.arange(40)).all()
    assert task(batch)[0] < 0.2 * math.log(40)


@each_case
def test_initialises_on_meta(case):
    net, specs = make_net(case)
    with torch.device("meta"):
        other = type(net)(specs["query"], specs["candidate"], type(net).Config(**CASES[case][1]))
    other.to_empty(device="cpu")
    for tensor in (*other.parameters(), *other.buffers()):
        tensor.detach().fill_(7)
    other.apply(_reset_own)
    for key, value in other.named_parameters():
        expected = net.get_parameter(key)
        if expected.numel() == 1 or expected.std() == 0:
            assert torch.equal(value, expected), key
        elif value.numel() < 64:  # too few to know their deviation
            assert (value != 7).all(), key
        else:
            assert abs(value.std() / expected.std() - 1) < 5 / value.numel() ** 0.5, key


def _reset_own(module: nn.Module) -> None:
    if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        module.reset_parameters()


@each_case
@each_side
def test_bfloat16_autocast_is_close(case, side):
    net, specs = make_net(case)
    tower = getattr(net, side)
    inputs = make_inputs(specs[side], 64, first_order=False)
    expected = tower(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = tower(inputs)
    assert (vectors - expected).abs().max() < 0.05 * expected.abs().max()


@each_case
@each_side
def test_keeps_float64(case, side):
    net, specs = make_net(case)
    tower = getattr(net.double(), side)
    inputs = make_inputs(specs[side], 8, first_order=False, dtype=torch.float64)
    order = torch.randperm(8)
    vectors = tower(inputs)
    assert vectors.dtype == torch.float64
    torch.testing.assert_close(tower(take(inputs, order)), vectors[order], atol=1e-12, rtol=0)


@each_case
@each_side
def test_inputs_of_another_spec_are_refused(case, side):
    net, specs = make_net(case)
    tower = getattr(net, side)
    good = make_inputs(specs[side], 4, first_order=False)
    tower(good)
    for word in ("dense_BD", "fields_BC"):
        with pytest.raises(ValueError, match=word):
            tower(good._replace(**{word: getattr(good, word)[:, :0]}))
    with pytest.raises(ValueError, match="another"):
        tower(good._replace(sequences={**good.sequences, "another": (torch.zeros(4, 2, 8), torch.ones(4, 2, dtype=torch.bool))}))


class Plain(nn.Module):
    """A tower behind a signature of plain tensors."""

    def __init__(self, tower: nn.Module, sequences: list[str]) -> None:
        super().__init__()
        self.tower = tower
        self.sequences = sequences

    def forward(self, dense_BD: Tensor, fields_BC: Tensor, values: list[Tensor], masks: list[Tensor]) -> Tensor:
        return self.tower(Inputs(dense_BD, fields_BC, dense_BD[:, :0], dict(zip(self.sequences, zip(values, masks)))))


@each_side
def test_exports_to_onnx(side):
    """With a free batch size; ONNX Runtime and PyTorch agree to 1e-5."""
    net, specs = make_net("two_tower")
    wrapped = Plain(getattr(net, side), [s.name for s in specs[side].sequences]).eval()

    def arguments(num_rows: int, seed: int) -> tuple:
        inputs = make_inputs(specs[side], num_rows, first_order=False, seed=seed)
        pairs = list(inputs.sequences.values())
        return inputs.dense_BD, inputs.fields_BC, [v for v, _ in pairs], [m for _, m in pairs]

    batch = torch.export.Dim("batch")
    sequences = [{0: batch}] * len(specs[side].sequences)
    shapes = ({0: batch}, {0: batch}, sequences, sequences)
    program = torch.onnx.export(wrapped, arguments(4, 0), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    session = open_session(file.getvalue())
    given = arguments(33, 1)
    flat = [*given[:2], *given[2], *given[3]]
    names = [i.name for i in program.model.graph.inputs]
    (found,) = session.run(None, {n: t.numpy() for n, t in zip(names, flat, strict=True)})
    torch.testing.assert_close(torch.from_numpy(found), wrapped(*given).detach(), atol=1e-5, rtol=0)
