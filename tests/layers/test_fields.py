import pytest
import torch
from fixtures import SCHEMAS, make_inputs

from torchrec_models.layers.fields import FieldStack, masked_mean
from torchrec_models.net import FieldSpec, InputSpec, SequenceSpec


@pytest.mark.parametrize("numeric", [True, False])
def test_order_is_categorical_numeric_sequence(numeric):
    spec = InputSpec.from_schema(SCHEMAS["everything"])
    stack = FieldStack(spec, who="test", numeric=numeric)
    inputs = make_inputs(spec, 3, first_order=False)
    out_BNE = stack(inputs)
    num_fields, num_dense = len(spec.fields), spec.num_dense if numeric else 0
    assert out_BNE.shape == (3, stack.num_fields, 8) and stack.num_fields == num_fields + num_dense + len(spec.sequences)
    assert torch.equal(out_BNE[:, :num_fields].flatten(1), inputs.fields_BC)
    for j in range(num_dense):
        assert torch.equal(out_BNE[:, num_fields + j], inputs.dense_BD[:, j : j + 1] * stack.numeric_DE[j])
    for j, s in enumerate(spec.sequences):
        values_BLE, mask_BL = inputs.sequences[s.name]
        for row in range(3):
            known = values_BLE[row][mask_BL[row]]
            expected = known.mean(dim=0) if len(known) else torch.zeros(8)
            torch.testing.assert_close(out_BNE[row, num_fields + num_dense + j], expected)


def test_masked_mean_of_nothing_is_zero():
    assert not masked_mean(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)).any()


def test_sequences_alone():
    spec = InputSpec((), (), (SequenceSpec("h", 4, 3, ()),))
    assert FieldStack(spec, who="test")(make_inputs(spec, 2, first_order=False)).shape == (2, 1, 4)


def test_differing_widths_are_refused_by_name():
    spec = InputSpec((), (FieldSpec("a", 4), FieldSpec("b", 8)), (SequenceSpec("h", 4, 3, ()),))
    with pytest.raises(ValueError, match="Wide needs the same dim for every feature, got a of width 4, b of width 8, h of width 4"):
        FieldStack(spec, who="Wide")
