"""Memory of sequence nets: what a training step keeps for backward, and that keeping less changes no number."""

import pytest
import torch
from fixtures import SCHEMAS, make_inputs
from torch import Tensor

from torchrec_models.net import InputSpec, Net
from torchrec_models.ranking import NETS

UNDROPPED = {"interaction_dropout": 0.0, "attention_dropout": 0.0, "num_heads": 2}
CASES = [("feseq", UNDROPPED), ("bst", {}), ("hstu", {}), ("dare", {"shared_tables": True}), ("recurrent", {})]


def make_net(name: str, encoder: dict, **options: int) -> Net:
    spec = InputSpec.from_schema(SCHEMAS["target_and_history"])
    torch.manual_seed(0)
    cls = NETS[name]
    return cls(spec, cls.Config(encoder=encoder, head={"name": "dnn", "hidden_units": (8,)}, **options)).double()


def outcome(net: Net, seed: int) -> list[Tensor]:
    """Logits, then the gradients of the inputs and of all parameters."""
    inputs = make_inputs(net.spec, 11, first_order=False, dtype=torch.float64)
    values_BLE = inputs.sequences["history"][0].requires_grad_()
    inputs.fields_BC.requires_grad_()
    torch.manual_seed(seed)
    output = net.train()(inputs)
    logits_BT = output if isinstance(output, Tensor) else output.logits_BT
    extra = [] if isinstance(output, Tensor) else list(output.branches.values())
    (sum(x.square().sum() for x in (logits_BT, *extra))).backward()
    return [logits_BT, values_BLE.grad, inputs.fields_BC.grad, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize(("name", "encoder"), CASES)
@pytest.mark.parametrize("rows_per_pass", [1, 4, 50])
def test_rows_per_pass_changes_no_number(name, encoder, rows_per_pass):
    together, apart = make_net(name, encoder), make_net(name, encoder, rows_per_pass=rows_per_pass)
    for expected, found in zip(outcome(together, 1), outcome(apart, 1), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


def test_recomputed_dropout_is_the_same_dropout():
    """With other masks in backward than in forward the gradient would be another one."""
    dropped = {**UNDROPPED, "interaction_dropout": 0.3}
    kept, recomputed = make_net("feseq", {**dropped, "recompute": False}), make_net("feseq", {**dropped, "recompute": True})
    for expected, found in zip(outcome(kept, 1), outcome(recomputed, 1), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    assert not torch.equal(outcome(kept, 2)[0], outcome(kept, 1)[0])


def test_rows_per_pass_refuses_statistics_of_the_batch():
    with pytest.raises(ValueError, match="rows_per_pass: 4 would take apart"):
        make_net("din", {"activation": "dice"}, rows_per_pass=4)
