import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from torchrec_models.pipelines.config import SplitConfig
from torchrec_models.pipelines.data.sources import SourceBatch
from torchrec_models.pipelines.data.splits import Splitter


def splitter(**split: Any) -> Splitter:
    return Splitter(TypeAdapter(SplitConfig).validate_python(split))


def assign(split: Splitter, table: pa.Table, *, batch_rows: int = 1 << 30) -> list[int]:
    out, row = [], 0
    for batch in table.to_batches(max_chunksize=batch_rows):
        out += split.assign(SourceBatch(batch, "file", row, row)).tolist()
        row += batch.num_rows
    return out


SPLITS = [
    {"by": "random", "seed": 3},
    {"by": "hash", "column": "user"},
    {"by": "hash", "column": "number", "seed": -1},
    {"by": "time", "column": "day", "valid_from": "2024-01-05", "test_from": "2024-01-08"},
    {"by": "column", "column": "part", "train": ["a"], "valid": ["b"], "test": ["c"]},
]


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: f"{s['by']} {s.get('column', '')}")
@given(batch_rows=st.integers(1, 70))
def test_batches_do_not_move_rows(split: dict, batch_rows: int) -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "user": [f"u{i}" for i in rng.integers(0, 20, 60)],
            "number": rng.integers(0, 20, 60),
            "day": [f"2024-01-{i:02d}" for i in rng.integers(1, 12, 60)],
            "part": rng.choice(["a", "b", "c"], 60),
        }
    )
    whole = assign(splitter(**split), table)
    assert assign(splitter(**split), table, batch_rows=batch_rows) == whole
    assert set(whole) == {0, 1, 2}


@pytest.mark.parametrize("by", ["random", "hash"])
def test_shares_and_pinned_rows(by: str) -> None:
    """The pinned rows make a split the same on every machine and in every release."""
    table = pa.table({"user": np.arange(20_000)})
    column = {} if by == "random" else {"column": "user"}
    out = np.array(assign(splitter(by=by, valid=0.2, test=0.1, **column), table))
    share = np.bincount(out, minlength=3) / len(out)
    np.testing.assert_allclose(share, [0.7, 0.2, 0.1], atol=0.01)
    assert "".join(map(str, out[:40])) == PINNED
    other = np.array(assign(splitter(by=by, valid=0.2, test=0.1, seed=1, **column), table))
    assert 0.5 < (out == other).mean() < 0.58  # .7^2 + .2^2 + .1^2 = .54: unrelated


PINNED = "1000020001001001110100201000100000001000"


def test_a_value_lands_in_one_split_in_every_type() -> None:
    numbers = list(range(100))
    split = splitter(by="hash", column="user")
    as_integers = assign(split, pa.table({"user": pa.array(numbers, pa.int32())}))
    assert assign(split, pa.table({"user": pa.array(numbers, pa.float64())})) == as_integers
    text = pa.array([f"u{i}" for i in numbers])
    assert assign(split, pa.table({"user": text})) == assign(split, pa.table({"user": text.dictionary_encode()}))


MIDNIGHT, DAY, MICROSECOND = dt.datetime(2024, 3, 1), dt.timedelta(1), dt.timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("column", "valid_from", "test_from"),
    [
        (pa.array([1, 5, 9]), 5, 9),
        (pa.array([1, 5, 9]), 4.5, 9),
        (pa.array([1.0, 5.0, 9.0]), 5, 9),
        (pa.array(["1", "5", "10"]), 5, 9),
        (pa.array(["2024-02-29", "2024-03-01", "2024-03-02"]), "2024-03-01", "2024-03-02"),
        (pa.array(["20240229235959", "20240301000000", "20240302"]), "20240301", "20240302"),
        (pa.array([dt.date(2024, 2, 29), dt.date(2024, 3, 1), dt.date(2024, 3, 2)]), "2024-03-01", "2024-03-02"),
        (pa.array([MIDNIGHT - MICROSECOND, MIDNIGHT, MIDNIGHT + DAY]), "2024-03-01", "2024-03-02 00:00"),
        (
            pa.array([MIDNIGHT - dt.timedelta(seconds=1), MIDNIGHT, MIDNIGHT + DAY], pa.timestamp("s", "UTC")),
            "2024-03-01",
            "2024-03-02T01:00:00+01:00",
        ),
    ],
    ids=lambda c: str(getattr(c, "type", "")),
)
def test_time_is_compared_in_the_columns_own_type(column: pa.Array, valid_from: str | float, test_from: str | float) -> None:
    split = splitter(by="time", column="t", valid_from=valid_from, test_from=test_from)
    assert assign(split, pa.table({"t": column})) == [0, 1, 2]


def test_dates_without_a_zone_are_in_the_columns_zone() -> None:
    # 2024-03-01 00:00 in Tokyo is 15:00 of the day before in UTC.
    utc = pa.array([dt.datetime(2024, 2, 29, 14, 59), dt.datetime(2024, 2, 29, 15)], pa.timestamp("s", "UTC"))
    split = splitter(by="time", column="t", valid_from="2024-03-01")
    assert assign(split, pa.table({"t": utc.cast(pa.timestamp("s", "Asia/Tokyo"))})) == [0, 1]
    assert assign(split, pa.table({"t": utc})) == [0, 0]


def test_large_integer_times_keep_every_digit() -> None:
    start = 20131022135101295  # above 2^53: as floats the two rows would be equal
    split = splitter(by="time", column="t", valid_from=start)
    assert assign(split, pa.table({"t": pa.array([start - 1, start])})) == [0, 1]
    assert assign(split, pa.table({"t": [str(start - 1), str(start)]})) == [0, 1]


def test_column_values_may_be_numbers() -> None:
    split = splitter(by="column", column="fold", train=[0, 1], valid=[2], test=["3"])
    for type in (pa.int8(), pa.float64(), pa.string()):
        assert assign(split, pa.table({"fold": pa.array([0, 3, 2, 1]).cast(type)})) == [0, 2, 1, 0]


def test_no_split_is_all_train() -> None:
    assert Splitter(None).columns == []
    assert assign(Splitter(None), pa.table({"x": [1, 2]})) == [0, 0]


@pytest.mark.parametrize(
    ("split", "column", "message"),
    [
        ({"by": "hash"}, ["a", None], "file: column 'c', data row 2: the value is missing, and data.split goes by"),
        ({"by": "time", "valid_from": 3}, [1.0, float("nan")], "data row 2: the value is missing"),
        ({"by": "time", "valid_from": "2024-01-01"}, [20240101], "the column holds numbers (int64); give data.split.valid_from"),
        ({"by": "time", "valid_from": 2024}, [dt.date(2024, 1, 1)], "valid_from as an ISO date in quotes, not 2024"),
        ({"by": "time", "valid_from": "last week"}, [dt.date(2024, 1, 1)], "data.split.valid_from: 'last week' is not an ISO date"),
        ({"by": "time", "valid_from": "2024-01-01"}, ["2023-12-31", "01/02/2024"], "data row 2: '01/02/2024' is not written like"),
        ({"by": "time", "valid_from": 5}, ["4", "soon"], "data row 2: 'soon' is not a number"),
        ({"by": "column"}, ["train", "test", "dev"], "data row 3: 'dev' is in no list of data.split (train ['train']"),
        ({"by": "column"}, [["train"]], "a column of type list<item: string> cannot be read"),
    ],
)  # fmt: skip
def test_refused(split: dict, column: list, message: str) -> None:
    with pytest.raises(ValueError) as error:
        assign(splitter(column="c", **split), pa.table({"c": column}))
    assert message in str(error.value)
