"""Numbers of the authors' code: anonctr/GDCN of 2023-05-28, `models/GDCN.py`, run in float64 with the weights copied.

With random weights outputs and gradients differed by less than 1e-14, too.
"""

import pytest
from reference import assert_equals_reference

CASES = {
    "parallel": {
        "name": "gdcn",
        "options": {"num_layers": 2, "hidden_units": (6, 5), "batch_norm": True},
        "num_dense": 1,
        "num_fields": 3,
        "logits": [0.5275672901019928, -1.0084998377328644, -0.8316917124491918, 0.5698514488033857],
        "gradients": {
            "cross.0.bias_X": -0.008616156988718671,
            "cross.0.cross_and_gate.weight": 0.1123088900687052,
            "cross.1.bias_X": -0.007094157169479523,
            "cross.1.cross_and_gate.weight": -0.1368971970993048,
            "mlp.linears.0.weight": 0.04120443420340599,
            "mlp.linears.0.bias": 0.0,
            "mlp.linears.1.weight": 0.005913847760758837,
            "mlp.linears.1.bias": 0.0,
            "mlp.norms.0.weight": 0.006239273533653979,
            "mlp.norms.0.bias": 0.0050401035992544115,
            "mlp.norms.1.weight": -0.007369521048003019,
            "mlp.norms.1.bias": 0.015271349089698495,
            "out.weight": -0.24208967619898766,
            "out.bias": -0.005976694397971476,
            "fields_BC": 0.08034230862633394,
        },
    },
    "stacked": {
        "name": "gdcn",
        "options": {"structure": "stacked", "num_layers": 2, "hidden_units": (6, 5), "batch_norm": True},
        "num_dense": 1,
        "num_fields": 3,
        "logits": [-0.621745352594671, -0.6450702734538225, -0.4577471271129909, -0.19086096307285827],
        "gradients": {
            "cross.0.bias_X": -0.0009737157176135938,
            "cross.0.cross_and_gate.weight": 0.010080574262262259,
            "cross.1.bias_X": -0.0002728713115954383,
            "cross.1.cross_and_gate.weight": 0.011975560179748901,
            "mlp.linears.0.weight": -0.05045594085769022,
            "mlp.linears.0.bias": 0.0,
            "mlp.linears.1.weight": -0.005091780114366645,
            "mlp.linears.1.bias": 0.0,
            "mlp.norms.0.weight": -0.0187701619982239,
            "mlp.norms.0.bias": 0.014272984785650672,
            "mlp.norms.1.weight": 0.04350965133130112,
            "mlp.norms.1.bias": -0.018300626959858478,
            "mlp.out.weight": -0.0006775075780189876,
            "mlp.out.bias": -0.017234908926433565,
            "fields_BC": -0.0460780230730075,
        },
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_of_the_reference(case):
    assert_equals_reference(case)
