"""Numbers of other people's code and tables, by `reference.py`.

DeepFM: reczoo/FuxiCTR of 2026-06-05, `FactorizationMachine`, `FeatureEmbedding` and `MLP_Block` put together as in
`model_zoo/DeepFM/DeepFM_torch/src/DeepFM.py`, the bias of its first-order part at 0 (ours is the MLP's output bias).
DLRM: facebookresearch/dlrm of 2025-10-02, `DLRM_Net` of `dlrm_s_pytorch.py`, arch_interaction_op dot and cat.
Both were run in float64 with the weights copied; with random weights outputs and gradients differed by less than 1e-9 too.
"""

import pytest
from reference import assert_equals_reference, frappe_schema

from torchrec_models.model import build

CASES = {
    "deepfm": {
        "name": "deepfm",
        "options": {"hidden_units": (6, 5), "batch_norm": True},
        "num_dense": 1,
        "num_fields": 3,
        "logits": [0.05771355217403562, 0.8983812822648383, 0.5561292118144624, 0.8479043137419728],
        "gradients": {
            "mlp.linears.0.weight": 0.007677830929046015,
            "mlp.linears.0.bias": 0.0,
            "mlp.linears.1.weight": 0.037518610218477015,
            "mlp.linears.1.bias": 0.0,
            "mlp.norms.0.weight": 0.06384374817685969,
            "mlp.norms.0.bias": 0.0851486352943987,
            "mlp.norms.1.weight": -0.006948994262333032,
            "mlp.norms.1.bias": -0.014088375517030727,
            "mlp.out.weight": 0.018122537177900598,
            "mlp.out.bias": 0.020713192612788162,
            "fields.numeric_DE": 0.061149043833835015,
            "dense_weight.weight": -0.014929807093334253,
            "fields_BC": 0.14835556031501773,
            "first_order_BF": 0.013789822279947711,
        },
    },
    "dlrm_dot": {
        "name": "dlrm",
        "options": {"bottom_units": (5,), "top_units": (6,)},
        "num_dense": 3,
        "num_fields": 4,
        "probabilities": [0.4600861344518717, 0.4780616128809935, 0.4775053103747312, 0.48411350763085104],
        "gradients": {
            "bottom.linears.0.weight": -0.0005664994271243045,
            "bottom.linears.0.bias": -0.012249869496027115,
            "bottom.linears.1.weight": 0.001265409913996587,
            "bottom.linears.1.bias": -0.04943079700063339,
            "top.linears.0.weight": -0.009063600832232503,
            "top.linears.0.bias": 0.0018310461865528919,
            "top.out.weight": 0.004311164136665892,
            "top.out.bias": -0.0037026256656947374,
            "fields_BC": 0.009244676768150401,
        },
    },
    "dlrm_cat": {
        "name": "dlrm",
        "options": {"bottom_units": (5,), "top_units": (6,), "interaction": "cat"},
        "num_dense": 3,
        "num_fields": 4,
        "probabilities": [0.47895629347073754, 0.5167906229394691, 0.44436465624500204, 0.4604432701494825],
        "gradients": {
            "bottom.linears.0.weight": -0.0026656917049344272,
            "bottom.linears.0.bias": -0.011131084427836063,
            "bottom.linears.1.weight": 0.019476708930716635,
            "bottom.linears.1.bias": 0.02374471085418469,
            "top.linears.0.weight": 0.20864804516423968,
            "top.linears.0.bias": 0.009719352007839986,
            "top.out.weight": 0.08772106659097083,
            "top.out.bias": -0.003673506675728385,
            "fields_BC": 0.211812402779991,
        },
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_of_the_reference(case):
    assert_equals_reference(case)


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [
        ("deepfm", {"hidden_units": (400, 400, 400), "batch_norm": True}, 423_280),
        ("dlrm", {"interaction": "cat", "top_units": (400, 400, 400), "batch_norm": True}, 417_891),
        ("masknet", {"block_units": (50, 50, 50), "embedding_layer_norm": False}, 571_691),
        ("autoint", {"num_layers": 6, "num_heads": 4, "attention_width": 128}, 306_051),
        (
            "autoint",
            {
                "num_layers": 5,
                "num_heads": 4,
                "attention_width": 128,
                "layer_norm": "pre_relu",
                "hidden_units": (400, 400, 400),
                "batch_norm": True,
            },
            622_180,
        ),
        ("lr", {}, 5_390),
        ("fm", {}, 59_280),
        ("dcnv2", {"structure": "cross_only", "num_layers": 4}, 94_391),
        ("dcnv2", {"num_layers": 4, "hidden_units": (400, 400, 400), "batch_norm": True}, 458_391),
    ],
)
def test_number_of_parameters_published_for_frappe(name, options, published):
    """The logs behind the BARS leaderboard of frappe_x1 (openbenchmark, ranking/ctr) count these."""
    model = build(frappe_schema(dim=1 if name == "lr" else 10), name, options).model
    assert sum(p.numel() for p in model.parameters()) == published
