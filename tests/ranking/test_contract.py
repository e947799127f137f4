"""What every ranking net must do, on every combination of features. A new net needs a line in CASES and nothing else."""

import io
import subprocess
import sys

import pytest
import torch
from cases import CASES, Case
from fixtures import SCHEMAS, as_batch, categorical, make_batch, make_inputs, make_rows, make_schema, sequence, take
from torch import Tensor, nn

from torchrec_models.batch import Batch
from torchrec_models.model import RankingTask, build
from torchrec_models.net import Inputs, InputSpec, Net
from torchrec_models.pipelines.data.rows import Rows
from torchrec_models.pipelines.serving.onnx_runtime import open_session
from torchrec_models.ranking import NETS
from torchrec_models.schema import Task

each_case = pytest.mark.parametrize("case", CASES)
each_case_and_schema = pytest.mark.parametrize(("case", "schema_name"), [(c, n) for c, one in CASES.items() for n in one.schemas])
each_case_with_lists = pytest.mark.parametrize(
    ("case", "schema_name"), [(c, n) for c, one in CASES.items() for n in one.schemas if SCHEMAS[n].sequences]
)


def make_task(case: str, schema_name: str, *, seed: int = 0) -> RankingTask:
    torch.manual_seed(seed)
    task = build(CASES[case].schema(schema_name), CASES[case].name, CASES[case].options)
    assert isinstance(task, RankingTask)
    return task


def make_net(case: str, schema_name: str, *, seed: int = 0) -> tuple[Net, InputSpec]:
    net, spec = NETS[CASES[case].name], InputSpec.from_schema(CASES[case].schema(schema_name))
    torch.manual_seed(seed)
    return net(spec, net.Config(**CASES[case].options)), spec


def first_order(case: str) -> bool:
    net = NETS[CASES[case].name]
    return net.wants_first_order(net.Config(**CASES[case].options))


def with_all_gradients(task: RankingTask) -> RankingTask:
    """In evaluation mode, unless the net has branches, which only training mode computes."""
    return task.train(bool(task.loss.auxiliary))


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_every_net_has_a_case():
    assert {case.name for case in CASES.values()} == set(NETS)
    assert all(net.summary for net in NETS.values())


@each_case_and_schema
def test_shapes(case, schema_name):
    schema = CASES[case].schema(schema_name)
    task = make_task(case, schema_name)
    loss, (losses, logits, labels, weights) = task(make_batch(schema, 7))
    assert loss.shape == () and loss.isfinite()
    assert losses.shape == logits.shape == labels.shape == weights.shape == (7, len(schema.tasks))
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(("case", "schema_name"), [(c, n) for c, one in CASES.items() for n in one.refuses])
def test_features_that_a_net_cannot_take_are_refused(case, schema_name):
    with pytest.raises(ValueError, match=CASES[case].refuses[schema_name]):
        make_task(case, schema_name)


@each_case_and_schema
def test_gradient_reaches_every_parameter(case, schema_name):
    task = with_all_gradients(make_task(case, schema_name))
    found = gradients(task, task(make_batch(CASES[case].schema(schema_name), 64))[0])
    assert set(found) == {name for name, p in task.named_parameters() if p.requires_grad}
    for name, gradient in found.items():
        assert gradient.isfinite().all() and gradient.any(), name


@each_case
def test_rows_of_weight_zero_have_no_effect(case):
    schema = CASES[case].schema("everything")
    task = make_task(case, "everything").eval()
    rows = make_rows(schema, 24)
    rows.weights[16:] = 0
    with_loss = task(as_batch(schema, rows))[0]
    with_gradients = gradients(task, with_loss)
    without_loss = task(as_batch(schema, rows.slice(0, 16)))[0]
    without_gradients = gradients(task, without_loss)
    torch.testing.assert_close(with_loss, without_loss)
    torch.testing.assert_close(with_gradients, without_gradients)


@each_case
def test_a_batch_of_weight_zero_gives_zero(case):
    schema = CASES[case].schema("everything")
    task = make_task(case, "everything").eval()
    rows = make_rows(schema, 8)
    rows.weights[:] = 0
    loss = task(as_batch(schema, rows))[0]
    assert loss == 0
    assert not any(gradient.any() for gradient in gradients(task, loss).values())


@each_case_and_schema
def test_permuted_rows_give_permuted_logits(case, schema_name):
    schema = CASES[case].schema(schema_name)
    model = make_task(case, schema_name).eval().model
    rows, order = make_rows(schema, 16), torch.randperm(16)
    torch.testing.assert_close(model(as_batch(schema, rows.take(order))), model(as_batch(schema, rows))[order])


