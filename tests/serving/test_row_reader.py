"""Rows read from JSON bytes by C are those that msgspec and the transforms give; whatever C does not decide is left to them."""

import json

import numpy as np
import pyarrow as pa
import pytest
from bundle_cases import CLICK_SCHEMA, click_rows, click_transforms
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from row_cases import ANY, SHAPES, STEPS, TABLES, TEXTS, one_feature, one_number, vectorised

from torchrec_models.pipelines.data.ids import Vocabulary
from torchrec_models.pipelines.data.transforms import Transforms
from torchrec_models.pipelines.serving import row_reader
from torchrec_models.pipelines.serving.encoder import RowEncoder
from torchrec_models.pipelines.serving.messages import parse_json
from torchrec_models.pipelines.serving.row_reader import RowReader
from torchrec_models.pipelines.serving.slots import SlotLayout


def readers() -> dict[tuple[str, str], tuple[Transforms, RowReader]]:
    transforms = {(table, shape): one_feature(table, shape) for table in TABLES for shape in SHAPES}
    transforms |= {("numeric", steps): one_number(steps) for steps in STEPS}
    found = {case: RowReader.of(t, SlotLayout.from_schema(t.schema)) for case, t in transforms.items()}
    assert None not in found.values(), "these tests need a C compiler"
    return {case: (transforms[case], reader) for case, reader in found.items()}


READERS = readers()
CASES = st.sampled_from(sorted(READERS))


def read(reader: RowReader, transforms: Transforms, row: bytes) -> tuple[list[int], list[float]] | None:
    """What C makes of a row; None where it is undecided."""
    layout = SlotLayout.from_schema(transforms.schema)
    ids, dense = np.full(layout.num_slots, -1, np.int64), np.full(len(transforms.schema.dense), np.nan, np.float32)
    return (ids.tolist(), dense.tolist()) if reader.read(row, ids.ctypes.data, dense.ctypes.data) else None


def check(case: tuple[str, str], row: bytes) -> bool:
    """Whether C decided the row. If so, rightly."""
    transforms, reader = READERS[case]
    found = read(reader, transforms, row)
    if found is None:
        return False
    assert found == vectorised(transforms, parse_json(row)), row
    return True


NUMBERS = (
    b"0 -0 7 -3 007 7.0 7.5 -0.0 1e3 1E-400 1e400 9007199254740993 9007199254740993.0 999999999999999999 9999999999999999999 0.1 "
    b"2. .5 +1 0x1p3 1e 1e+ --1 NaN null nul true {}"
).split()
QUOTED = [*rb'"a" "7" "\u00e9" "\ud83d\ude00" "\ud83d" "\n\/" "\x" "a'.split(), '"é"'.encode(), b'"\xff"', b'"\t"', b""]
SCALARS = st.sampled_from(NUMBERS + QUOTED)
PIECES = st.sampled_from([b"{", b"}", b"[", b"]", b",", b":", b'"x"', b'"y"', b'"\\u0078"', b" ", b"\n", b"\x00"]) | SCALARS


@settings(max_examples=1500, deadline=None)
@given(case=CASES, value=ANY, ascii=st.booleans())
def test_values_are_those_of_the_transforms(case, value, ascii):
    try:
        row = json.dumps({"x": value}, ensure_ascii=ascii, allow_nan=False).encode()
    except (TypeError, ValueError):  # bytes, infinity, lone surrogates
        assume(False)
    check(case, row)


@settings(max_examples=1500, deadline=None)
@given(case=CASES, pieces=st.lists(PIECES, max_size=8))
@example(case=("text_token", "one"), pieces=[b'{"x":"a","x":"7"}'])
@example(case=("text_token", "one"), pieces=[b' {"x" :\t"a"}\r\n'])
@example(case=("text_token", "one"), pieces=[b'{"x":"a"} 1'])
@example(case=("text_token", "one"), pieces=[b'\xef\xbb\xbf{"x":"a"}'])
@example(case=("text_token", "list_last"), pieces=[b'{"x":["a",7]}'])
@example(case=("text_token", "list_last"), pieces=[b'{"x":["a",]}'])
@example(case=("text_token", "one"), pieces=[b'{"x":"a",}'])
@example(case=("text_token", "one"), pieces=[b"{}{}"])
def test_only_what_is_json_is_read(case, pieces):
    check(case, b"".join(pieces))
    check(case, b'{"x":' + b"".join(pieces) + b"}")
    check(case, b'{"x":[' + b",".join(pieces) + b"]}")


@settings(max_examples=800, deadline=None)
@given(case=CASES, row=st.binary(max_size=12), at=st.integers(0, 30))
def test_damaged_rows(case, row, at):
    whole = b'{"x": "a\\u00e9\xf0\x9f\x98\x80", "x": [1.5]}'
    check(case, whole[:at] + row + whole[at + len(row) :])
    check(case, whole[:at])


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_a_vocabulary_of_any_text(text):
    assume(not any(0xD800 <= ord(c) <= 0xDFFF for c in text))
    for long in (text, text * 9, "x" * 19 + text, "x" * 40 + text):
        check(("text_token", "one"), json.dumps({"x": long}).encode())


