"""What searching encoders find: never padding, never more than asked for, and all of it where the history is short."""

import pytest
import torch
from wavy_histories import SPEC, make_wavy, wavy_history

from torchrec_models.net import InputSpec
from torchrec_models.ranking.behaviour import DARE
from torchrec_models.schema import Feature, Schema, Table, Task
from torchrec_models.sequence.ages import ages, newest
from torchrec_models.sequence.dare import DAREEncoder
from torchrec_models.sequence.search import gather_events, search
from torchrec_models.sequence.sim import SIMEncoder

LENGTHS = (4, 2, 1, 0)


def test_events_of_negative_scores_are_found_before_padding():
    mask_BL = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
    scores_BL = torch.tensor([-4.0, -1.0, -3.0, -2.0]).expand(4, -1).masked_fill(~mask_BL, 0.0)
    found = search(scores_BL, mask_BL, top_k=2)
    chosen = [set(index[mask].tolist()) for index, mask in zip(found.index_BK, found.mask_BK)]
    assert chosen == [{1, 3}, {0, 1}, {0}, set()]
    values_BL1 = torch.arange(16.0).reshape(4, 4, 1)
    torch.testing.assert_close(gather_events(values_BL1, found.index_BK)[:, :, 0], values_BL1[:, :, 0].gather(1, found.index_BK))


