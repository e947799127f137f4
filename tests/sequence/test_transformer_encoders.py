"""BST, FESeq and HSTU against their references, and what makes their tokens.

BST: reczoo/FuxiCTR of 2026-06-05, `BehaviorTransformer`, `get_mask` and `sequence_pooling` of `model_zoo/BST/src/BST.py`.
FESeq: liuhaozhe6788/FESeq of 2024-03-27, the whole `forward` of `model_zoo/FESeq/src/FESeq.py` up to its last MLP.
HSTU: facebookresearch/generative-recommenders of 2025-06-25, `SequentialTransductionUnitJagged` with its bias modules
(`research/modeling/sequential/hstu.py`); for production `ops/pytorch/{pt_hstu_attention,pt_hstu_linear,pt_position}.py`, with
`float32` in their norms read as float64 and the number of time buckets as rows of their table (they take its columns).

All of them pad in front, or are jagged. They were run in float64 with these weights and inputs; with every combination of
pooling, norm and mask, outputs and gradients differed by less than 1e-10 of the largest.
"""

import math

import pytest
import torch
from reference_numbers import CASES
from torch import Tensor

from torchrec_models.net import FieldSpec
from torchrec_models.sequence.bst import BSTEncoder
from torchrec_models.sequence.encoder import History, HistorySpec, SequenceEncoder
from torchrec_models.sequence.feseq import FESeqEncoder
from torchrec_models.sequence.hstu import QUERIES_PER_BLOCK, HSTUEncoder
from torchrec_models.sequence.tokens import Positions, append_candidate, candidate_token, token_mask

LENGTHS_B = torch.tensor([5, 0, 3, 1, 4, 2])
L = 5
MASK_BL = torch.arange(L) < LENGTHS_B[:, None]
ENCODERS: dict[str, type[SequenceEncoder]] = {"bst": BSTEncoder, "feseq": FESeqEncoder, "hstu": HSTUEncoder}
# case -> (width of the context, of the candidate that attention sees, of the intervals)
WIDTHS = {"feseq": (12, 8, 4), "feseq_target": (12, 8, 4), "hstu_research_time": (0, 0, 1), "hstu_production": (0, 0, 8)}


