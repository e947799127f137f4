"""One row straight to the graph's slots gives what the vectorised transforms give, or the same error, whatever the value."""

import json

import numpy as np
import pyarrow as pa
import pytest
from bundle_cases import CLICK_SCHEMA, click_rows, click_transforms
from hypothesis import example, given, settings
from hypothesis import strategies as st
from row_cases import ANY, SHAPES, STEPS, TABLES, one_feature, one_number, vectorised

from torchrec_models.pipelines.data.hashes import hash_number, hash_numbers, hash_strings
from torchrec_models.pipelines.data.ids import Hash
from torchrec_models.pipelines.data.plain_values import Undecided
from torchrec_models.pipelines.data.transforms import Transforms
from torchrec_models.pipelines.serving.encoder import RowEncoder
from torchrec_models.pipelines.serving.slots import SlotLayout


def direct(transforms: Transforms, row: dict) -> tuple | str:
    try:
        ids, dense = RowEncoder(transforms, SlotLayout.from_schema(transforms.schema)).encode([row])
    except ValueError as error:
        return str(error)
    return ids.ravel().tolist(), dense.ravel().tolist()


@settings(max_examples=700, deadline=None)
@given(table=st.sampled_from(sorted(TABLES)), shape=st.sampled_from(sorted(SHAPES)), value=ANY)
@example(table="text_oov", shape="one", value="\ud800")
@example(table="hashed_text", shape="list_first", value=["a", "b", "c", "\ud800"])
@example(table="integers", shape="list_first", value=["9007199254740993", "0.5"])
@example(table="integers", shape="list_first", value=[1, 2, 3, 2**63])
@example(table="integers", shape="one", value=float(2**62))
@example(table="floats", shape="one", value=2**53 + 1)
@example(table="buckets", shape="one", value=2**53 + 1)
@example(table="hashed_text", shape="one", value=1e22)
@example(table="identity", shape="one", value=-0.0)
def test_ids_are_the_vectorised_ones(table, shape, value):
    transforms = one_feature(table, shape)
    assert direct(transforms, {"x": value}) == vectorised(transforms, {"x": value})


@settings(max_examples=500, deadline=None)
@given(steps=st.sampled_from(sorted(STEPS)), value=ANY)
@example(steps="log", value=-1)
@example(steps="none", value=3.4028235677973366e38)
@example(steps="quantile", value=0.0)
def test_numbers_are_the_vectorised_ones_exactly(steps, value):
    transforms = one_number(steps)
    with np.errstate(all="ignore"):
        assert direct(transforms, {"x": value}) == vectorised(transforms, {"x": value})


@given(
    value=st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False).map(lambda x: x + 0.0)),
    seed=st.integers(0, 2**64 - 1),
)
def test_one_hash_is_a_hash_of_one(value, seed):
    assert hash_number(value, seed) == int(hash_numbers(np.array([value]), seed)[0])


def test_splitmix64_gives_the_published_sequence():
    """The first outputs of SplitMix64 from state 1234567 (Vigna's splitmix64.c): state steps by the golden gamma."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    from torchrec_models.pipelines.data.hashes import _mix_one

    assert [_mix_one((1234567 + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(3)] == published


def test_remembered_hashes_are_bounded(monkeypatch):
    monkeypatch.setattr("torchrec_models.pipelines.data.ids._REMEMBERED_HASHES", 10)
    table = Hash(null="oov", buckets=97, seed=3, kind="string")
    row_of = table.known.__getitem__
    texts = [f"t{i}" for i in range(35)]
    expected = (hash_strings(pa.array(texts), 3) % np.uint64(97)).astype(int) + 1
    for _ in range(2):
        assert [row_of(text) for text in texts] == expected.tolist()
        assert len(table.known) <= 10
    row_of("long" * 100)
    assert max(map(len, table.known)) <= 64


def test_real_rows_take_the_direct_path():
    transforms = click_transforms()
    layout = SlotLayout.from_schema(CLICK_SCHEMA)
    rows = click_rows(200, seed=9).drop_columns(["label"])
    encoder = RowEncoder(transforms, layout)
    ids, dense = encoder.encode(json.loads(json.dumps(rows.to_pylist())))
    encoded = transforms.encode(rows)
    np.testing.assert_array_equal(ids, layout.fill(encoded))
    np.testing.assert_array_equal(dense, encoded.dense)
    encoder._encode_vectorised = None  # type: ignore[method-assign]  # calling it fails
    np.testing.assert_array_equal(encoder.encode(rows.to_pylist())[0], ids)


def test_a_row_that_only_arrow_can_read_does_not_disturb_its_neighbours():
    transforms = one_feature("integers", "one")
    encoder = RowEncoder(transforms, SlotLayout.from_schema(transforms.schema))
    with pytest.raises(Undecided):
        encoder._encode_row({"x": np.int32(12)}, [], [])
    rows = [{"x": 7}, {"x": np.int32(12)}, {"x": -3}, {}]
    np.testing.assert_array_equal(encoder.encode(rows)[0], [encoder.encode([row])[0][0] for row in rows])
    with pytest.raises(ValueError, match="data row 13: unknown key 'y'"):
        encoder.encode([{"x": 7}, {"x": np.int32(12)}, {"y": 1}], first_row=10)
