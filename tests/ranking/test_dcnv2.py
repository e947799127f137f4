"""Numbers of reczoo/FuxiCTR of 2026-06-05, `fuxictr/pytorch/layers/interactions/cross_net.py` put together as in
`model_zoo/DCNv2/src/DCNv2.py`, run in float64 with the weights copied.

With random weights outputs and gradients of all four structures, full and mixture, differed by less than 1e-13, too.
"""

import pytest
import torch
from reference import assert_equals_reference

from torchrec_models.net import FieldSpec, InputSpec
from torchrec_models.ranking.dcnv2 import DCNv2

CASES = {
    "parallel": {
        "name": "dcnv2",
        "options": {"structure": "parallel", "num_layers": 2, "hidden_units": (6, 5), "batch_norm": True},
        "num_dense": 0,
        "num_fields": 3,
        "logits": [-1.8342194988414895, -1.5150692902451577, 0.8764740991287515, 1.2703839613447983],
        "gradients": {
            "cross.linears.0.weight": -0.009402096969347988,
            "cross.linears.0.bias": 0.006057712449098213,
            "cross.linears.1.weight": -0.01189857436169289,
            "cross.linears.1.bias": 0.005871650265348128,
            "parallel.linears.0.weight": 0.03454742831267809,
            "parallel.linears.0.bias": 1.1968276781958582e-18,
            "parallel.linears.1.weight": 0.06516198640506607,
            "parallel.linears.1.bias": -3.346450704146192e-17,
            "parallel.norms.0.weight": 0.03672065692560511,
            "parallel.norms.0.bias": 0.00877753669663066,
            "parallel.norms.1.weight": -0.03749256649419805,
            "parallel.norms.1.bias": -0.026188431158662904,
            "out.weight": -0.387580262070908,
            "out.bias": -0.007209783539717382,
            "fields_BC": -0.1811388391944609,
        },
    },
    "stacked_parallel": {
        "name": "dcnv2",
        "options": {"structure": "stacked_parallel", "num_layers": 2, "hidden_units": (6, 5)},
        "num_dense": 0,
        "num_fields": 3,
        "logits": [0.7327802256493113, 0.9667391918637566, 0.4563172467190224, -0.47682746924636715],
        "gradients": {
            "cross.linears.0.weight": -0.005330621790013259,
            "cross.linears.0.bias": 0.0014672935802456048,
            "cross.linears.1.weight": -0.004619706754854926,
            "cross.linears.1.bias": 0.0012063875088686657,
            "stacked.linears.0.weight": -0.036640787562111185,
            "stacked.linears.0.bias": 0.03991230737483242,
            "stacked.linears.1.weight": 0.1491212234960726,
            "stacked.linears.1.bias": -0.0739973429376189,
            "parallel.linears.0.weight": -0.020442424183251234,
            "parallel.linears.0.bias": 0.047322687986552286,
            "parallel.linears.1.weight": 0.02877091149203862,
            "parallel.linears.1.bias": 0.06435925464131384,
            "out.weight": -0.11610979730300099,
            "out.bias": 0.014592265594776574,
            "fields_BC": 0.31378668514992936,
        },
    },
    "stacked_mixture": {
        "name": "dcnv2",
        "options": {
            "structure": "stacked",
            "cross": "mixture",
            "rank": 2,
            "num_experts": 3,
            "shared_gate": True,
            "num_layers": 2,
            "hidden_units": (6, 5),
        },
        "num_dense": 0,
        "num_fields": 3,
        "logits": [-1.0744491153984463, -0.8214991078966687, 0.08916987866940664, 0.025635674629333305],
        "gradients": {
            "cross.gates.0.weight": -0.0007898144038712485,
            "cross.layers.0.v_KRD": -0.0032671848880421453,
            "cross.layers.0.c_KRR": -0.004847158697085927,
            "cross.layers.0.u_KRD": -0.00014090239276552902,
            "cross.layers.0.bias_D": 0.001049332734832771,
            "cross.layers.1.v_KRD": -0.000827614046836689,
            "cross.layers.1.c_KRR": -0.0009586263909170181,
            "cross.layers.1.u_KRD": 0.0007313389018658554,
            "cross.layers.1.bias_D": 0.0010648816746831376,
            "stacked.linears.0.weight": -0.07192084154033233,
            "stacked.linears.0.bias": -0.0157527551369593,
            "stacked.linears.1.weight": -0.22084113250400722,
            "stacked.linears.1.bias": 0.058189908906845195,
            "out.weight": -0.16044046669058223,
            "out.bias": -0.015193812436296446,
            "fields_BC": -0.08914427172021785,
        },
    },
    "cross_only": {
        "name": "dcnv2",
        "options": {"structure": "cross_only", "num_layers": 2},
        "num_dense": 0,
        "num_fields": 3,
        "logits": [-2.00824430316658, -1.5150692902451577, 0.6944173026465345, 0.7356518990178452],
        "gradients": {
            "cross.linears.0.weight": -0.012159709919075917,
            "cross.linears.0.bias": 0.005377740546684544,
            "cross.linears.1.weight": -0.014210071969733663,
            "cross.linears.1.bias": 0.00511834107084691,
            "out.weight": -0.49246994752134626,
            "out.bias": -0.0132421885018741,
            "fields_BC": -0.15138488952386112,
        },
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_of_the_reference(case):
    assert_equals_reference(case)


def test_a_softmax_over_one_expert_is_refused():
    with pytest.raises(ValueError, match="num_experts=1 is always 1; use gate: constant"):
        DCNv2(InputSpec((), (FieldSpec("a", 4),), ()), DCNv2.Config(cross="mixture", num_experts=1))


def test_gates_are_shared_only_where_asked():
    spec = InputSpec((), (FieldSpec("a", 4),), ())
    gates = {
        shared: len(DCNv2(spec, DCNv2.Config(cross="mixture", num_layers=3, shared_gate=shared)).cross.gates)
        for shared in (True, False)
    }
    assert gates == {True: 1, False: 3}


def test_each_expert_starts_as_a_matrix_of_its_own():
    """Xavier on the whole [experts, width, rank] tensor would give 0.00998 here, one slice has 0.0552."""
    torch.manual_seed(0)
    spec = InputSpec((), tuple(FieldSpec(str(i), 16) for i in range(39)), ())
    experts = DCNv2(spec, DCNv2.Config(cross="mixture", rank=32, num_experts=4, structure="cross_only")).cross.layers[0]
    for weight in (experts.u_KRD, experts.v_KRD):
        assert float(weight.detach().std(dim=(1, 2)).min()) == pytest.approx(0.0552, rel=0.02)