def wave(*shape: int, phase: float) -> Tensor:
    """0.5 sin(phase + 1.7 n), n = 0, 1, ... in row-major order."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return 0.5 * torch.sin(phase + 1.7 * n).reshape(shape)


def wavy_history(context_width: int, attention_target_width: int, interval_width: int) -> tuple[History, dict[str, Tensor]]:
    """Two parallel sequences of width 4; intervals are row `distance` of wave(24). Also returns the leaves, by name."""
    num_rows = len(LENGTHS_B)
    leaves = {
        "target_BE": wave(num_rows, 8, phase=20),
        "values_BLE": wave(num_rows, L, 8, phase=21) * MASK_BL[:, :, None],
        "context_BX": wave(num_rows, context_width, phase=22),
    }
    if attention_target_width:
        leaves["attention_target_BA"] = wave(num_rows, attention_target_width, phase=23)
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    distance_BL = (LENGTHS_B[:, None] - torch.arange(L)).clamp(min=0)
    intervals_BLI = wave(L + 1, interval_width, phase=24)[distance_BL] * MASK_BL[:, :, None]
    target_BE, values_BLE, context_BX, *attention = leaves.values()
    history = History(target_BE, values_BLE, MASK_BL, *(attention or [target_BE]), values_BLE, context_BX, intervals_BLI)
    return history, leaves


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_of_the_reference(name):
    case, cls, widths = CASES[name], ENCODERS[name.partition("_")[0]], WIDTHS.get(name, (0, 0, 0))
    context = tuple(FieldSpec(f"c{i}", 4) for i in range(widths[0] // 4))
    encoder = cls(HistorySpec((4, 4), (4, 4), L, context, widths[1] or 8, widths[2]), cls.Config(**case["options"])).double()
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(encoder.named_parameters())):
            parameter.copy_(wave(*parameter.shape, phase=i))
    history, leaves = wavy_history(*widths)
    pooled_BK = encoder.train()(history).pooled_BK
    torch.testing.assert_close(encoder.eval()(history).pooled_BK, pooled_BK, atol=1e-13, rtol=1e-13)
    answer = wave(*pooled_BK.shape, phase=25)
    assert (pooled_BK * answer).sum(dim=1).tolist() == pytest.approx(case["pooled"], rel=1e-9, abs=1e-10)
    (pooled_BK * answer).sum().backward()
    tensors = dict(encoder.named_parameters()) | leaves
    sums = {key: float((tensors[key].grad * wave(*tensors[key].shape, phase=0.3)).sum()) for key in case["gradients"]}
    assert sums == pytest.approx(case["gradients"], rel=1e-8, abs=1e-9)


def test_the_candidate_comes_behind_the_newest_event():
    values_BLE = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [0.0], [0.0]], [[0.0], [0.0], [0.0]]])
    lengths_B = torch.tensor([3, 1, 0])
    tokens_BTE = append_candidate(values_BLE, torch.tensor([[7.0], [8.0], [9.0]]), lengths_B)
    assert tokens_BTE[:, :, 0].tolist() == [[1, 2, 3, 7], [4, 8, 0, 0], [9, 0, 0, 0]]
    assert token_mask(lengths_B, 4).tolist() == [[True] * 4, [True, True, False, False], [True, False, False, False]]
    assert candidate_token(tokens_BTE, lengths_B)[:, 0].tolist() == [7, 8, 9]


def test_positions_count_back_from_the_candidate():
    positions = Positions(3, 2)
    with torch.no_grad():
        positions.by_distance.copy_(torch.arange(4.0)[:, None].expand(4, 2))
    found_BTP = positions(torch.tensor([3, 1]), 4)
    assert found_BTP[:, :, 0].tolist() == [[3, 2, 1, 0], [1, 0, 0, 0]]


def test_odd_widths_of_sinusoids():
    """Vaswani et al. 2017, section 3.5, by slot; the candidate is in the last of them."""
    table = Positions(2, 3, sinusoids=True).by_distance
    assert table[0].tolist() == pytest.approx([math.sin(2), math.cos(2), math.sin(2 * 10_000 ** (-2 / 3))], rel=1e-6)
    assert table[2].tolist() == [0, 1, 0]


def test_hstu_in_blocks_of_queries():
    """More tokens than a block has queries: the same as an attention that sees all scores at once."""
    num_events = QUERIES_PER_BLOCK + 20
    spec = HistorySpec((8,), (8,), num_events, (), 8)
    torch.manual_seed(0)
    encoder = HSTUEncoder(spec, HSTUEncoder.Config(num_heads=2, num_layers=1)).double()
    layer = encoder.layers[0]
    x_BTE = torch.randn(3, num_events + 1, 8, dtype=torch.float64)
    u, value, query, key = torch.nn.functional.silu(layer.uvqk(layer.norm_in(x_BTE))).chunk(4, dim=2)
    i, j = torch.meshgrid(torch.arange(num_events + 1), torch.arange(num_events + 1), indexing="ij")
    attended = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = query[:, :, head] @ key[:, :, head].mT + layer.distance_bias[(i - j).clamp(min=0)]
        weights = torch.nn.functional.silu(scores) * (j <= i) / (num_events + 1)
        attended.append(weights @ value[:, :, head])
    expected = layer.out(u * layer.norm_out(torch.cat(attended, dim=2))) + x_BTE
    torch.testing.assert_close(layer(x_BTE, torch.zeros(1, 1, 1, dtype=torch.float64)), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("cls", "options", "widths", "interval_width", "message"),
    [
        (BSTEncoder, {"position": False}, (8,), 0, "needs to know when an event was"),
        (BSTEncoder, {"num_heads": 3}, (8,), 0, "multiple of num_heads"),
        (HSTUEncoder, {"num_heads": 3}, (8,), 0, "give head_width"),
        (HSTUEncoder, {}, (8,), 4, "dim: 1"),
        (HSTUEncoder, {"variant": "production"}, (8,), 1, "dim: 8"),
        (FESeqEncoder, {"num_heads": 2}, (8, 4), 0, "fields of one width"),
        (FESeqEncoder, {"num_heads": 2, "context": ("c",)}, (8,), 0, "c of width 4"),
        (FESeqEncoder, {"num_heads": 2, "context": ("d",)}, (8,), 0, "no context field d; there are: c"),
    ],
)
def test_what_an_encoder_cannot_take_is_refused(cls, options, widths, interval_width, message):
    spec = HistorySpec(widths, widths, 5, (FieldSpec("c", 4),), sum(widths), interval_width)
    with pytest.raises(ValueError, match=message):
        cls(spec, cls.Config(**options))


def test_feseq_takes_the_context_it_is_told():
    """Of three fields the middle one: the others change nothing, this one does."""
    spec = HistorySpec((4,), (4,), 5, tuple(FieldSpec(name, width) for name, width in (("a", 2), ("b", 4), ("c", 6))), 4)
    torch.manual_seed(0)
    encoder = FESeqEncoder(spec, FESeqEncoder.Config(context=("b",), num_heads=2)).eval()
    values_BLE, target_BE, context_BX = torch.randn(6, L, 4) * MASK_BL[:, :, None], torch.randn(6, 4), torch.randn(6, 12)
    history = History(target_BE, values_BLE, MASK_BL, target_BE, values_BLE, context_BX, values_BLE[:, :, :0])
    others_BX, own_BX = context_BX.clone(), context_BX.clone()
    others_BX[:, [0, 1, *range(6, 12)]] += 1
    own_BX[:, 2:6] += 1
    pooled_BK = encoder(history).pooled_BK
    assert torch.equal(encoder(history._replace(context_BX=others_BX)).pooled_BK, pooled_BK)
    assert not torch.allclose(encoder(history._replace(context_BX=own_BX)).pooled_BK, pooled_BK)
