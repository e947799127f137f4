"""Transforms of every kind, and values of every kind, for those who read rows: the encoder and the native reader."""

import pyarrow as pa
from hypothesis import strategies as st

from torchrec_models.pipelines.data.ids import Buckets, Hash, Identity, Vocabulary
from torchrec_models.pipelines.data.numeric import Clip, Fill, IsMissing, Log1p, MinMax, Quantile, Standard
from torchrec_models.pipelines.data.transforms import IdsTransform, NumericTransform, Transforms
from torchrec_models.pipelines.serving.codec import RowCodec
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
