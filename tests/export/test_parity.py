"""Raw columns as JSON must become the same model inputs as the columns themselves."""

import datetime
import decimal
import json

import numpy as np
import pyarrow as pa
import pytest

from torchrec_models.pipelines.data.values import Place, numbers, strings
from torchrec_models.pipelines.export.parity import json_values

DAY = datetime.datetime(2024, 3, 1, 12, 30)
PLACE = Place("", "x")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a", None]), ["a", None]),
        (pa.array([b"a", None]), ["a", None]),
        (pa.array(["a", "b", "a", None]).dictionary_encode(), ["a", "b", "a", None]),
        (pa.array([2**62 + 1, None]), [2**62 + 1, None]),
        (pa.array([1.5, float("nan"), None]), [1.5, None, None]),
        (pa.array([0.1], pa.float32()), [float(np.float32(0.1))]),
        (pa.array([True, False]), [True, False]),
        (pa.array([DAY], pa.timestamp("ms")), ["2024-03-01 12:30:00.000"]),
        (pa.array([DAY.date(), None]), ["2024-03-01", None]),
        (pa.array([decimal.Decimal("7")], pa.decimal128(5, 0)), [7]),
        (pa.array([decimal.Decimal("7.25")], pa.decimal128(5, 2)), [7.25]),
        (pa.nulls(2), [None, None]),
        (pa.array([["a", None], [], None]), [["a", None], [], None]),
        (pa.array([[DAY.date()]]), [["2024-03-01"]]),
        (pa.array([[1.0, float("nan")]], pa.list_(pa.float64(), 2)), [[1.0, None]]),
        (pa.array([["a"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))), [["a"]]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_json_values(column, expected):
    found = json_values(column)
    assert found == expected
    again = pa.array(json.loads(json.dumps(found, allow_nan=False)))
    flat, flat_again = (a.flatten() if pa.types.is_nested(a.type) else a for a in (column, again))
    assert strings(flat_again, PLACE).equals(strings(flat, PLACE))
    if pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type):
        for mine, theirs in zip(numbers(flat_again, PLACE), numbers(flat, PLACE)):
            np.testing.assert_array_equal(mine, theirs)
