"""Numbers of salmon1802/FCN of 2025-06-19, `src/DCNv3.py` and `src/ECN.py`, run in float64 with the weights copied.

With random weights, one and two heads, with and without each norm, training and evaluation, outputs and gradients differed by
less than 1e-13 of the largest, too.
"""

import pytest
import torch
from reference import LABELS_B1, assert_equals_reference, wavy
from waves import wave

from torchrec_models.losses import RankingLoss
from torchrec_models.net import FieldSpec, Inputs, InputSpec, TrainingOutput
from torchrec_models.ranking.dcnv3 import DCNv3
from torchrec_models.schema import Task

CASES = {
    "ecn": {
        "name": "dcnv3",
        "options": {"structure": "ecn", "num_deep_layers": 2, "deep_dropout": 0.0},
        "num_dense": 0,
        "num_fields": 3,
        "logits": [0.39611273073844966, 1.2215855673025082, 0.5423467693863592, 0.4477688045402337],
        "gradients": {
            "deep.layers.0.bias_D": -0.02927424956902117,
            "deep.layers.0.linear.weight": 0.05098564333233898,
            "deep.layers.0.layer_norm.weight": 0.010783077660025536,
            "deep.layers.0.layer_norm.bias": -0.003525644119115436,
            "deep.layers.1.bias_D": 0.00312868868476173,
            "deep.layers.1.linear.weight": 0.011200293667705398,
            "deep.layers.1.layer_norm.weight": 0.018048925107430475,
            "deep.layers.1.layer_norm.bias": 0.0034940529044972654,
            "deep.out.weight": -0.14160743593674352,
            "deep.out.bias": 0.02262807781025111,
            "fields_BC": 0.14221762856094677,
        },
    },
    "ecn_heads_batch_norm": {
        "name": "dcnv3",
        "options": {"structure": "ecn", "num_deep_layers": 2, "num_heads": 2, "batch_norm": True, "deep_dropout": 0.0},
        "num_dense": 0,
        "num_fields": 3,
        "logits": [-0.46258022691956246, -0.32911884305239986, -0.1849388760211598, -0.21379683571224956],
        "gradients": {
            "deep.layers.0.bias_D": 0.01479580085396186,
            "deep.layers.0.linear.weight": 0.003643192877772067,
            "deep.layers.0.batch_norm.weight": 0.0060300390137530985,
            "deep.layers.0.batch_norm.bias": 0.011274631314596916,
            "deep.layers.0.layer_norm.weight": 0.00254468436003992,
            "deep.layers.0.layer_norm.bias": -0.0015041659774332212,
            "deep.layers.1.bias_D": 0.008290178692700404,
            "deep.layers.1.linear.weight": 0.0013047476161695696,
            "deep.layers.1.batch_norm.weight": -0.0037123033724648343,
            "deep.layers.1.batch_norm.bias": 0.011861690203561936,
            "deep.layers.1.layer_norm.weight": -0.0010417655919338618,
            "deep.layers.1.layer_norm.bias": -0.0024654280036846663,
            "deep.out.weight": 0.021650427981106665,
            "deep.out.bias": -0.010879613113352402,
            "fields_BC": -0.012803588889235457,
        },
    },
}

