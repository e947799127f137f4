"""Nets with several objectives against released code, loops over rows, and closed forms.

MMoE and PLE: reczoo/FuxiCTR of 2026-06-05, `MMoE_Layer` and `CGC_Layer` of `model_zoo/multitask/*/src`, towers `MLP_Block`s.
DBMTL: alibaba/TorchEasyRec of 2026-08-19, `DBMTL.predict` of `tzrec/models/dbmtl.py`. All were run in float64 with the weights
copied; with random weights and with waves, outputs and all gradients differed by less than 1e-15.
"""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from waves import wave

from torchrec_models.net import FieldSpec, Inputs, InputSpec, Net, TrainingOutput
from torchrec_models.ranking import NETS
from torchrec_models.ranking.dbmtl import DBMTL
from torchrec_models.ranking.esmm import ESMM, product_logits
from torchrec_models.ranking.ple import PLE
from torchrec_models.schema import Task

TASKS = ("click", "buy", "chat")
SPEC = InputSpec(("x",), tuple(FieldSpec(n, 4) for n in "abc"), (), 3, tuple(Task(name=n) for n in TASKS))
LABELS_BT = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 1, 0], [1, 1, 0]], dtype=torch.float64)
EXPERT = {"expert": {"name": "dnn", "hidden_units": (6,)}, "expert_width": 5, "gate_units": (4,), "tower_units": (3,)}
RELATIONS = {"buy": ("click",), "chat": ("buy", "click")}
PLE_OPTIONS = {**EXPERT, "num_levels": 2, "num_task_experts": 2, "num_shared_experts": 2, "level_units": (6,)}
DBMTL_OPTIONS = {
    "bottom": {"name": "dnn", "hidden_units": (6,)},
    "bottom_width": 5,
    "tower_units": (4,),
    "relation_units": (3,),
    "relations": RELATIONS,
}

# logits, and the sum over all parameters and fields_BC of sum(gradient * wave(0.3))
REFERENCES: dict[str, tuple[str, dict[str, Any], list[list[float]], float]] = {
    "mmoe": (
        "mmoe",
        {**EXPERT, "num_experts": 3},
        [
            [0.20441767089505913, -0.5116451976656536, 0.04185138898761637],
            [0.26529045793371286, -0.4940158120464309, 0.13713127568305977],
            [0.30827212213202637, -0.4940158120464309, 0.14359233668840016],
            [0.258673010162848, -0.49912338229000164, 0.08779424071707095],
        ],
        0.0038892915277714164,
    ),
    "ple_shared_gate": (
        "ple",
        {**PLE_OPTIONS, "shared_gate": "shared"},
        [
            [-0.3137762060373491, -0.4982470827718428, 0.29886385247124003],
            [-0.320155846393209, -0.5128865497575802, 0.29585197363802507],
            [-0.31719790793443486, -0.5061049537175546, 0.31187327336635823],
            [-0.3171163033424106, -0.4964300087063808, 0.30923726127727835],
        ],
        -0.008531729959804472,
    ),
    "dbmtl": (
        "dbmtl",
        DBMTL_OPTIONS,
        [
            [-0.9206677363639684, -0.3497853566462786, 0.38249553756953614],
            [-0.7152964540825564, -0.3472229249201595, 0.3492017453348672],
            [-0.4294311418447668, -0.3444132463153199, 0.3798946955089311],
            [-0.6288064685688114, -0.35328425625160964, 0.34168322528611533],
        ],
        0.05508864973254537,
    ),
}


