"""Numbers of other people's code, run in float64 with the weights copied; with random weights outputs and gradients agreed, too.

DIN, Dice, SIM, SDIM: reczoo/FuxiCTR of 2026-06-05, `fuxictr/pytorch/layers/attentions/target_attention.py`,
`fuxictr/pytorch/layers/activations.py`, `model_zoo/LongCTR/SIM/SIM.py` and `model_zoo/LongCTR/SDIM/SDIM.py`. Histories of SIM are
full, as it finds padding, and so are those of DIN with Dice, which takes its statistics over padding, too.
DARE: thuml/DARE of 2025-03-05, `model/din_pytorch.py` (model_name DARE, soft_search) and `model/attention_pytorch.py`, full
histories, as it finds padding.
"""

import pytest
import torch
from torch.nn import functional as F
from waves import wave
from wavy_histories import SPEC, gradient_sums, make_wavy, wavy_history

from torchrec_models.layers.activations import Dice
from torchrec_models.sequence.dare import DAREEncoder
from torchrec_models.sequence.din import DINEncoder
from torchrec_models.sequence.encoder import History
from torchrec_models.sequence.sdim import SDIMEncoder
from torchrec_models.sequence.sim import SIMEncoder


def assert_all_close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("options", "lengths", "expected", "gradients"),
    [
        (
            {"activation": "sigmoid", "softmax": True},
            (4, 2, 3, 1),
            [0.0993537373637392, -0.08822259469346583, 0.006524074605613148, -0.22995174534479562],
            {
                "unit.first.weight": 0.0051465428553926955,
                "unit.first.bias": -0.00015483441074138108,
                "unit.others.0.weight": -0.004483793007336385,
                "unit.others.0.bias": -0.000249229820961368,
                "unit.out.weight": -0.004467986237116618,
                "unit.out.bias": 0.0,
                "target": 0.0005006893096445864,
                "values": 0.5716105117704096,
            },
        ),
        (
            {"activation": "sigmoid"},
            (4, 2, 3, 1),
            [-0.15803634895576518, 0.09051311211978992, 0.003606961283878024, 0.10350190104760401],
            {
                "unit.first.weight": 0.016775706981160543,
                "unit.first.bias": 0.001993906904922333,
                "unit.others.0.weight": -0.03546195047645041,
                "unit.others.0.bias": 0.02632333456455563,
                "unit.out.weight": -0.250347809995496,
                "unit.out.bias": -0.19359483221991458,
                "target": 0.010848807329382835,
                "values": -0.5187646248320515,
            },
        ),
        (
            {"activation": "dice"},
            (4, 4, 4, 4),
            [-0.12343960186936764, 0.24192834420023207, -0.049244539914738025, 0.030888673784222304],
            {
                "unit.first.weight": 0.09065280423936989,
                "unit.first.bias": 0.10183706949052913,
                "unit.others.0.weight": -0.3436968787806902,
                "unit.others.0.bias": -0.23650817392102794,
                "unit.learned.0.alpha_C": -0.001587667854430621,
                "unit.learned.1.alpha_C": 0.1466728166444607,
                "unit.out.weight": -0.22273495291983977,
                "unit.out.bias": -0.3116534598900382,
                "target": -0.29313602318973336,
                "values": -0.6455159586047389,
            },
        ),
    ],
    ids=["softmax", "sum", "dice"],
)
def test_din(options, lengths, expected, gradients):
    encoder = DINEncoder(SPEC, DINEncoder.Config(attention_units=(4, 3), **options))
    make_wavy(encoder)
    history = wavy_history(lengths)
    pooled_BE = encoder(history).pooled_BK
    (pooled_BE * wave(*pooled_BE.shape, phase=0.3)).sum().backward()
    assert pooled_BE[:, 0].tolist() == pytest.approx(expected, abs=1e-10)
    assert_all_close(gradient_sums(encoder, target=history.target_BE, values=history.values_BLE), gradients)