# with the loss of `DCNv3.add_loss`, whose weights are not detached
TRI_BCE = {
    "name": "dcnv3",
    "options": {"num_deep_layers": 2, "num_shallow_layers": 1, "deep_dropout": 0.0, "shallow_dropout": 0.0},
    "num_dense": 0,
    "num_fields": 3,
    "logits": [0.4990638158650403, 1.1465086854072575, 0.6383020561463641, 0.43306641456740025],
    "loss": 0.8713516910548771,
    "gradients": {
        "deep.layers.0.bias_D": -0.027634819720444584,
        "deep.layers.0.linear.weight": 0.04809877463561645,
        "deep.layers.0.layer_norm.weight": 0.010185941266291106,
        "deep.layers.0.layer_norm.bias": -0.0033189809825223526,
        "deep.layers.1.bias_D": 0.0029355689080202184,
        "deep.layers.1.linear.weight": 0.0105716350243238,
        "deep.layers.1.layer_norm.weight": 0.017024195550470474,
        "deep.layers.1.layer_norm.bias": 0.003301031245047958,
        "deep.out.weight": -0.13346247769839928,
        "deep.out.bias": 0.02142351701991976,
        "shallow.layers.0.bias_D": -0.0009728230458735511,
        "shallow.layers.0.linear.weight": 0.0018664539597956307,
        "shallow.layers.0.layer_norm.weight": 0.0009692236119571189,
        "shallow.layers.0.layer_norm.bias": 0.0003071140277512988,
        "shallow.out.weight": -0.011637370166342023,
        "shallow.out.bias": 0.0015142791492175356,
        "fields_BC": 0.14690231248350655,
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_of_the_reference(case):
    assert_equals_reference(case)


def test_tri_bce_of_the_reference():
    net, inputs = wavy(TRI_BCE)
    output = net(inputs)
    assert isinstance(output, TrainingOutput)
    assert output.logits_BT[:, 0].tolist() == pytest.approx(TRI_BCE["logits"], abs=1e-10)
    criterion = RankingLoss([Task(name="click")], net.auxiliary_losses()).double()
    loss, _ = criterion(output, LABELS_B1, torch.ones_like(LABELS_B1))
    assert float(loss) == pytest.approx(TRI_BCE["loss"], abs=1e-10)
    loss.backward()
    found = {name: p.grad for name, p in net.named_parameters()} | {"fields_BC": inputs.fields_BC.grad}
    sums = {name: float((gradient * wave(*gradient.shape, phase=0.3)).sum()) for name, gradient in found.items()}
    assert sums == pytest.approx(TRI_BCE["gradients"], abs=1e-10)


def test_evaluation_returns_the_logits_of_training():
    net, inputs = wavy(TRI_BCE)
    trained = net(inputs).logits_BT
    assert torch.equal(net.eval()(inputs), trained)


def test_detached_weights_change_the_gradient_only():
    losses, gradients = [], []
    for detach in (False, True):
        case = {**TRI_BCE, "options": {**TRI_BCE["options"], "detach_weights": detach}}
        net, inputs = wavy(case)
        loss, _ = RankingLoss([Task(name="click")], net.auxiliary_losses()).double()(
            net(inputs), LABELS_B1, torch.ones_like(LABELS_B1)
        )
        loss.backward()
        losses.append(float(loss))
        gradients.append(inputs.fields_BC.grad)
    assert losses[0] == losses[1]
    assert (gradients[0] - gradients[1]).abs().max() > 1e-4


def test_views_and_heads_need_an_even_share_of_the_width():
    with pytest.raises(ValueError, match=r"2 \* num_heads = 4 divides: two views per head; got 6"):
        DCNv3(InputSpec((), (FieldSpec("a", 6),), ()), DCNv3.Config(num_heads=2))


def test_b_starts_uniform_and_a_layer_multiplies_by_one_to_two():
    torch.manual_seed(0)
    net = DCNv3(InputSpec((), tuple(FieldSpec(str(i), 16) for i in range(39)), ()), DCNv3.Config())
    for layer in (*net.deep.layers, *net.shallow.layers):
        assert 0 <= float(layer.bias_D.min()) < 0.05 and 0.95 < float(layer.bias_D.max()) < 1


def test_number_of_parameters_on_criteo():
    """39 columns of width 16; the authors' logs of Criteo_x4: ECN with 4 layers, FCN with 3 + 4, tables left out."""
    spec = InputSpec((), tuple(FieldSpec(str(i), 16) for i in range(39)), ())
    counts = {
        name: sum(p.numel() for p in DCNv3(spec, DCNv3.Config(**options)).parameters())
        for name, options in {"ecn": {"structure": "ecn"}, "fcn": {"num_deep_layers": 3}}.items()
    }
    assert counts == {"ecn": 784_369, "fcn": 1_372_802}


def test_heads_share_weights_and_are_averaged():
    """Two equal heads answer as one of them alone does."""
    one = DCNv3(InputSpec((), (FieldSpec("a", 4), FieldSpec("b", 4)), ()), DCNv3.Config()).eval()
    two = DCNv3(InputSpec((), (FieldSpec("a", 8), FieldSpec("b", 8)), ()), DCNv3.Config(num_heads=2)).eval()
    two.load_state_dict(one.state_dict())
    fields_BNE = torch.randn(5, 2, 4)

    def inputs(fields_BNE: torch.Tensor) -> Inputs:
        return Inputs(torch.empty(5, 0), fields_BNE.flatten(1), torch.empty(5, 0), {})

    torch.testing.assert_close(two(inputs(torch.cat([fields_BNE, fields_BNE], dim=2))), one(inputs(fields_BNE)))
