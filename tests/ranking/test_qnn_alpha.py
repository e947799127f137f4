"""Numbers of salmon1802/QNN of 2025-05-29, `src/QNN_T26.py` (`QuadraticNeuralNetworks`), run in float64 with the weights copied.

With random weights, one, two and four heads, training and evaluation, outputs and gradients differed by less than 1e-13, too.
"""

import pytest
import torch
from fixtures import categorical, make_schema
from reference import assert_equals_reference
from torch import Tensor
from torch.nn import functional

from torchrec_models.losses import RankingLoss
from torchrec_models.model import build
from torchrec_models.net import FieldSpec, Inputs, InputSpec, TrainingOutput
from torchrec_models.ranking.qnn_alpha import QNNAlpha
from torchrec_models.schema import Schema, Table, Task

CASES = {
    "one_head": {
        "name": "qnn_alpha",
        "options": {"num_layers": 2, "num_rows": 3, "batch_norm": True, "self_ensemble": False, "dropout": 0.0},
        "num_dense": 0,
        "num_fields": 3,
        "logits": [0.680343704703307, 5.245470892925554, 0.3891498137971207, -2.895428437950839],
        "gradients": {
            "layers.0.linear.weight": -0.1369916649432716,
            "layers.0.linear.bias": -1.3476568277168746e-17,
            "layers.0.norm.weight": -0.5732687824165399,
            "layers.0.norm.bias": 0.036329772619994,
            "layers.1.linear.weight": -0.15083623241973115,
            "layers.1.linear.bias": -4.1787203273254144e-18,
            "layers.1.norm.weight": 0.28399050755356625,
            "layers.1.norm.bias": 0.2837546355151058,
            "out.weight": -2.0026109023616367,
            "out.bias": 0.011341686501955987,
            "fields_BC": 2.1850821968504945,
        },
    },
    "two_heads": {
        "name": "qnn_alpha",
        "options": {"num_layers": 2, "num_heads": 2, "head_shuffle": True, "self_ensemble": False, "dropout": 0.0},
        "num_dense": 0,
        "num_fields": 3,
        "logits": [-2.030911035558433, -1.6082332345023933, 2.031246391006084, 1.4729065676961133],
        "gradients": {
            "layers.0.linear.weight": 0.13564993005903844,
            "layers.0.linear.bias": -0.04845687205067644,
            "layers.1.linear.weight": -0.16780356957928313,
            "layers.1.linear.bias": -0.010722555514790191,
            "out.weight": -1.0284343370074613,
            "out.bias": -0.0007252360873825346,
            "fields_BC": 0.23632474698104536,
        },
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_of_the_reference(case):
    assert_equals_reference(case)


def small(**options) -> tuple[QNNAlpha, Inputs]:
    torch.manual_seed(0)
    net = QNNAlpha(InputSpec((), (FieldSpec("a", 4), FieldSpec("b", 4)), ()), QNNAlpha.Config(**options)).double()
    fields_BC = 0.3 * torch.randn(64, 8, dtype=torch.float64)
    return net, Inputs(fields_BC.new_empty(64, 0), fields_BC, fields_BC.new_empty(64, 0), {})


def test_training_is_two_passes_and_the_logit_of_their_mean():
    net, inputs = small(dropout=0.3)
    output = net(inputs)
    assert isinstance(output, TrainingOutput)
    first_B1, second_B1 = output.branches["first"], output.branches["second"]
    assert (first_B1 != second_B1).any()
    torch.testing.assert_close(output.logits_BT.sigmoid(), (first_B1.sigmoid() + second_B1.sigmoid()) / 2)
    assert isinstance(net.eval()(inputs), Tensor)


def test_the_loss_is_that_of_the_authors():
    """`add_loss` of QNN_T26.py: BCE(mean, y) + BCE(p1, mean) + BCE(p2, mean), the mean without gradient in the last two."""
    net, inputs = small(dropout=0.3)
    labels_B1 = torch.randint(2, (64, 1)).double()
    torch.manual_seed(1)
    loss, _ = RankingLoss([Task(name="click")], net.auxiliary_losses())(net(inputs), labels_B1, torch.ones_like(labels_B1))
    torch.manual_seed(1)
    branches = net(inputs).branches
    p1, p2 = branches["first"].sigmoid(), branches["second"].sigmoid()
    mean = (p1 + p2) * 0.5
    bce = functional.binary_cross_entropy
    expected = bce(mean, labels_B1) + bce(p1, mean.detach()) + bce(p2, mean.detach())
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=0)
    parameters = list(net.parameters())
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.0}, "self_ensemble needs dropout > 0"),
        ({"num_heads": 2}, "several heads differ from one only in the shuffle"),
        ({"head_shuffle": True}, "several heads differ from one only in the shuffle"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QNNAlpha.Config(**options)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads=3 divides, got 4"):
        small(num_heads=3, head_shuffle=True)


# different values per column of the training split of Frappe seen at least twice: the log's vocabulary sizes less 2
FRAPPE_TWICE = {
    "user": 940,
    "item": 4082,
    "daytime": 7,
    "weekday": 7,
    "isweekend": 2,
    "homework": 3,
    "cost": 2,
    "weather": 9,
    "country": 80,
    "city": 231,
}


def test_number_of_parameters_in_the_authors_log():
    """checkpoints/Frappe_x1_h5/QNN_T26_Frappe_045_ac72f9e9.log counts 764,369, a padding row of 16 per column included."""
    base = make_schema([categorical(name) for name in FRAPPE_TWICE])
    tables = tuple(Table(name=name, num_rows=1 + count, dim=16) for name, count in FRAPPE_TWICE.items())
    schema = Schema(features=base.features, tables=tables, tasks=base.tasks)
    model = build(schema, "qnn_alpha", {"num_layers": 2, "num_rows": 13, "batch_norm": True}).model
    assert sum(p.numel() for p in model.parameters()) == 764_369 - 16 * len(FRAPPE_TWICE)