@each_case_with_lists
def test_padding_has_no_effect(case, schema_name):
    """Positions that are padding in every row can be cut off: how far a sequence is padded does not matter."""
    net, spec = make_net(case, schema_name)
    net.eval()
    inputs = make_inputs(spec, 8, first_order=first_order(case))
    for values_BLE, mask_BL in inputs.sequences.values():
        values_BLE[:, 2:] = 0
        mask_BL[:, 2:] = False
    short = inputs._replace(sequences={n: (values[:, :2], mask[:, :2]) for n, (values, mask) in inputs.sequences.items()})
    torch.testing.assert_close(net(short), net(inputs))


@each_case
def test_what_other_rows_hold_has_no_effect(case):
    """A row alone, and beside rows with longer lists, gives the same logits."""
    schema = CASES[case].schema("everything")
    model = make_task(case, "everything").eval().model
    rows = make_rows(schema, 16)
    together = model(as_batch(schema, rows))
    alone = torch.cat([model(as_batch(schema, rows.slice(i, i + 1))) for i in range(16)])
    torch.testing.assert_close(alone, together)


def interaction_pairs(case: Case) -> tuple[RankingTask, Batch]:
    """label = parity(a) xor parity(b), over all 64 pairs; where the net needs a history, b is the only event in it.

    A second label, for nets that need one, is 1 where the first one is and a < 4, as a purchase follows a click.
    """
    a, b = torch.cartesian_prod(torch.arange(8, dtype=torch.int32), torch.arange(8, dtype=torch.int32)).T
    labels = ((a + b) % 2).float()[:, None]
    torch.manual_seed(0)
    if case.num_tasks == 2:
        labels = torch.cat([labels, labels * (a[:, None] < 4)], dim=1)
    if "history" in case.refuses.get("pooled", ""):
        features = [categorical("item"), sequence("history", table="item", max_len=2)]
        ids, lists = a[:, None], ((b.contiguous(), torch.arange(65)),)
    else:
        features, ids, lists = [categorical("a"), categorical("b")], torch.stack([a, b], dim=1), ()
    tasks = [Task(name="click"), Task(name="buy")][: case.num_tasks]
    schema = make_schema(features, num_rows=8, init_std=0.1, tasks=tasks)
    batch = as_batch(schema, Rows(torch.empty(64, 0), ids, lists, labels, torch.ones(64, case.num_tasks)))
    return build(schema, case.name, {**case.options, **case.overfit}), batch


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.learns_interactions])
def test_overfits_what_only_an_interaction_explains(case):
    """No sum of single features can tell the parity of a pair. Batch norm's running means need 50 steps to follow its batches."""
    task, batch = interaction_pairs(CASES[case])
    optimizer = torch.optim.Adam(task.parameters(), lr=CASES[case].learning_rate)
    for step in range(300):
        optimizer.zero_grad()
        loss = task(batch)[0]
        loss.backward()
        optimizer.step()
        if loss < 0.01 and step >= 50:
            break
    loss, (_, logits, _, _) = task.eval()(batch)
    assert loss < 0.05
    assert ((logits > 0) == (batch.labels > 0.5)).all()


@each_case
def test_initialises_on_meta(case):
    """Built on meta and emptied as DistributedModelParallel does it, a net holds what one built on the CPU holds."""
    name = CASES[case].name
    config = NETS[name].Config(**{**CASES[case].options, **CASES[case].wide})
    spec = InputSpec.from_schema(CASES[case].schema("everything"))
    torch.manual_seed(0)
    with torch.device("meta"):
        net = NETS[name](spec, config)
    net.to_empty(device="cpu")
    for tensor in (*net.parameters(), *net.buffers()):
        tensor.detach().fill_(7)
    net.apply(_reset_own)
    expected = NETS[name](spec, config)
    for key, value in net.named_parameters():
        other = expected.get_parameter(key)
        if other.std() == 0 or _is_identity(other):  # biases, and the weights and biases of norms
            assert torch.equal(value, other), key
        elif value.numel() < 64:  # too few to know their deviation
            assert (value != 7).all(), key
        else:
            assert abs(value.mean() - other.mean()) < 7 * other.std() / value.numel() ** 0.5, key  # 5 deviations of a difference
            assert abs(value.std() / other.std() - 1) < 5 / value.numel() ** 0.5, key
    for key, value in net.named_buffers():
        assert torch.equal(value, expected.get_buffer(key)), key


