"""LR and FM against their formulas, written index by index in float64."""

import pytest
import torch
from fixtures import categorical, make_inputs, make_schema, numeric, sequence
from torch import nn

from torchrec_models.net import Inputs, InputSpec
from torchrec_models.ranking.fm import FM
from torchrec_models.ranking.lr import LR
from torchrec_models.schema import Task


def randomised(net: nn.Module) -> nn.Module:
    net.double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net


def spec_and_inputs(*, dim: int, num_tasks: int) -> tuple[InputSpec, Inputs]:
    features = [categorical("a"), numeric("x"), sequence("h", max_len=3), categorical("b"), numeric("y")]
    schema = make_schema(features, dim=dim, tasks=[Task(name=str(i)) for i in range(num_tasks)])
    spec = InputSpec.from_schema(schema)
    return spec, make_inputs(spec, 6, first_order=True, dtype=torch.float64)


def test_lr_adds_up_weights():
    num_tasks = 2
    spec, inputs = spec_and_inputs(dim=num_tasks, num_tasks=num_tasks)
    net = randomised(LR(spec, LR.Config()))
    expected = torch.empty(6, num_tasks, dtype=torch.float64)
    history_BLT, mask_BL = inputs.sequences["h"]
    for row in range(6):
        for t in range(num_tasks):
            y = float(net.bias_T[t])
            y += sum(float(inputs.fields_BC[row, f * num_tasks + t]) for f in range(2))
            y += sum(float(history_BLT[row, i, t]) for i in range(3) if mask_BL[row, i])
            y += sum(float(net.dense_weight.weight[t, j] * inputs.dense_BD[row, j]) for j in range(2))
            expected[row, t] = y
    torch.testing.assert_close(net(inputs), expected, atol=1e-12, rtol=0)


def test_lr_needs_one_weight_per_id_and_label():
    spec, _ = spec_and_inputs(dim=4, num_tasks=1)
    with pytest.raises(ValueError, match=r"LR needs dim: 1 for every feature.*a has 4, b has 4, h has 4"):
        LR(spec, LR.Config())


def test_fm_adds_up_weights_and_dot_products_of_pairs():
    spec, inputs = spec_and_inputs(dim=4, num_tasks=2)
    net = randomised(FM(spec, FM.Config()))
    expected = torch.empty(6, 2, dtype=torch.float64)
    for row in range(6):
        vectors = [inputs.fields_BC[row, :4].tolist(), inputs.fields_BC[row, 4:].tolist()]
        vectors += [(inputs.dense_BD[row, j] * net.fields.numeric_DE[j]).tolist() for j in range(2)]
        values_LE, mask_L = (x[row] for x in inputs.sequences["h"])
        vectors.append([sum(float(v) for v in values_LE[mask_L, e]) / max(1, int(mask_L.sum())) for e in range(4)])
        y = sum(inputs.first_order_BF[row].tolist())
        y += sum(float(net.dense_weight.weight[0, j] * inputs.dense_BD[row, j]) for j in range(2))
        for i in range(5):
            for j in range(i):
                y += sum(p * q for p, q in zip(vectors[i], vectors[j], strict=True))
        expected[row] = y + net.bias_T.detach()
    torch.testing.assert_close(net(inputs), expected, atol=1e-12, rtol=0)
