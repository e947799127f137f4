"""Numbers of other people's code and tables. Weights and inputs are fixed waves, so that anyone can make the numbers again.

DeepFM: reczoo/FuxiCTR of 2026-06-05, `FactorizationMachine`, `FeatureEmbedding` and `MLP_Block` put together as in
`model_zoo/DeepFM/DeepFM_torch/src/DeepFM.py`, the bias of its first-order part at 0 (ours is the MLP's output bias).
DLRM: facebookresearch/dlrm of 2025-10-02, `DLRM_Net` of `dlrm_s_pytorch.py`, arch_interaction_op dot and cat.
Both were run in float64 with the weights copied; with random weights outputs and gradients differed by less than 1e-9 too.
"""

import pytest
import torch
from fixtures import categorical, make_schema
from torch import Tensor
from torch.nn import functional as F

from torchrec_models.model import build
from torchrec_models.net import FieldSpec, Inputs, InputSpec, Net
from torchrec_models.ranking import NETS
from torchrec_models.schema import Schema, Table

LABELS_B1 = torch.tensor([[1.0], [0.0], [0.0], [1.0]], dtype=torch.float64)

# per parameter or input: sum(gradient * wave(0.3))
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


def wave(*shape: int, phase: float) -> Tensor:
    """0.5 sin(phase + 1.7 n), n = 0, 1, ... in row-major order."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return 0.5 * torch.sin(phase + 1.7 * n).reshape(shape)


def wavy(case: dict) -> tuple[Net, Inputs]:
    """Parameter i in alphabetic order is wave(i); the inputs are waves 20, 21, 22. Embedding width 4, 4 rows."""
    cls, num_fields = NETS[case["name"]], case["num_fields"]
    spec = InputSpec(tuple("xyz"[: case["num_dense"]]), tuple(FieldSpec(n, 4) for n in "abcd"[:num_fields]), ())
    net = cls(spec, cls.Config(**case["options"])).double()
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(net.named_parameters())):
            parameter.copy_(wave(*parameter.shape, phase=i))
    first_BF = wave(4, num_fields if net.first_order else 0, phase=21).requires_grad_()
    return net, Inputs(wave(4, spec.num_dense, phase=22), wave(4, 4 * num_fields, phase=20).requires_grad_(), first_BF, {})


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_of_the_reference(case):
    net, inputs = wavy(case)
    logits_B1 = net(inputs)
    F.binary_cross_entropy_with_logits(logits_B1, LABELS_B1).backward()
    if "logits" in case:
        assert logits_B1[:, 0].tolist() == pytest.approx(case["logits"], abs=1e-10)
    else:
        assert logits_B1.sigmoid()[:, 0].tolist() == pytest.approx(case["probabilities"], abs=1e-10)
    found = {name: p.grad for name, p in net.named_parameters()} | {"fields_BC": inputs.fields_BC.grad}
    if net.first_order:
        found["first_order_BF"] = inputs.first_order_BF.grad
    sums = {name: float((gradient * wave(*gradient.shape, phase=0.3)).sum()) for name, gradient in found.items()}
    assert sums == pytest.approx(case["gradients"], abs=1e-10)


# different values per column of the training split of Frappe, BARS frappe_x1; 5,379 in all
FRAPPE = {
    "user": 954,
    "item": 4082,
    "daytime": 7,
    "weekday": 7,
    "isweekend": 2,
    "homework": 3,
    "cost": 2,
    "weather": 9,
    "country": 80,
    "city": 233,
}


def frappe_schema() -> Schema:
    """Ten tables of known ids and an out-of-vocabulary row each, width 10."""
    base = make_schema([categorical(name) for name in FRAPPE])
    tables = tuple(Table(name=name, num_rows=1 + count, dim=10) for name, count in FRAPPE.items())
    return Schema(features=base.features, tables=tables, tasks=base.tasks)


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [
        ("deepfm", {"hidden_units": (400, 400, 400), "batch_norm": True}, 423_280),
        ("dlrm", {"interaction": "cat", "top_units": (400, 400, 400), "batch_norm": True}, 417_891),
    ],
)
def test_number_of_parameters_published_for_frappe(name, options, published):
    """The logs behind the BARS leaderboard of frappe_x1 (openbenchmark, ranking/ctr) count these."""
    model = build(frappe_schema(), name, options).model
    assert sum(p.numel() for p in model.parameters()) == published