def _is_identity(weight: Tensor) -> bool:
    return weight.dim() == 2 and torch.equal(weight, torch.eye(*weight.shape))


def _reset_own(module: nn.Module) -> None:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if own:
        assert hasattr(module, "reset_parameters"), f"{type(module).__name__} holds tensors and cannot initialise them"
        module.reset_parameters()


@pytest.mark.parametrize(
    ("case", "schema_name"), [(c, n) for c in CASES for n in ("everything", "pooled") if n in CASES[c].schemas]
)
def test_bfloat16_autocast_is_close(case, schema_name):
    net, spec = make_net(case, schema_name)
    net.train(not net.auxiliary_losses())  # branches are no part of the answer
    inputs = make_inputs(spec, 256, first_order=first_order(case))
    expected = net(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(inputs)
        loss = logits.float().square().mean()
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(gradient.isfinite().all() for gradient in gradients(net, loss).values())


class Plain(nn.Module):
    """A net behind a signature of plain tensors, as an exporter needs it."""

    def __init__(self, net: Net, sequences: list[str]) -> None:
        super().__init__()
        self.net = net
        self.sequences = sequences

    def forward(
        self, dense_BD: Tensor, fields_BC: Tensor, first_order_BF: Tensor, values: list[Tensor], masks: list[Tensor]
    ) -> Tensor:
        return self.net(Inputs(dense_BD, fields_BC, first_order_BF, dict(zip(self.sequences, zip(values, masks)))))


@each_case
def test_exports_to_onnx(case):
    """With a free batch size; ONNX Runtime and PyTorch agree to 1e-5."""
    net, spec = make_net(case, "everything")
    net.eval()

    def arguments(num_rows: int, seed: int) -> tuple:
        inputs = make_inputs(spec, num_rows, first_order=True, seed=seed)
        pairs = list(inputs.sequences.values())
        return inputs.dense_BD, inputs.fields_BC, inputs.first_order_BF, [v for v, _ in pairs], [m for _, m in pairs]

    batch = torch.export.Dim("batch")
    sequences = [{0: batch}] * len(spec.sequences)
    wrapped = Plain(net, [s.name for s in spec.sequences]).eval()
    file = io.BytesIO()
    program = torch.onnx.export(
        wrapped,
        arguments(4, 0),
        dynamo=True,
        dynamic_shapes=({0: batch}, {0: batch}, {0: batch}, sequences, sequences),
        verbose=False,
    )
    assert program is not None
    program.save(file)
    session = open_session(file.getvalue())
    given = arguments(33, 1)
    flat = [*given[:3], *given[3], *given[4]]
    names = [i.name for i in program.model.graph.inputs]
    used = {i.name for i in session.get_inputs()}
    (found,) = session.run(None, {n: t.numpy() for n, t in zip(names, flat, strict=True) if n in used})
    torch.testing.assert_close(torch.from_numpy(found), wrapped(*given).detach(), atol=1e-5, rtol=0)


@each_case
def test_inputs_of_another_spec_are_refused(case):
    net, spec = make_net(case, "everything")
    good = make_inputs(spec, 4, first_order=first_order(case))
    net(good)
    (first, pair), *others = good.sequences.items()
    bad = {
        "dense_BD": good._replace(dense_BD=good.dense_BD[:, :1]),
        "fields_BC": good._replace(fields_BC=good.fields_BC[:, 1:]),
        first: good._replace(sequences=dict(others)),
        "another": good._replace(sequences={**good.sequences, "another": pair}),
        "of width 1,": good._replace(sequences={**good.sequences, first: (pair[0][:, :, :1], pair[1])}),
    }
    if first_order(case):
        bad["first_order_BF"] = good._replace(first_order_BF=good.first_order_BF[:, :0])
    for word, inputs in bad.items():
        with pytest.raises(ValueError, match=word):
            net(inputs)


@each_case
def test_net_alone_permutes_and_trains_in_float64(case):
    """A net keeps the dtype it is given."""
    net, spec = make_net(case, "everything")
    net.double().eval()
    inputs = make_inputs(spec, 8, first_order=first_order(case), dtype=torch.float64)
    order = torch.randperm(8)
    logits = net(inputs)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(net(take(inputs, order)), logits[order], atol=1e-12, rtol=0)


def test_nets_do_not_import_torchrec():
    code = (
        "import sys; sys.modules['torchrec'] = None; import torchrec_models.ranking, torchrec_models.towers, torchrec_models.losses"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