def make(name: str, options: dict[str, Any], *, seed: int | None = None) -> tuple[Net, Inputs]:
    """A net and inputs of waves, or of random numbers."""
    torch.manual_seed(seed or 0)
    net = NETS[name](SPEC, NETS[name].Config(**options)).double()
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(net.named_parameters())):
            parameter.copy_(torch.randn_like(parameter) if seed else wave(*parameter.shape, phase=i))
    if seed:
        fields_BC, dense_BD = torch.randn(4, 12, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    else:
        fields_BC, dense_BD = wave(4, 12, phase=20), wave(4, 1, phase=22)
    return net, Inputs(dense_BD, fields_BC.requires_grad_(), torch.empty(4, 0, dtype=torch.float64), {})


@pytest.mark.parametrize("case", REFERENCES)
def test_outputs_and_gradients_of_the_reference(case):
    name, options, logits, gradient_sum = REFERENCES[case]
    net, inputs = make(name, options)
    logits_BT = net(inputs)
    F.binary_cross_entropy_with_logits(logits_BT, LABELS_BT).backward()
    torch.testing.assert_close(logits_BT.detach(), torch.tensor(logits, dtype=torch.float64), atol=1e-10, rtol=0)
    gradients = [p.grad for p in net.parameters()] + [inputs.fields_BC.grad]
    assert float(sum((g * wave(*g.shape, phase=0.3)).sum() for g in gradients)) == pytest.approx(gradient_sum, abs=1e-10)


def mlp(module: nn.Module, x: list[float], *, relu_at_end: bool) -> list[float]:
    """One row through the Linears of a module, a number at a time; ReLU between them."""
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    for i, linear in enumerate(linears):
        bias = linear.bias.tolist() if linear.bias is not None else [0.0] * linear.out_features
        x = [sum(w * v for w, v in zip(row, x)) + b for row, b in zip(linear.weight.tolist(), bias)]
        if i < len(linears) - 1 or relu_at_end:
            x = [max(v, 0.0) for v in x]
    return x


def mixed(gate: nn.Module, x: list[float], experts: list[list[float]]) -> list[float]:
    scores = [math.exp(s) for s in mlp(gate, x, relu_at_end=False)]
    assert len(scores) == len(experts)
    return [sum(s / sum(scores) * e[k] for s, e in zip(scores, experts)) for k in range(len(experts[0]))]


@pytest.mark.parametrize(("num_levels", "gate_units"), [(1, ()), (3, ()), (2, (4,))])
def test_ple_is_the_papers(num_levels, gate_units):
    """The shared gate sees the experts of every task, on all levels but the last: section 4.2 of the paper, a row at a time."""
    net, inputs = make("ple", {**PLE_OPTIONS, "num_levels": num_levels, "gate_units": gate_units}, seed=5)
    assert isinstance(net, PLE)
    logits_BT = net(inputs)
    for b in range(4):
        states = [inputs.fields_BC[b].tolist() + inputs.dense_BD[b].tolist()] * 4
        for level, gates in enumerate(net.gates):
            modules = list(net.experts.nets if level == 0 else net.later_experts[level - 1])
            of_tasks = [[mlp(modules[2 * t + j], states[t], relu_at_end=True) for j in range(2)] for t in range(3)]
            shared = [mlp(modules[6 + j], states[3], relu_at_end=True) for j in range(2)]
            assert len(gates) == (3 if level == num_levels - 1 else 4)
            after = [mixed(gates[t], states[t], of_tasks[t] + shared) for t in range(3)]
            if len(gates) == 4:
                after.append(mixed(gates[3], states[3], [e for group in of_tasks for e in group] + shared))
            states = after
        expected = [mlp(tower, state, relu_at_end=False)[0] for tower, state in zip(net.towers.towers, states)]
        assert logits_BT[b].tolist() == pytest.approx(expected, abs=1e-10)


def test_what_a_task_learns_reaches_the_others_by_the_papers_shared_gate_only():
    for shared_gate, reaches in (("all", True), ("shared", False)):
        net, inputs = make("ple", {**PLE_OPTIONS, "shared_gate": shared_gate}, seed=7)
        net(inputs)[:, 0].sum().backward()  # the first task's logit, and an expert of the last task
        gradient = net.get_parameter("experts.nets.5.mlp.out.weight").grad
        assert (gradient is not None and bool(gradient.any())) == reaches


def test_a_gate_that_always_picks_one_expert_is_a_shared_bottom():
    mmoe, inputs = make("mmoe", {**EXPERT, "num_experts": 2, "gate_units": (4,)}, seed=3)
    options = {"bottom": EXPERT["expert"], "bottom_width": 5, "tower_units": (3,)}
    bottom, _ = make("shared_bottom", options, seed=4)
    with torch.no_grad():
        for t in range(3):
            mmoe.get_parameter(f"gates.{t}.scores.out.weight").zero_()
            mmoe.get_parameter(f"gates.{t}.scores.out.bias").copy_(torch.tensor([-900.0, 900.0]))
    mmoe.get_submodule("experts.nets.1").load_state_dict(bottom.get_submodule("experts.nets.0").state_dict())
    mmoe.get_submodule("towers").load_state_dict(bottom.get_submodule("towers").state_dict())
    torch.testing.assert_close(mmoe(inputs), bottom(inputs), atol=1e-12, rtol=0)


# --- ESMM -------------------------------------------------------------------------------------------------------------


def test_products_of_probabilities():
    z = 3 * torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.stack(product_logits(list(z))).sigmoid()
    torch.testing.assert_close(found, z.sigmoid().cumprod(dim=0), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("a", [-200.0, -40.0, 0.0, 40.0, 200.0])
@pytest.mark.parametrize("b", [-200.0, -40.0, 0.0, 40.0, 200.0])
def test_products_stay_exact_far_out(a, b):
    """logit(pq) = -log(e^-a + e^-b + e^-(a+b)); in float32, where the product itself is 0 or 1, with gradients."""
    p, q = (1 / (1 + Fraction(math.exp(-x))) for x in (a, b))
    expected = -(math.log((1 - p * q).numerator) - math.log((1 - p * q).denominator)) + (
        math.log((p * q).numerator) - math.log((p * q).denominator)
    )
    z = torch.tensor([a, b], requires_grad=True)
    logit = product_logits(list(z))[1]
    logit.backward()
    assert float(logit) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert z.grad.isfinite().all()


def test_esmm_is_the_papers_two_nets():
    """Each task has a net of its own; the last logits are those of the product; tasks outside the funnel stay as they are."""
    net, inputs = make("esmm", {"net": {"name": "dnn", "hidden_units": (6,)}, "funnel": ("chat", "click")}, seed=2)
    assert isinstance(net, ESMM)
    z_BT = torch.cat([inner(inputs) for inner in net.nets.nets], dim=1)
    logits_BT = net(inputs)
    p_BT = z_BT.sigmoid()
    torch.testing.assert_close(logits_BT[:, 2], z_BT[:, 2])
    torch.testing.assert_close(logits_BT[:, 1], z_BT[:, 1])
    torch.testing.assert_close(logits_BT[:, 0].sigmoid(), p_BT[:, 2] * p_BT[:, 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(net.conditional_logits(inputs), z_BT)
    predicted = logits_BT.sigmoid()
    torch.testing.assert_close(predicted[:, 0] / predicted[:, 2], p_BT[:, 0], atol=1e-12, rtol=0)


def test_the_gradient_of_the_conversion_net_is_the_papers():
    """d BCE(pq, y) / dz2 = -(1 - q) (y - pq) / (1 - pq): both nets learn from every impression, clicked or not."""
    z1, z2, y = 0.4, -1.3, 0.0
    p, q = (1 / (1 + math.exp(-z)) for z in (z1, z2))
    z = torch.tensor([z1, z2], dtype=torch.float64, requires_grad=True)
    F.binary_cross_entropy_with_logits(product_logits(list(z))[1], torch.tensor(y, dtype=torch.float64)).backward()
    assert z.grad.tolist() == pytest.approx([-(1 - r) * (y - p * q) / (1 - p * q) for r in (p, q)], abs=1e-12)


@pytest.mark.parametrize(
    ("funnel", "text"),
    [
        (("click",), "at least two labels in its funnel, got click"),
        (("click", "bye"), "no label 'bye'; there are: click, buy, chat"),
        (("click", "buy", "click"), "every label at most once"),
    ],
)
def test_funnels_that_are_none(funnel, text):
    with pytest.raises(ValueError, match=text):
        ESMM(SPEC, ESMM.Config(funnel=funnel))


# --- DBMTL ------------------------------------------------------------------------------------------------------------


def test_the_order_of_labels_does_not_matter_to_dbmtl():
    """A child may come before its parents."""
    net, inputs = make("dbmtl", {**DBMTL_OPTIONS, "relations": {"click": ("chat",), "buy": ("click",)}}, seed=6)
    assert isinstance(net, DBMTL)
    bottom = F.relu(net.experts.nets[0](inputs))
    h = [m(bottom) for m in net.task_mlps]
    click = net.relation_mlps[0](torch.cat([h[0], h[2]], dim=1))
    buy = net.relation_mlps[1](torch.cat([h[1], click], dim=1))
    expected = torch.cat([out(r) for out, r in zip(net.outputs, (click, buy, h[2]))], dim=1)
    torch.testing.assert_close(net(inputs), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("detach", [True, False])
def test_children_train_their_parents_unless_told_otherwise(detach):
    net, inputs = make("dbmtl", {**DBMTL_OPTIONS, "detach_parents": detach}, seed=6)
    net(inputs)[:, 1].sum().backward()
    gradient = net.get_parameter("task_mlps.0.linears.0.weight").grad
    assert (gradient is None or not gradient.any()) == detach


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "DBMTL needs relations"),
        ({"relations": {"bye": ("click",)}}, "no label 'bye'"),
        ({"relations": {"buy": ()}}, "DBMTL needs relations"),
        ({"relations": {"buy": ("click", "click")}}, "each named once"),
        (
            {"relations": {"buy": ("click",), "click": ("buy",)}},
            "depend on themselves: (buy -> click|click -> buy) ->",
        ),
        ({"relations": {"buy": ("click",)}, "gate_units": (4,)}, "gate_units: has no effect with num_experts: 1"),
    ],
)
def test_relations_that_make_no_sense(options, text):
    with pytest.raises(ValueError, match=text):
        DBMTL(SPEC, DBMTL.Config(**options))


# --- nets inside ------------------------------------------------------------------------------------------------------


def test_first_order_weights_reach_the_experts():
    options = {**EXPERT, "expert": {"name": "deepfm", "hidden_units": (6,)}, "num_experts": 2}
    assert NETS["mmoe"].wants_first_order(NETS["mmoe"].Config(**options))
    spec = SPEC._replace(dense=())
    net = NETS["mmoe"](spec, NETS["mmoe"].Config(**options))
    first_BF = torch.randn(4, 3, requires_grad=True)
    net(Inputs(torch.empty(4, 0), torch.randn(4, 12), first_BF, {})).sum().backward()
    assert first_BF.grad.any()
    with pytest.raises(ValueError, match="first_order_BF of width 3, got 0"):
        net(Inputs(torch.empty(4, 0), torch.randn(4, 12), torch.empty(4, 0), {}))


def test_branches_of_experts_go_through_gates_and_towers():
    """QNN-alpha's two passes: each task's training logit is that of the mean of its two probabilities."""
    options = {**EXPERT, "expert": {"name": "qnn_alpha", "num_layers": 1, "dropout": 0.5}, "num_experts": 2}
    spec = SPEC._replace(dense=())
    net = NETS["mmoe"](spec, NETS["mmoe"].Config(**options))
    inputs = Inputs(torch.empty(64, 0), torch.randn(64, 12), torch.empty(64, 0), {})
    output = net(inputs)
    assert isinstance(output, TrainingOutput) and set(output.branches) == {"first", "second"}
    first, second = output.branches.values()
    assert first.shape == second.shape == output.logits_BT.shape == (64, 3)
    assert (first != second).any()
    torch.testing.assert_close(output.logits_BT.sigmoid(), (first.sigmoid() + second.sigmoid()) / 2)
    assert [loss.name for loss in net.auxiliary_losses()] == ["self_ensemble"]
    assert isinstance(net.eval()(inputs), Tensor)


def test_one_label_needs_no_such_net():
    with pytest.raises(ValueError, match=r"MMoE needs at least two labels; for one, take model\.name: dnn$"):
        NETS["mmoe"](SPEC._replace(num_tasks=1), NETS["mmoe"].Config())
