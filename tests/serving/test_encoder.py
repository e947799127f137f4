"""One row straight to the graph's slots gives what the vectorised transforms give, or the same error, whatever the value."""

import json

import numpy as np
import pyarrow as pa
import pytest
from bundle_cases import CLICK_SCHEMA, click_rows, click_transforms
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchrec_models.pipelines.data.ids import Buckets, Hash, Identity, Vocabulary, hash_number, hash_numbers, hash_strings
from torchrec_models.pipelines.data.numeric import Clip, Fill, IsMissing, Log1p, MinMax, Quantile, Standard
from torchrec_models.pipelines.data.plain_values import Undecided
from torchrec_models.pipelines.data.transforms import IdsTransform, NumericTransform, Transforms
from torchrec_models.pipelines.serving.codec import RowCodec
from torchrec_models.pipelines.serving.encoder import RowEncoder
from torchrec_models.pipelines.serving.slots import SlotLayout
from torchrec_models.schema import Feature, Schema, Table

TABLES = {
    "text_token": Vocabulary(null="token", values=pa.array(["a", "7", None, "é", "0.5", "1"])),
    "text_oov": Vocabulary(null="oov", values=pa.array(["a", "7", "-3"])),
    "text_error": Vocabulary(null="error", values=pa.array(["a", ""])),
    "integers": Vocabulary(null="token", values=pa.array([7, None, -3, 2**53 + 1, 2**62], pa.int64())),
    "floats": Vocabulary(null="oov", values=pa.array([0.5, 7.0, 2.0**53, float("inf")])),
    "hashed_text": Hash(null="token", buckets=97, seed=3, kind="string"),
    "hashed_numbers": Hash(null="oov", buckets=97, seed=2**63 + 5, kind="number"),
    "buckets": Buckets(null="token", boundaries=(-1.0, 0.0, 0.5, 7.0, 2.0**53)),
    "identity": Identity(null="oov", size=9),
    "identity_error": Identity(null="error", size=9),
}
STEPS = {
    "none": (),
    "filled": (Fill(1.5),),
    "clipped": (Fill(0.0), Clip(0.0, None), Log1p()),
    "log": (Log1p(),),
    "mask": (IsMissing(),),
    "scaled_mask": (IsMissing(), Standard(0.1, 0.3)),
    "min_max": (MinMax(-2.0, 5.0), Clip(-1.0, 1.0)),
    "constant": (Fill(1), MinMax(3.0, 3.0), Standard(0.1, 0.0)),
    "standard": (Fill(0.1), Standard(1 / 3, 1e-3)),
    "quantile": (Quantile((-1.0, 0.0, 0.0, 0.1, 0.5, 7.0, 7.0, 100.0)),),
    "tiny": (Standard(0.0, 1e-300), Clip(None, 3.0)),
}
SHAPES = {
    "one": {},
    "list_first": {"many": True, "max_len": 3},
    "list_last": {"many": True, "max_len": 3, "keep": "last"},
    "separated": {"many": True, "max_len": 3, "separator": "|"},
}


def one_feature(table: str, shape: str) -> Transforms:
    options = SHAPES[shape]
    feature = Feature(name="f", kind="categorical", table="t", max_len=options.get("max_len", 1))
    schema = Schema(features=(feature,), tables=(Table(name="t", num_rows=TABLES[table].num_rows, dim=2),))
    features = {"f": IdsTransform(column="x", table="t", **options)}
    return Transforms(schema_dict=schema.to_dict(), features=features, tables={"t": TABLES[table]})


def one_number(steps: str) -> Transforms:
    schema = Schema(features=(Feature(name="f", kind="numeric"),))
    return Transforms(schema_dict=schema.to_dict(), features={"f": NumericTransform(column="x", steps=STEPS[steps])})


def vectorised(transforms: Transforms, row: dict) -> tuple | str:
    """The reference: ids and float32 numbers, or the error's text."""
    codec = RowCodec(transforms)
    try:
        encoded = transforms.encode(codec.table([row]), where=codec.where)
    except ValueError as error:
        return str(error)
    ids = SlotLayout.from_schema(transforms.schema).fill(encoded).ravel().tolist()
    return ids, encoded.dense.ravel().tolist()


def direct(transforms: Transforms, row: dict) -> tuple | str:
    try:
        ids, dense = RowEncoder(transforms, SlotLayout.from_schema(transforms.schema)).encode([row])
    except ValueError as error:
        return str(error)
    return ids, np.array(dense, np.float32).tolist()


TEXTS = st.one_of(
    st.sampled_from(
        ["a", "7", "é", "", "-3", "007", "+7", " 7", "7 ", "1e3", "0.5", "nan", "inf", "0x10", "1_0", "٧", "-0", "9" * 25]
    ),
    st.text(max_size=5),
    st.text("0123456789-.e", max_size=20),
    st.text(st.characters(), max_size=3),  # lone surrogates, too
)
NUMBERS = st.one_of(
    st.integers(-5, 12),
    st.integers(-(2**64), 2**65),
    st.floats(),
    st.floats(-2, 9, width=16),
    st.sampled_from([2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63), -0.0, 0.5, 3.4028235677973366e38, 3.40282356e38, 1e308, 9.3e18]),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
ANY = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=5),
    st.lists(st.integers(-5, 12), max_size=6),
    st.lists(TEXTS, max_size=6),
    st.lists(st.floats(), max_size=4),
    st.lists(TEXTS, max_size=5).map("|".join),
    st.dictionaries(st.text(max_size=1), st.none(), max_size=1),
    st.binary(max_size=2),
)


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
    from torchrec_models.pipelines.data.ids import _mix_one

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
    assert ids == layout.fill(encoded).ravel().tolist()
    np.testing.assert_array_equal(np.array(dense, np.float32), encoded.dense.ravel())
    encoder._encode_vectorised = None  # type: ignore[method-assign]  # calling it fails
    assert encoder.encode(rows.to_pylist()) == (ids, dense)


def test_a_row_that_only_arrow_can_read_does_not_disturb_its_neighbours():
    transforms = one_feature("integers", "one")
    encoder = RowEncoder(transforms, SlotLayout.from_schema(transforms.schema))
    with pytest.raises(Undecided):
        encoder._encode_row({"x": np.int32(12)}, [], [])
    rows = [{"x": 7}, {"x": np.int32(12)}, {"x": -3}, {}]
    assert encoder.encode(rows)[0] == [n for row in rows for n in encoder.encode([row])[0]]
    with pytest.raises(ValueError, match="data row 13: unknown key 'y'"):
        encoder.encode([{"x": 7}, {"x": np.int32(12)}, {"y": 1}], first_row=10)
