"""Numbers of reczoo/FuxiCTR of 2026-06-05, `model_zoo/FinalMLP/src/FinalMLP.py`, run in float64 with the weights copied.

Fields d and e are the tables that FuxiCTR's gates have of their own. With random weights outputs and gradients differed by
less than 1e-14, too.
"""

import itertools

import pytest
import torch
from reference import assert_equals_reference, frappe_schema

from torchrec_models.model import build
from torchrec_models.net import FieldSpec, Inputs, InputSpec
from torchrec_models.ranking.finalmlp import BilinearFusion, FinalMLP

OPTIONS = {"mlp1_units": (8, 6), "mlp2_units": (4,), "mlp1_batch_norm": True, "gate_units": (5,), "num_heads": 2}
CONTEXT = {"gate1_context": ("d",), "gate2_context": ("e",), "context_in_streams": False}

CASES = {
    "context": {
        "name": "finalmlp",
        "options": {**OPTIONS, **CONTEXT},
        "num_dense": 0,
        "num_fields": 5,
        "logits": [1.855114115722217, 0.8498817444394503, 1.1787152739984574, 1.708642005399228],
        "gradients": {
            "gates.0.mlp.linears.0.weight": -0.0002331111315296463,
            "gates.0.mlp.linears.0.bias": -0.00038884591608428836,
            "gates.0.mlp.out.weight": -0.0005190810277233993,
            "gates.0.mlp.out.bias": 9.387170996367602e-05,
            "gates.1.mlp.linears.0.weight": -0.002165318994316553,
            "gates.1.mlp.linears.0.bias": 3.15216842078944e-05,
            "gates.1.mlp.out.weight": 0.003388423891010418,
            "gates.1.mlp.out.bias": -0.001052763487903765,
            "mlp1.linears.0.weight": -0.11213241014180819,
            "mlp1.linears.0.bias": 0.0,
            "mlp1.linears.1.weight": 0.0012672804413530574,
            "mlp1.linears.1.bias": 0.0,
            "mlp1.norms.0.weight": 0.19754976291191761,
            "mlp1.norms.0.bias": 0.13084407498487802,
            "mlp1.norms.1.weight": 0.1295274075978441,
            "mlp1.norms.1.bias": 0.1113404774718948,
            "mlp2.linears.0.weight": 0.050476568518071314,
            "mlp2.linears.0.bias": -0.059882800478588655,
            "fusion.weight_HXTY": -0.037227388944396395,
            "fusion.first.weight": 0.15127940980665025,
            "fusion.first.bias": 0.043465317661433925,
            "fusion.second.weight": 0.02351859983749247,
            "fusion.second.bias": 0.043465317661433925,
            "fields_BC": 0.06560804816734461,
        },
    },
    "no_context": {
        "name": "finalmlp",
        "options": OPTIONS,
        "num_dense": 1,
        "num_fields": 3,
        "logits": [0.7855872512609454, 0.40590067432543303, 1.6445995816262684, 0.32458958718540193],
        "gradients": {
            "fields.numeric_DE": -0.014346028806307013,
            "gates.0.context_1E": 0.0004020425542640509,
            "gates.0.mlp.linears.0.weight": 0.000266837303195045,
            "gates.0.mlp.linears.0.bias": -0.0004599326925558588,
            "gates.0.mlp.out.weight": 0.0001898391958448607,
            "gates.0.mlp.out.bias": 0.00046587761725870873,
            "gates.1.context_1E": 0.0005934846660313458,
            "gates.1.mlp.linears.0.weight": -0.0006025823333331257,
            "gates.1.mlp.linears.0.bias": 0.0008036187292592088,
            "gates.1.mlp.out.weight": 4.501517665183913e-05,
            "gates.1.mlp.out.bias": -0.0023034674353993676,
            "mlp1.linears.0.weight": -0.008285994523273041,
            "mlp1.linears.0.bias": 0.0,
            "mlp1.linears.1.weight": -0.010279014085538295,
            "mlp1.linears.1.bias": 0.0,
            "mlp1.norms.0.weight": -0.014358939902026167,
            "mlp1.norms.0.bias": -0.03421440950552056,
            "mlp1.norms.1.weight": 0.10783097125194638,
            "mlp1.norms.1.bias": -0.11636271483188998,
            "mlp2.linears.0.weight": 0.09559757794689044,
            "mlp2.linears.0.bias": -0.03779312747701652,
            "fusion.weight_HXTY": -0.14485193482213618,
            "fusion.first.weight": -0.031084526719533462,
            "fusion.first.bias": 0.02606450423599948,
            "fusion.second.weight": -0.031446890176030765,
            "fusion.second.bias": 0.02606450423599948,
            "fields_BC": -0.039911895153738344,
        },
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_of_the_reference(case):
    assert_equals_reference(case)


def test_number_of_parameters_published_for_frappe():
    """253,392 in the log behind the BARS leaderboard, 120 of them padding rows: one per table, width 10, which we do not have."""
    options = {"mlp1_units": (400,), "mlp2_units": (100,), "gate_units": (400,), "num_heads": 5, **CONTEXT}
    options |= {"gate1_context": ("user_gate",), "gate2_context": ("item_gate",), "mlp1_batch_norm": True, "mlp2_batch_norm": True}
    model = build(frappe_schema(("user_gate", "user"), ("item_gate", "item")), "finalmlp", options).model
    assert sum(p.numel() for p in model.parameters()) == 253_392 - 12 * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate1_context": ("a", "nobody")}, "given nobody; there are a, b, x"),
        ({"gate1_context": ("a",), "gates": False}, "no effect with gates: false"),
        ({"context_in_streams": False}, "no effect without gate1_context"),
        ({"gate1_context": ("a", "x"), "gate2_context": ("b",), "context_in_streams": False}, "a feature that is no context"),
        ({"num_heads": 3}, "multiples of num_heads"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    spec = InputSpec(("x",), (FieldSpec("a", 4), FieldSpec("b", 4)), ())
    with pytest.raises(ValueError, match=message):
        FinalMLP(spec, FinalMLP.Config(**options))


def test_fusion_is_a_sum_over_heads_and_tasks():
    """Index by index; two tasks, which the reference cannot have."""
    torch.manual_seed(0)
    fusion = BilinearFusion(6, 4, num_heads=2, num_tasks=2).double()
    first_BX, second_BY = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    expected_BT = fusion.first(first_BX) + fusion.second(second_BY)
    for h, x, t, y in itertools.product(range(2), range(3), range(2), range(2)):
        expected_BT[:, t] += first_BX[:, 3 * h + x] * fusion.weight_HXTY[h, x, t, y] * second_BY[:, 2 * h + y]
    torch.testing.assert_close(fusion(first_BX, second_BY), expected_BT, atol=1e-12, rtol=0)


def test_a_gate_without_context_trains():
    """FuxiCTR starts its context at zero, where no gradient reaches it."""
    torch.manual_seed(0)
    net = FinalMLP(InputSpec((), (FieldSpec("a", 4),), ()), FinalMLP.Config(num_heads=2))
    net(Inputs(torch.empty(8, 0), torch.randn(8, 4), torch.empty(8, 0), {})).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.gates.parameters())
