"""Numbers of two AutoInts, run in float64 with the weights copied.

FuxiCTR: reczoo/FuxiCTR of 2026-06-05, `model_zoo/AutoInt/src/AutoInt.py`. The authors': `multihead_attention` of
DeepGraphLearning/RecommenderSystems of 2020-04-10, `featureRec/autoint/model.py`, its TensorFlow 1 calls mapped to torch's,
and its output layer and MLP written out. With random weights outputs and gradients differed by less than 1e-13, too.
"""

import pytest
from reference import assert_equals_reference

CASES = {
    "fuxictr": {
        "name": "autoint",
        "options": {"num_layers": 2, "attention_width": 6, "num_heads": 2, "wide": True},
        "num_dense": 1,
        "num_fields": 3,
        "logits": [-0.5541676967597614, -0.6577228930211075, 0.15834344135503092, -0.3341718884661695],
        "gradients": {
            "fields.numeric_DE": -0.003373035919034212,
            "attention.0.projections.weight": 0.04399705206644845,
            "attention.1.projections.weight": 0.007600338917851656,
            "out.weight": -0.03504458818363508,
            "out.bias": -0.012453274201679227,
            "dense_weight.weight": -0.013436497183852687,
            "fields_BC": 0.03782357198946282,
            "first_order_BF": 0.005626884557133602,
        },
    },
    "fuxictr_plus": {
        "name": "autoint",
        "options": {
            "num_layers": 2,
            "attention_width": 6,
            "num_heads": 2,
            "scale": True,
            "layer_norm": "pre_relu",
            "hidden_units": (5,),
            "batch_norm": True,
        },
        "num_dense": 1,
        "num_fields": 3,
        "logits": [-0.6252180174577411, -0.5782019424955618, -0.420171667348774, -0.423714699696397],
        "gradients": {
            "fields.numeric_DE": -0.009438201098861752,
            "attention.0.projections.weight": 0.001816498771229122,
            "attention.0.norm_before.weight": -0.014548015551171321,
            "attention.0.norm_before.bias": 0.02336452021408244,
            "attention.1.projections.weight": 0.18939130153198047,
            "attention.1.norm_before.weight": 0.05572674064731385,
            "attention.1.norm_before.bias": -0.07188135324029174,
            "out.weight": -0.001755328673529566,
            "out.bias": -0.018468316311471163,
            "mlp.linears.0.weight": 0.04954766218708061,
            "mlp.linears.0.bias": 0.0,
            "mlp.norms.0.weight": 0.031117199372364603,
            "mlp.norms.0.bias": -0.04633937778393599,
            "mlp.out.weight": 0.0062663075837876,
            "mlp.out.bias": -0.018468316311471163,
            "fields_BC": -0.0001273496954618319,
        },
    },
    "authors": {
        "name": "autoint",
        "options": {
            "num_layers": 2,
            "attention_width": 6,
            "num_heads": 2,
            "qkv_relu": True,
            "qkv_bias": True,
            "scale": True,
            "layer_norm": "post_relu",
            "residual": "project",
            "hidden_units": (5,),
        },
        "num_dense": 1,
        "num_fields": 3,
        "logits": [-0.6490298195373198, -1.8715090989623433, -2.0704833925792885, -0.41991895533129814],
        "gradients": {
            "fields.numeric_DE": -0.005894627537228617,
            "attention.0.projections.weight": -0.007011757575088808,
            "attention.0.projections.bias": 0.015692686546135873,
            "attention.0.norm_after.weight": -0.005722600545657431,
            "attention.0.norm_after.bias": -0.010544222537311139,
            "attention.1.projections.weight": -0.02150542689671152,
            "attention.1.projections.bias": 0.01809263075158324,
            "attention.1.norm_after.weight": -0.06581934474540137,
            "attention.1.norm_after.bias": -0.13146837325324767,
            "out.weight": 0.1362886419532005,
            "out.bias": -0.03749004436431757,
            "mlp.linears.0.weight": 0.18981360141445616,
            "mlp.linears.0.bias": -0.015476933079441455,
            "mlp.out.weight": -0.13237212068594748,
            "mlp.out.bias": -0.03749004436431757,
            "fields_BC": -0.0866739350661456,
        },
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_of_the_reference(case):
    assert_equals_reference(case)
