"""Numbers of reczoo/FuxiCTR of 2026-06-05, `model_zoo/MaskNet/src/MaskNet.py`, run in float64 with the weights copied.

With random weights outputs and gradients differed by less than 1e-14, too.
"""

import pytest
from reference import assert_equals_reference

CASES = {
    "serial": {
        "name": "masknet",
        "options": {"structure": "serial", "block_units": (6, 5), "reduction_ratio": 1.5},
        "num_dense": 1,
        "num_fields": 3,
        "logits": [-0.18868952550416823, -0.422545400700028, -0.4806987459397784, -0.4806987459397784],
        "gradients": {
            "fields.numeric_DE": 0.0009372274295498128,
            "embedding_norm.weight_NE": -0.010465052528815562,
            "embedding_norm.bias_NE": -0.24904859641525823,
            "mlp.out.weight": -0.04732733950416146,
            "mlp.out.bias": -0.014293973263781729,
            "blocks.0.mask.linears.0.weight": -0.34352448939231583,
            "blocks.0.mask.linears.0.bias": 0.2849538869865103,
            "blocks.0.mask.out.weight": 0.2406833812117647,
            "blocks.0.mask.out.bias": 0.028693852025138807,
            "blocks.0.linear.weight": 0.0788892199477258,
            "blocks.0.norm.weight": 0.16467036814251124,
            "blocks.0.norm.bias": -0.2247737911121279,
            "blocks.1.mask.linears.0.weight": 1.0110344881123319,
            "blocks.1.mask.linears.0.bias": -0.13467062296372667,
            "blocks.1.mask.out.weight": -0.15869213719972008,
            "blocks.1.mask.out.bias": -0.28334138703314166,
            "blocks.1.linear.weight": -0.008339165254110478,
            "blocks.1.norm.weight": -0.02429136703382512,
            "blocks.1.norm.bias": 0.005889714984436993,
            "fields_BC": -0.9115082093981688,
        },
    },
    "parallel": {
        "name": "masknet",
        "options": {"structure": "parallel", "block_units": (3, 3), "hidden_units": (6,), "reduction_ratio": 0.3},
        "num_dense": 1,
        "num_fields": 3,
        "logits": [-0.11673249715399019, -0.3266150723671831, -0.5816531035007129, -0.10489878510077937],
        "gradients": {
            "fields.numeric_DE": 0.0036412996027716847,
            "embedding_norm.weight_NE": 0.05517512950195883,
            "embedding_norm.bias_NE": 0.006627557757031354,
            "mlp.linears.0.weight": 0.009755291782002256,
            "mlp.linears.0.bias": -0.002427525437088295,
            "mlp.out.weight": 0.019570971923807086,
            "mlp.out.bias": -0.010259499185644326,
            "blocks.0.mask.linears.0.weight": -0.0028038575497739996,
            "blocks.0.mask.linears.0.bias": 0.0012844373345069573,
            "blocks.0.mask.out.weight": -0.0037743618387783744,
            "blocks.0.mask.out.bias": 0.0027558484868506913,
            "blocks.0.linear.weight": -0.005376247940263681,
            "blocks.0.norm.weight": -0.0032683875322360723,
            "blocks.0.norm.bias": -0.012390623234577259,
            "blocks.1.mask.linears.0.weight": 0.01810349697854819,
            "blocks.1.mask.linears.0.bias": 0.004296503722513761,
            "blocks.1.mask.out.weight": 0.006431398461598766,
            "blocks.1.mask.out.bias": 0.016133786758618675,
            "blocks.1.linear.weight": -0.003690493632962401,
            "blocks.1.norm.weight": -0.031463330073044915,
            "blocks.1.norm.bias": -0.013504736617271359,
            "fields_BC": -0.02594018700235977,
        },
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_of_the_reference(case):
    assert_equals_reference(case)