def test_dice_is_batch_norm_over_the_events_alone():
    """The reference on the events without padding, one after the other; ours knows them by the mask."""
    torch.manual_seed(0)
    dice = Dice(3).double()
    dice.alpha_C.data.normal_()
    x_BLC, mask_BL = torch.randn(5, 4, 3).double(), torch.rand(5, 4) < 0.6
    x_BLC[~mask_BL] = 100.0  # would pull mean and variance far away
    mean_C, variance_C = dice.running_mean.clone(), dice.running_var.clone()
    found_BLC = dice(x_BLC, mask_BL)
    x_NC = x_BLC[mask_BL]
    gate_NC = F.batch_norm(x_NC, mean_C, variance_C, training=True, momentum=0.01, eps=1e-9).sigmoid()
    torch.testing.assert_close(found_BLC[mask_BL], gate_NC * x_NC + dice.alpha_C * (1 - gate_NC) * x_NC, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((dice.running_mean, dice.running_var), (mean_C, variance_C), rtol=1e-12, atol=1e-12)
    dice(x_BLC, torch.zeros(5, 4, dtype=torch.bool))
    torch.testing.assert_close((dice.running_mean, dice.running_var), (mean_C, variance_C), rtol=1e-12, atol=1e-12)
    dice.eval()
    gate_NC = F.batch_norm(x_NC, mean_C, variance_C, eps=1e-9).sigmoid()
    torch.testing.assert_close(dice(x_NC), gate_NC * x_NC + dice.alpha_C * (1 - gate_NC) * x_NC, rtol=1e-12, atol=1e-12)


def test_sim():
    encoder = SIMEncoder(SPEC, SIMEncoder.Config(top_k=2, attention_width=6, num_heads=2))
    make_wavy(encoder)
    history = wavy_history((4, 4, 4, 4))
    pooled_BE, auxiliary_BE = encoder(history)
    loss = (pooled_BE * wave(*pooled_BE.shape, phase=0.3)).sum() + (auxiliary_BE * wave(*auxiliary_BE.shape, phase=0.7)).sum()
    loss.backward()
    expected = [-0.34325813151903994, -0.28786662471825647, 0.24897236441250098, -0.06352194049479493]
    assert pooled_BE[:, 0].tolist() == pytest.approx(expected, abs=1e-10)
    expected = [0.21152808401731588, 0.6452043551390929, -1.2194919199598941, 0.9150224336654934]
    assert auxiliary_BE[:, 0].tolist() == pytest.approx(expected, abs=1e-10)
    assert_all_close(
        gradient_sums(encoder, target=history.target_BE, values=history.values_BLE),
        {
            "search_target.weight": -2.8541204082901817,
            "search_event.weight": -2.7339533769960447,
            "long.query.weight": -0.021122817492934872,
            "long.key.weight": -0.009299950947028663,
            "long.value.weight": -0.3769973832866351,
            "long.out.weight": 0.33105718101942616,
            "target": 2.1387178767596966,
            "values": -4.46953026587595,
        },
    )


@pytest.mark.parametrize(
    ("normalize", "expected", "gradient"),
    [
        (False, [0.09878952623646177, 0.0, -0.3635712500404263, 0.0], 0.19606263894427733),
        (True, [0.12960297632049966, 0.0, -0.47723658570380795, 0.0], 0.5554002326391705),
    ],
)
def test_sdim(normalize, expected, gradient):
    encoder = SDIMEncoder(SPEC, SDIMEncoder.Config(num_signatures=3, num_bits=2, normalize=normalize)).double()
    encoder.rotations_EGT.copy_(wave(SPEC.width, 3, 2, phase=1))
    history = wavy_history((4, 2, 3, 1))
    pooled_BE = encoder(history).pooled_BK
    (pooled_BE * wave(*pooled_BE.shape, phase=0.3)).sum().backward()
    assert pooled_BE[:, 0].tolist() == pytest.approx(expected, abs=1e-10)
    assert_all_close(gradient_sums(encoder, values=history.values_BLE), {"values": gradient})


def test_dare():
    """Tables of 7 items (width 3) and 5 categories (width 2) for each role; the features behind `r_t` in the authors' head."""
    encoder = DAREEncoder(SPEC._replace(decoupled=True), DAREEncoder.Config(top_k=2))
    make_wavy(encoder)
    tables = {
        f"{role}.{kind}": wave(num_rows, width, phase=10 + 2 * i + j).requires_grad_()
        for i, role in enumerate(("attention", "representation"))
        for j, (kind, num_rows, width) in enumerate((("item_id", 7, 3), ("category_id", 5, 2)))
    }
    rows_B, events_BL = torch.arange(4), torch.arange(16).reshape(4, 4)

    def look_up(role, item_ids, category_ids):
        return torch.cat([tables[f"{role}.item_id"][item_ids], tables[f"{role}.category_id"][category_ids]], dim=-1)

    target_BE, attention_BA = (look_up(role, rows_B % 7, rows_B % 5) for role in ("representation", "attention"))
    values_BLE, attention_BLA = (
        look_up(role, (3 * events_BL + 1) % 7, (2 * events_BL + 1) % 5) for role in ("representation", "attention")
    )
    everywhere_BL = torch.ones(4, 4, dtype=torch.bool)
    history = History(target_BE, values_BLE, everywhere_BL, attention_BA, attention_BLA, target_BE[:, :0], values_BLE[:, :, :0])
    pooled_BK, auxiliary_BK = encoder(history)
    features_BX = torch.cat([pooled_BK, pooled_BK * encoder.target(history)], dim=1)
    (features_BX * wave(*features_BX.shape, phase=0.3)).sum().backward()
    expected = [0.050311394038163704, -0.29642070672462595, -0.026160795273439535, 0.17823868098292772]
    assert features_BX[:, 0].tolist() == pytest.approx(expected, abs=1e-10)
    expected = [-0.013497865753863593, 0.14584862213463667, 0.002712042826110583, 0.07373091687124769]
    assert features_BX[:, 8].tolist() == pytest.approx(expected, abs=1e-10)
    expected = [0.0020152760545125575, -0.29993648778591886, 0.020540122112316095, -0.010818265623970147]
    assert auxiliary_BK[:, 0].tolist() == pytest.approx(expected, abs=1e-10)
    assert_all_close(
        gradient_sums(encoder, **tables),
        {
            "attention.item_id": -0.18966889868772707,
            "attention.category_id": 0.049592777695836636,
            "representation.item_id": -0.4079487794915271,
            "representation.category_id": 0.20511783653489202,
            "positions_LP": -0.13928521495052537,
            "attention_positions_LQ": -0.050848323597271976,
        },
    )
