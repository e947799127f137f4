"""Broken input, and the words that tell the user where it is broken and what to do."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_flow import prepare_in_memory, run_config

USER = {"user": {"kind": "categorical"}}
AGE = {"age": {"kind": "numeric"}}
Write = Callable[[Path], object]


def text(content: str, name: str = "a.csv") -> Write:
    return lambda folder: (folder / name).write_bytes(content.encode())


def raw(content: bytes, name: str = "a.csv") -> Write:
    return lambda folder: (folder / name).write_bytes(content)


def parquet(name: str = "a.parquet", **columns: Any) -> Write:
    return lambda folder: pq.write_table(pa.table(columns), folder / name)


def both(*writes: Write) -> Write:
    return lambda folder: [write(folder) for write in writes]


def parquet_spoilt(start: int, spoil: Callable[[bytes], bytes]) -> Write:
    def write(folder: Path) -> None:
        pq.write_table(pa.table({"user": [f"user {i}" for i in range(5000)]}), folder / "a.parquet", use_dictionary=False)
        data = (folder / "a.parquet").read_bytes()
        (folder / "a.parquet").write_bytes(data[:start] + spoil(data[start:]))

    return write


def log(*tags: str) -> str:
    return "".join(f"{i}\t{tag}\n" for i, tag in enumerate(tags))


NAMED = {"format": "tsv", "column_names": ["age", "user"]}
HASHED = {"user": {"kind": "categorical", "ids": {"by": "hash", "buckets": 9, "null": "error"}}}
STRICT = {"user": {"kind": "categorical", "ids": {"by": "vocabulary", "null": "error"}}}
IDENTITY = {"user": {"kind": "categorical", "ids": {"by": "identity", "num_rows": 3}}}
BUCKETS = {"user": {"kind": "categorical", "ids": {"by": "bucketize", "num_buckets": 4}}}
HISTORY = {"history": {"kind": "sequence", "table": "item"}}
ITEMS = {"item": {"ids": {"by": "identity", "num_rows": 3}}}


def steps(*given: Any) -> dict[str, Any]:
    return {"age": {"kind": "numeric", "steps": list(given)}}


def by(kind: str, **split: Any) -> dict[str, Any]:
    return {"split": {"by": kind, **split}}


CASES: dict[str, tuple[Write, dict[str, Any], dict[str, Any], str]] = {
    # --- finding files
    "no file": (lambda _: None, USER, {"train": "b.csv"}, "{}b.csv: no file matches"),
    "a name nearby": (
        text("user\na\n"), USER, {"train": "aa.csv"},
        "{}aa.csv: no file matches; did you mean {}a.csv?",
    ),
    "no folder": (
        lambda _: None, USER, {"train": "nowhere/*.csv"},
        "{}nowhere/*.csv: no file matches; there is no folder {}nowhere",
    ),
    "a folder without data": (
        text("hello", "readme.md"), USER, {"train": ""},
        "{}: the folder holds no .parquet, .csv or .tsv file (readme.md); set data.format",
    ),
    "unknown suffix": (
        text("user\na\n", "a.inter"), USER, {"train": "a.inter"},
        "{}a.inter: the suffix '.inter' tells no format; set data.format: parquet, csv or tsv",
    ),
    "two formats": (
        both(text("user\na\n"), parquet(user=["a"])), USER, {"train": ""},
        "{}a.parquet is parquet and {}a.csv is csv; give files of one format",
    ),
    "a file given twice": (
        text("user\na\n"), USER, {"train": ["a.csv", "*.csv"]},
        "{}a.csv: given twice, by '{}a.csv' and by '{}*.csv'; its rows would count double",
    ),
    # --- empty
    "0 bytes": (raw(b""), USER, {}, "{}a.csv: the file is empty (0 bytes)"),
    "blank lines only": (text("\n\n"), USER, {}, "{}a.csv: the file holds no line"),
    "header only": (text("user,age\n"), USER, {}, "{}a.csv: no rows"),
    "Parquet without rows": (
        both(parquet(user=pa.array([], pa.string())), parquet("b.parquet", user=pa.array([], pa.string()))), USER, {"train": ""},
        "{}a.parquet: no rows, nor in 1 more files",
    ),
    # --- not what it says it is
    "text called Parquet": (
        text("user\na\nb\nc\nd\n", "a.parquet"), USER, {"train": ""},
        "{}a.parquet: not a Parquet file, or a damaged one (",
    ),
    "cut-off Parquet": (parquet_spoilt(-60, lambda _: b""), USER, {"train": ""}, "{}a.parquet: not a Parquet file, or a damaged"),
    "damaged Parquet page": (
        parquet_spoilt(2000, lambda rest: bytes(900) + rest[900:]), USER, {"train": ""},
        "{}a.parquet: the Parquet file is damaged after data row 0: ",
    ),
    "Parquet called text": (
        lambda folder: pq.write_table(pa.table({"user": ["a"]}), folder / "a.csv"), USER, {},
        "{}a.csv: this is a Parquet file; set data.format: parquet",
    ),
    "column_names for Parquet": (
        parquet(user=["a"]), USER, {"train": "", "column_names": ["user"]},
        "data.column_names: has no effect on Parquet files ({}a.parquet); leave it out",
    ),
    "UTF-16": (
        raw("user,age\na,1\n".encode("utf-16")), USER, {},
        "{}a.csv: not UTF-8 text (UTF-16, or a binary file); convert it to UTF-8",
    ),
    "Latin-1 header": (
        raw("us\xe9r,age\na,1\n".encode("latin-1")), USER, {},
        "{}a.csv: the first line is not UTF-8 text (",
    ),
    "Latin-1 value": (
        raw("user,age\na,1\n\xe9,2\n".encode("latin-1")), USER, {},
        "{}a.csv: column 'user', data row 2: invalid UTF8 data is not UTF-8 text",
    ),
    "cut-off gzip": (
        raw(gzip.compress(b"user,age\n" + b"".join(b"u%d,%d\n" % (i, i) for i in range(20_000)))[:-3000], "a.csv.gz"), USER,
        {"train": ""}, "{}a.csv.gz: cannot be decompressed (Truncated compressed stream)",
    ),
    "gzip that is none": (raw(b"user,age\na,1\n", "a.csv.gz"), USER, {"train": ""}, "{}a.csv.gz: cannot be decompressed ("),
    # --- columns
    "unknown column": (
        text("usr,age\na,1\n"), USER, {},
        "{}a.csv: no column 'user'; did you mean 'usr'?; columns: usr, age",
    ),
    "unknown Parquet column": (parquet(usr=["a"]), USER, {"train": ""}, "{}a.parquet: no column 'user'; did you mean 'usr'?"),
    "a column named twice": (text("user,user\na,b\n"), USER, {}, "{}a.csv: the column name 'user' stands there 2 times"),
    "wrong separator": (
        text("user\tage\na\t1\n"), USER, {},
        "{}a.csv: one column found when cut at commas: 'user\\tage'; it holds 1 tabs: set data.format: tsv",
    ),
    "semicolons": (
        text("user;age;city\na;1;x\n"), USER, {},
        "one column found when cut at commas: 'user;age;city'; it holds 2 semicolons: convert the file to CSV, TSV or Parquet",
    ),
    "wrong separator with given names": (
        text("1,a\n2,b\n", "a.tsv"), USER, {"train": "", **NAMED},
        "data row 1 has 1 fields when cut at tabs, and data.column_names has 2 names; it holds 1 commas: set data.format: csv",
    ),
    "a header beside given names": (
        text("age\tuser\n1\ta\n", "a.tsv"), USER, {"train": "", **NAMED},
        "{}a.tsv: the first line repeats data.column_names: it is a header; leave column_names out",
    ),
    "types that differ between files": (
        both(parquet(user=[1]), parquet("b.parquet", user=["1"])), USER, {"train": ""},
        "{}b.parquet: column 'user' has type string, and type int64 in {}a.parquet; write all files with one type",
    ),
    "pandas integers that became floats": (
        both(parquet(user=[1]), parquet("b.parquet", user=[1.0, None])), USER, {"train": ""},
        "{}b.parquet: column 'user' has type double, and type int64 in {}a.parquet; write all files with one type",
    ),
    # --- rows of text
    "a line too long": (
        text("user,age\na,1\n\nb,2,3\n"), USER, {},
        "{}a.csv: data row 2: 3 fields where 2 are expected: 'b,2,3'",
    ),
    "a line too short": (
        text(log("a", "b") + "7\n", "a.tsv"), USER, {"train": "", **NAMED},
        "{}a.tsv: data row 3: 1 fields where 2 are expected: '7'",
    ),
    "a word among numbers": (
        text("age\n1\n2\nold\n"), AGE, {},
        "{}a.csv: column 'age', data row 3: 'old' is not a number; if it means missing, add it to data.null_values",
    ),
    # --- ids
    "an id out of range": (
        text("user\n2\n3\n"), IDENTITY, {},
        "feature 'user': {}a.csv: column 'user', data row 2: 3 is out of range; ids: identity allows 0 .. 2 (num_rows 3)",
    ),
    "a negative id": (parquet(user=[0, -1]), IDENTITY, {"train": ""}, "data row 2: -1 is out of range"),
    "an id with a fraction": (parquet(user=[0, 1.5]), IDENTITY, {"train": ""}, "data row 2: 1.5 is out of range"),
    "an id that is a word": (text("user\n1\nx\n"), IDENTITY, {}, "column 'user', data row 2: 'x' is not a number"),
    "a missing id": (parquet(user=[0, None]), IDENTITY, {"train": ""}, "data row 2: the value is missing, and ids.null is error"),
    "an id out of range inside a history": (
        parquet(history=[[0], None, [1, 2, 9]]), HISTORY, {"train": "", "tables": ITEMS},
        "feature 'history': {}a.parquet: column 'history', data row 3: 9 is out of range",
    ),
    "missing under vocabulary null: error": (
        parquet(user=["a", "b", None]), STRICT, {"train": ""},
        "data row 3: the value is missing, and ids.null is error; clean the data or set null: token or null: oov",
    ),
    "missing under hash null: error": (parquet(user=["a", None]), HASHED, {"train": ""}, "data row 2: the value is missing"),
    "unsigned 64-bit ids": (
        parquet(user=pa.array([1, 2**63], pa.uint64())), USER, {"train": ""},
        "data row 2: 9223372036854775808 is not a 64-bit signed integer; store such ids as text",
    ),
    "large integers beside fractions": (
        parquet(user=[2**60 + 1], history=[[0.5]]),
        {**USER, "history": {"kind": "sequence", "table": "user"}}, {"train": ""},
        "table 'user': integers above 2^53 share it with fractions and cannot be told apart as floats",
    ),
    "bytes that are no text": (
        parquet(user=pa.array([b"a", b"\xff"], pa.binary())), USER, {"train": ""},
        "column 'user', data row 2: b'\\xff' is not UTF-8 text",
    ),
    "buckets of nothing": (
        parquet(user=pa.array([None, None], pa.float64())), BUCKETS, {"train": ""},
        "tables.user: every training value is missing, so num_buckets cannot be learned",
    ),
    "buckets of words": (text("user\n1\nx\n"), BUCKETS, {}, "column 'user', data row 2: 'x' is not a number"),
    # --- numbers
    "a missing number": (
        parquet(age=[1.0, None]), AGE, {"train": ""},
        "feature 'age': {}a.parquet: column 'age', data row 2: the number is missing (null or NaN); add a {fill: ...} step",
    ),
    "NaN": (parquet(age=[1.0, float("nan")]), AGE, {"train": ""}, "data row 2: the number is missing (null or NaN)"),
    "NaN in training statistics": (text("age\n1\n\n3\n"), steps("standard"), {"null_values": ["1"]}, "the number is missing"),
    "infinity": (
        parquet(age=[1.0, float("-inf")]), AGE, {"train": ""},
        "data row 2: -inf does not become a finite 32-bit number; add a {clip: [low, high]} step",
    ),
    "infinity in training statistics": (
        parquet(age=[1.0, float("inf")]), steps("standard"), {"train": ""},
        "data row 2: inf cannot be learned from; add a {clip: [low, high]} step before standard",
    ),
    "a number too large for 32 bits": (parquet(age=[1e39]), AGE, {"train": ""}, "1e+39 does not become a finite 32-bit number"),
    "log1p of a negative": (
        parquet(age=[0, -2]), steps("log1p"), {"train": ""},
        "data row 2: log1p has no value at -2; put {clip: [0, null]} before log1p",
    ),
    "nothing to learn from": (
        parquet(age=pa.array([None], pa.float64())), steps({"fill": "mean"}), {"train": ""},
        "features.age.steps: every training value is missing, so fill: mean cannot be learned; look at the column, or leave",
    ),
    "two fills": (
        parquet(age=[1.0]), steps({"fill": 0}, {"fill": "mean"}), {"train": ""},
        "features.age.steps: the second fill has no effect, nothing is missing after the first; keep one",
    ),
    # --- splits
    "a split value in no list": (
        text("user,part\na,train\nb,dev\n"), USER, by("column", column="part"),
        "{}a.csv: column 'part', data row 2: 'dev' is in no list of data.split (train ['train'], valid ['valid'], test ['test'])",
    ),
    "a missing time": (
        text("user,day\na,2024-01-01\nb,\n"), USER, by("time", column="day", valid_from="2024-01-02"),
        "{}a.csv: column 'day', data row 2: the value is missing, and data.split goes by this column (by: time)",
    ),
    "times written differently": (
        text("user,day\na,2024-01-01\nb,1/2/24\n"), USER, by("time", column="day", valid_from="2024-01-02"),
        "data row 2: '1/2/24' is not written like data.split.valid_from '2024-01-02'; text is compared as text",
    ),
    "a text for a number": (
        parquet(user=["a"], t=[5]), USER, {"train": "", **by("time", column="t", valid_from="5")},
        "column 't': the column holds numbers (int64); give data.split.valid_from as a number, not as the text '5'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_malformed(tmp_path: Path, case: str) -> None:
    write, features, data, expected = CASES[case]
    write(tmp_path)
    paths = data.get("train", "a.csv")
    train = [f"{tmp_path}/{p}" if p else str(tmp_path) for p in ([paths] if isinstance(paths, str) else paths)]
    with pytest.raises(ValueError) as error:
        prepare_in_memory(run_config(features, **{**data, "train": train}))
    message = str(error.value).replace(f"{tmp_path}/", "{}").replace(str(tmp_path), "{}")
    assert expected in message
    assert "\n" not in message
