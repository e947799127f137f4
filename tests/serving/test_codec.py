"""Rows as dicts become the columns that the transforms read; more cases, through a whole bundle, in test_bundle.py."""

import pyarrow as pa
import pytest

from torchrec_models.pipelines.data.ids import Buckets, Identity, Vocabulary
from torchrec_models.pipelines.data.numeric import Fill
from torchrec_models.pipelines.data.transforms import IdsTransform, NumericTransform, Transforms
from torchrec_models.pipelines.serving.codec import RowCodec
from torchrec_models.schema import Feature, Schema, Table


@pytest.fixture
def transforms() -> Transforms:
    """`hour` is read twice, as a number and as buckets; `zip` as text and as a row number."""
    schema = Schema(
        features=(
            Feature(name="hour", kind="numeric"),
            Feature(name="part_of_day", kind="categorical", table="part_of_day"),
            Feature(name="zip_row", kind="categorical", table="zip_row"),
            Feature(name="zip", kind="categorical", table="zip"),
        ),
        tables=tuple(Table(name=n, num_rows=rows, dim=2) for n, rows in (("part_of_day", 4), ("zip_row", 9), ("zip", 3))),
    )
    return Transforms(
        schema_dict=schema.to_dict(),
        features={
            "hour": NumericTransform(column="hour", steps=(Fill(12.0),)),
            "part_of_day": IdsTransform(column="hour", table="part_of_day"),
            "zip_row": IdsTransform(column="zip", table="zip_row"),
            "zip": IdsTransform(column="zip", table="zip"),
        },
        tables={
            "part_of_day": Buckets(null="oov", boundaries=(6.0, 18.0)),
            "zip_row": Identity(null="error", size=9),
            "zip": Vocabulary(null="error", values=pa.array(["7", "07"])),
        },
    )


def test_a_column_that_two_features_read_is_asked_for_once(transforms):
    codec = RowCodec(transforms)
    assert {name: (c.feature, c.kind, c.expects) for name, c in codec.columns.items()} == {
        "hour": ("hour", "number", "one"),
        "zip": ("zip_row", "string", "one"),  # as text, which keeps 07 and 7 apart
    }
    encoded = transforms.encode(codec.table([{"hour": 7.5, "zip": "07"}, {"zip": 7}, {"hour": "3", "zip": "8"}]))
    assert encoded.dense[:, 0].tolist() == [7.5, 12.0, 3.0]
    assert {name: values.tolist() for name, (values, _) in encoded.ids.items()} == {
        "part_of_day": [2, 0, 1],
        "zip_row": [7, 7, 8],
        "zip": [2, 1, 0],
    }


def test_integers_stay_exact(transforms):
    codec = RowCodec(transforms)
    big = 2**62 + 1
    assert codec.table([{"hour": big}]).column("hour").to_pylist() == [big]
    with pytest.raises(ValueError, match=r"feature 'hour': .*mixes fractions with integers beyond 2\^53"):
        codec.table([{"hour": 0.5, "zip": "1"}, {"hour": big, "zip": "1"}])


def test_first_row_counts(transforms):
    with pytest.raises(ValueError, match="requests: data row 11: unknown key 'zap'; did you mean 'zip'"):
        RowCodec(transforms, where="requests").table([{"zip": 1}, {"zap": 1}], first_row=9)
