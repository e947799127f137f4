"""Numbers of reczoo/FuxiCTR of 2026-06-05, `model_zoo/WuKong/src/WuKong.py`, run in float64 with the weights copied.

With random weights outputs and gradients differed by less than 1e-14, too.
"""

import pytest
from reference import assert_equals_reference

CASES = {
    "fuxictr": {
        "name": "wukong",
        "options": {
            "num_layers": 2,
            "num_fmb": 3,
            "num_lcb": 2,
            "rank": 2,
            "fmb_units": (5,),
            "fmb_relu": True,
            "residual_bias": True,
            "hidden_units": (6,),
            "batch_norm": True,
        },
        "num_dense": 1,
        "num_fields": 3,
        "logits": [0.008860783827160879, -0.12336608045856856, -0.08959836506576957, 0.23198351765392256],
        "gradients": {
            "fields.numeric_DE": -0.0001845405558610586,
            "layers.0.fmb.projection_NK": -0.0013460799187981652,
            "layers.0.fmb.norm.weight": 0.0003075676211760552,
            "layers.0.fmb.norm.bias": -0.005342057383232468,
            "layers.0.fmb.mlp.linears.0.weight": -0.006485079628840614,
            "layers.0.fmb.mlp.linears.0.bias": -0.0042748219645005825,
            "layers.0.fmb.mlp.out.weight": -0.002772795421141264,
            "layers.0.fmb.mlp.out.bias": 0.003043738389559715,
            "layers.0.lcb.weight": 0.0035505225631835453,
            "layers.0.residual.weight": 0.0011146152699934922,
            "layers.0.residual.bias": 0.0,
            "layers.0.norm.weight": 0.0031950579892125915,
            "layers.0.norm.bias": -0.00105644140209294,
            "layers.1.fmb.projection_NK": -0.0005223722576864226,
            "layers.1.fmb.norm.weight": -0.0014576391602674425,
            "layers.1.fmb.norm.bias": -0.002768223115297486,
            "layers.1.fmb.mlp.linears.0.weight": -0.0018500406058089226,
            "layers.1.fmb.mlp.linears.0.bias": -0.0014456398264824017,
            "layers.1.fmb.mlp.out.weight": 0.0011700070280013931,
            "layers.1.fmb.mlp.out.bias": 0.0010780060231447358,
            "layers.1.lcb.weight": 0.0004469697240830148,
            "layers.1.norm.weight": -0.0002834561036975399,
            "layers.1.norm.bias": 0.0,
            "mlp.linears.0.weight": 0.0009900098456471632,
            "mlp.linears.0.bias": 0.0,
            "mlp.norms.0.weight": -0.11905131806007124,
            "mlp.norms.0.bias": 0.007959305581104567,
            "mlp.out.weight": -0.034250299280194324,
            "mlp.out.bias": 0.00024990949309466084,
            "fields_BC": -0.004965248094593925,
        },
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_of_the_reference(case):
    assert_equals_reference(case)
