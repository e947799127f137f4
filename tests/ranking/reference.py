"""Comparison with numbers of other people's code. Weights and inputs are fixed waves, so that anyone can make the numbers again.

A case is a dict: `name` in NETS, `options`, `num_dense`, `num_fields`, `logits` (or `probabilities`) of the reference, and
`gradients`: per parameter or input, sum(gradient * wave(0.3)).
"""

from typing import Any

import pytest
import torch
from fixtures import categorical, make_schema
from torch import Tensor
from torch.nn import functional as F
from waves import wave

from torchrec_models.net import FieldSpec, Inputs, InputSpec, Net
from torchrec_models.ranking import NETS
from torchrec_models.schema import Schema, Table

LABELS_B1 = torch.tensor([[1.0], [0.0], [0.0], [1.0]], dtype=torch.float64)


def wavy(case: dict[str, Any]) -> tuple[Net, Inputs]:
    """Parameter i in alphabetic order is wave(i); the inputs are waves 20, 21, 22. Embedding width 4, 4 rows."""
    cls, num_fields = NETS[case["name"]], case["num_fields"]
    spec = InputSpec(tuple("xyz"[: case["num_dense"]]), tuple(FieldSpec(n, 4) for n in "abcde"[:num_fields]), ())
    config = cls.Config(**case["options"])
    net = cls(spec, config).double()
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(net.named_parameters())):
            parameter.copy_(wave(*parameter.shape, phase=i))
    first_BF = wave(4, num_fields if cls.wants_first_order(config) else 0, phase=21).requires_grad_()
    return net, Inputs(wave(4, spec.num_dense, phase=22), wave(4, 4 * num_fields, phase=20).requires_grad_(), first_BF, {})


def assert_equals_reference(case: dict[str, Any]) -> None:
    """Outputs and the gradients of their mean cross-entropy, in float64 and training mode, to 1e-10."""
    net, inputs = wavy(case)
    logits_B1 = net(inputs)
    assert isinstance(logits_B1, Tensor)
    F.binary_cross_entropy_with_logits(logits_B1, LABELS_B1).backward()
    if "logits" in case:
        assert logits_B1[:, 0].tolist() == pytest.approx(case["logits"], abs=1e-10)
    else:
        assert logits_B1.sigmoid()[:, 0].tolist() == pytest.approx(case["probabilities"], abs=1e-10)
    found = {name: p.grad for name, p in net.named_parameters()} | {"fields_BC": inputs.fields_BC.grad}
    if inputs.first_order_BF.shape[1]:
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


def frappe_schema(*copies: tuple[str, str], dim: int = 10) -> Schema:
    """Ten tables of known ids and an out-of-vocabulary row each; `copies` are (name, column) of further tables."""
    counts = FRAPPE | {name: FRAPPE[column] for name, column in copies}
    base = make_schema([categorical(name) for name in counts])
    tables = tuple(Table(name=name, num_rows=1 + count, dim=dim) for name, count in counts.items())
    return Schema(features=base.features, tables=tables, tasks=base.tasks)
