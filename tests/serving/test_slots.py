"""Where ids stand in the graph's input, worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from fixtures import RETRIEVAL_SCHEMA, SCHEMAS, categorical, make_schema, numeric, sequence

from torchrec_models.pipelines.serving.slots import SlotLayout

SCHEMA = make_schema(
    [
        sequence("history", table="item", max_len=2),
        categorical("tags", max_len=3, pooling="mean"),
        numeric("x"),
        categorical("item"),
        categorical("user"),
        categorical("wide"),
    ],
    dim=4,
    dims={"wide": 8},
    num_rows=10,
)


def test_layout():
    found = [(s.feature, s.width, s.first_slot, s.num_slots, s.first_row, s.reduce) for s in SlotLayout.from_schema(SCHEMA).slots]
    assert found == [
        ("item", 4, 0, 1, 1, "sum"),  # tables of width 4 in schema order: item, tags, user
        ("user", 4, 1, 1, 21, "sum"),
        ("tags", 4, 2, 3, 11, "mean"),
        ("history", 4, 5, 2, 1, "none"),  # reads item's rows
        ("wide", 8, 7, 1, 1, "sum"),  # a flat table of its own
    ]


def test_fill():
    encoded = SimpleNamespace(
        num_rows=3,
        ids={
            "item": (np.array([0, 5, 9], np.int32), None),
            "user": (np.array([1, 0, 2], np.int32), None),
            "wide": (np.array([3, 3, 0], np.int32), None),
            "tags": (np.array([7, 0, 1, 2], np.int32), np.array([0, 1, 1, 4])),
            "history": (np.array([9, 8, 0], np.int32), np.array([0, 2, 2, 3])),
        },
    )
    expected = [
        [1, 22, 18, 0, 0, 10, 9, 4],
        [6, 21, 0, 0, 0, 0, 0, 4],
        [10, 23, 11, 12, 13, 1, 0, 1],
    ]
    found = SlotLayout.from_schema(SCHEMA).fill(encoded)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_too_many_ids_are_noticed():
    schema = make_schema([categorical("tags", max_len=2)])
    encoded = SimpleNamespace(num_rows=1, ids={"tags": (np.array([1, 2, 3], np.int32), np.array([0, 3]))})
    with pytest.raises(AssertionError, match="tags was encoded longer than max_len"):
        SlotLayout.from_schema(schema).fill(encoded)


@pytest.mark.parametrize("name", SCHEMAS)
def test_slots_lie_side_by_side_and_survive_json(name):
    layout = SlotLayout.from_schema(SCHEMAS[name])
    ends = np.cumsum([s.num_slots for s in layout.slots]).tolist()
    assert [s.first_slot for s in layout.slots] == [0, *ends][:-1][: len(layout.slots)]
    assert SlotLayout.from_list(layout.to_list()) == layout


def test_a_side_has_its_own_features_only():
    layout = SlotLayout.from_schema(RETRIEVAL_SCHEMA, side="candidate")
    assert {s.feature for s in layout.slots} == {"item", "genres"}
    assert {s.first_row for s in layout.slots} == {1}, "each is the only table of its width on this side"