def test_ages_count_from_the_newest_event():
    mask_BL = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
    assert ages(mask_BL).tolist() == [[4, 3, 2, 1], [2, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert newest(mask_BL, 2).tolist() == [
        [False, False, True, True],
        [True, True, False, False],
        [True, *[False] * 3],
        [False] * 4,
    ]


def make_dare(**options) -> DAREEncoder:
    encoder = DAREEncoder(SPEC, DAREEncoder.Config(shared_tables=True, **options))
    make_wavy(encoder)
    return encoder


@pytest.mark.parametrize("options", [{}, {"query": "recent", "num_recent": 2}, {"query": "both"}, {"time_constant": 0.5}], ids=str)
def test_dare_by_loops(options):
    """The formula event by event, on histories shorter than top_k, too."""
    encoder, history = make_dare(top_k=2, **options), wavy_history(LENGTHS)
    found_BK = encoder(history).pooled_BK
    decay = 1 / options["time_constant"] if "time_constant" in options else 0.0
    for row, length in enumerate(LENGTHS):
        target, events = history.target_BE[row], history.values_BLE[row, :length]
        if not length:
            assert not found_BK[row].any()
            continue
        query = target
        if "query" in options:
            recent = events[-options.get("num_recent", 10) :].mean(dim=0)
            query = recent if options["query"] == "recent" else encoder.mix.weight @ torch.cat([target, recent])
        scored = []
        for j in range(length):
            age = length - j
            position = encoder.attention_positions_LQ[0] @ encoder.attention_positions_LQ[age] / 3**0.5
            vector = torch.cat([events[j], encoder.positions_LP[age]])
            scored.append((query @ events[j] / 5**0.5 + position - decay * age, vector))
        best = sorted(scored, key=lambda pair: -pair[0])[:2]
        weights = torch.stack([score for score, _ in best]).softmax(dim=0)
        expected = sum(weight * vector for weight, (_, vector) in zip(weights, best))
        torch.testing.assert_close(found_BK[row], expected, rtol=1e-12, atol=1e-12)


def test_the_query_of_both_starts_as_the_candidate():
    torch.manual_seed(0)
    both = DAREEncoder(SPEC, DAREEncoder.Config(shared_tables=True, query="both")).double()
    alone = DAREEncoder(SPEC, DAREEncoder.Config(shared_tables=True)).double()
    alone.load_state_dict(both.state_dict(), strict=False)
    history = wavy_history(LENGTHS)
    torch.testing.assert_close(both(history).pooled_BK, alone(history).pooled_BK)


def test_short_time_constants_keep_the_newest_event_alone():
    history = wavy_history((4, 3, 2, 1))
    found_BK = make_dare(time_constant=1e-3)(history).pooled_BK
    newest_BE = history.values_BLE[torch.arange(4), torch.tensor([3, 2, 1, 0])]
    torch.testing.assert_close(found_BK[:, :5], newest_BE)


def test_the_whole_history_stands_behind_the_auxiliary_vector():
    """Scaled as the head's, so at top_k = L both are the same; below, they differ."""
    for top_k, equal in ((4, True), (2, False)):
        pooled_BK, auxiliary_BK = make_dare(top_k=top_k)(wavy_history((4, 4, 4, 4)))
        assert torch.allclose(pooled_BK, auxiliary_BK) == equal


def test_sim_reads_short_histories_whole():
    """Fewer events than top_k: the same as with a larger top_k, whatever the scores' signs are."""
    outputs = []
    for top_k in (3, 4):
        encoder = SIMEncoder(SPEC, SIMEncoder.Config(top_k=top_k, attention_width=4, num_heads=2, num_recent=2))
        make_wavy(encoder)
        outputs.append(encoder(wavy_history((3, 2, 1, 0))).pooled_BK)
    torch.testing.assert_close(*outputs)
    assert not outputs[0][3].any()


def decoupled_schema() -> Schema:
    features = [Feature(name="item", kind="categorical", table="item"), Feature(name="clicks", kind="sequence", table="item")]
    features += [
        Feature(name="item_attention", kind="categorical", table="attention"),
        Feature(name="clicks_attention", kind="sequence", table="attention"),
        Feature(name="gap", kind="sequence", table="gap"),
    ]
    tables = (
        Table(name="item", num_rows=5, dim=4),
        Table(name="attention", num_rows=5, dim=2),
        Table(name="gap", num_rows=5, dim=1),
    )
    return Schema(features=tuple(features), tables=tables, tasks=(Task(name="click"),))


def make_decoupled(**history) -> DARE:
    one = {"sequences": ("clicks",), "attention": ("clicks_attention",), **history}
    return DARE(InputSpec.from_schema(decoupled_schema()), DARE.Config(histories=[one]))


def test_dare_gives_the_head_nothing_of_the_attention_tables():
    """Fields: the candidate, the encoding with its position, and their products; the attention candidate is not among them."""
    net = make_decoupled()
    assert [(f.name, f.width) for f in net.head.spec.fields] == [
        ("item", 4),
        ("clicks_encoded", 4),
        ("clicks_position_encoded", 4),
        ("clicks_encoded_product", 4),
        ("clicks_position_encoded_product", 4),
    ]
    assert net.encoders[0].attention_positions_LQ.shape[1] == 2


def test_intervals_of_dare_are_log_weights():
    """An interval of +c for one event multiplies its weight by exp(c)."""
    encoder = DAREEncoder(SPEC._replace(interval_width=1), DAREEncoder.Config(shared_tables=True, auxiliary_weight=0.0))
    make_wavy(encoder)
    history = wavy_history((4,))
    plain, added = torch.zeros(1, 4, 1).double(), torch.zeros(1, 4, 1).double()
    added[0, 2] = 60.0
    assert not torch.allclose(encoder(history._replace(intervals_BLI=plain)).pooled_BK[:, :5], history.values_BLE[:, 2])
    torch.testing.assert_close(encoder(history._replace(intervals_BLI=added)).pooled_BK[:, :5], history.values_BLE[:, 2])


@pytest.mark.parametrize(
    ("spec", "options", "word"),
    [
        (SPEC, {}, "no `attention` sequences are given"),
        (SPEC._replace(decoupled=True), {"shared_tables": True}, "`attention` names sequences"),
        (SPEC._replace(interval_width=2), {"shared_tables": True}, "width 1; got width 2"),
    ],
)
def test_dare_refuses(spec, options, word):
    with pytest.raises(ValueError, match=word):
        DAREEncoder(spec, DAREEncoder.Config(**options))


def test_heads_must_divide_the_attention_width():
    with pytest.raises(ValueError, match="num_heads 4 must divide attention_width 6"):
        SIMEncoder(SPEC, SIMEncoder.Config(attention_width=6))