@pytest.mark.parametrize(
    ("case", "values"),
    [
        (("text_token", "one"), ['"a"', "7", '"7"', "null", '"\\u00e9"', '"é"', '"\\ud83d\\ude00"', '""', '"a\\\\b"']),
        (("text_token", "list_first"), ['["a","7","x","y"]', "[]", "null", "[1,2]", '["\\u00e9"]']),
        (("text_token", "list_last"), ['["a","7","x","1"]']),
        (("text_token", "separated"), ['"a||7|x|y"', '""', '"|"', "null"]),
        (("integers", "one"), ["7", "-3", '"7"', "7.0", "4611686018427387", "null"]),
        (("integers", "list_last"), ["[7,-3,1,2]", '["7","-3"]', "[7.0]"]),
        (("floats", "one"), ["0.5", "7", "1e0", '"7"', "0.30000000000000004", "null"]),
        (("hashed_numbers", "one"), ["7", "-3", '"7"', "7.0"]),
        (("hashed_text", "one"), ['"a"', "7", '"\\u00e9"', '""', "null", f'"{"x" * 127}"', f'"{"x" * 128}"', f'"{"y" * 300}"']),
        (("buckets", "one"), ["-1", "0.49999999999999994", "1e300", '"7"', "null"]),
        (("identity", "one"), ["0", "8", '"8"', "8.0"]),
        (("numeric", "filled"), ["0.1", "-7", "null", '"7"', "1.7976931348623157e-308", "123456.78901234567890123"]),
        (("numeric", "standard"), ["0.1", "3"]),
        (("numeric", "clipped"), ["0.1", "3", "null"]),
        (("numeric", "quantile"), ["0.1", "3", "-2"]),
        (("numeric", "scaled_mask"), ["0.1", "null"]),
    ],
    ids=str,
)
def test_what_callers_send_is_decided(case, values):
    for value in values:
        assert check(case, f'{{"x":{value}}}'.encode()), value
    assert check(case, b"{ }") == check(case, b'{"x":null}')


@pytest.mark.parametrize("value", ["true", "[null]", '["a",1]', "{}", "[[]]", "1" * 19, '"\\ud800"', '["a"'])
def test_what_is_odd_is_not(value):
    assert not check(("text_token", "list_first"), f'{{"x":{value}}}'.encode())
    assert not check(("text_token", "one"), f'{{"x":{value}}}'.encode())


def test_more_than_there_is_room_for_is_undecided():
    for num in (1, 4096, 4097):
        assert check(("integers", "list_last"), b'{"x":[%b]}' % b",".join([b"7"] * num)) == (num <= 4096)
        assert check(("text_oov", "separated"), b'{"x":"%b"}' % b"|".join([b"a"] * num)) == (num <= 4096)
    assert check(("text_token", "one"), b'{"x":"%b"}' % (b"a" * 100_000))
    for num in (1000, 16_000, 17_000):
        assert check(("text_token", "one"), b'{"x":"\\n%b"}' % (b"a" * num)) == (num <= 16_000)


def test_large_vocabularies():
    """Ones that collide; texts of every length around what an entry holds."""
    generator = np.random.default_rng(0)
    texts = ["".join(map(chr, generator.integers(97, 123, generator.integers(0, 30)))) for _ in range(20_000)]
    known = list(dict.fromkeys(texts))[:10_000]
    numbers = np.unique(generator.integers(-(10**17), 10**17, 10_000))
    for name, values in (("large_texts", pa.array(["x", *known]).slice(1)), ("large_integers", pa.array(numbers))):
        TABLES[name] = Vocabulary(null="oov", values=values)
        try:
            transforms = one_feature(name, "one")
        finally:
            del TABLES[name]
        reader = RowReader.of(transforms, SlotLayout.from_schema(transforms.schema))
        rows = {value: row for row, value in enumerate(values.to_pylist(), 2)}  # row 1 of the graph is for values not known
        for value in [*values.to_pylist()[::7], *texts[:500]]:
            found = read(reader, transforms, json.dumps({"x": value}).encode())
            assert found == ([rows.get(value, 1)], []) or (found is None and name == "large_integers" and type(value) is str)


def test_real_rows_are_read_natively():
    transforms = click_transforms()
    layout = SlotLayout.from_schema(CLICK_SCHEMA)
    rows = json.loads(json.dumps(click_rows(200, seed=9).drop_columns(["label"]).to_pylist()))
    encoder = RowEncoder(transforms, layout)
    assert encoder.reader is not None
    expected = encoder.encode(rows)
    encoder._encode_row = None  # type: ignore[method-assign]  # calling it fails
    for found, wanted in zip(encoder.encode(rows, from_json=True), expected):
        np.testing.assert_array_equal(found, wanted)


def test_without_a_compiler_python_reads(monkeypatch):
    monkeypatch.setattr(row_reader, "_library", lambda: None)
    transforms = one_feature("text_token", "one")
    encoder = RowEncoder(transforms, SlotLayout.from_schema(transforms.schema))
    assert encoder.reader is None
    assert encoder.encode([{"x": "a"}], from_json=True)[0].tolist() == encoder.encode([{"x": "a"}])[0].tolist()
