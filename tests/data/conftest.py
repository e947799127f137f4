"""Schemas that use every way a feature can reach a batch."""

import pytest

from torchrec_models.schema import Feature, Schema, Table, Task


@pytest.fixture
def schema() -> Schema:
    """Numeric, single-valued and multi-valued pooled, a sequence with its target, and a table shared by two pooled features."""
    return Schema(
        features=(
            Feature(name="user", kind="categorical", table="user"),
            Feature(name="price", kind="numeric"),
            Feature(name="tags", kind="categorical", table="tag", max_len=4, pooling="mean"),
            Feature(name="item", kind="categorical", table="item"),
            Feature(name="history", kind="sequence", table="item", max_len=6),
            Feature(name="age", kind="numeric"),
            Feature(name="top_tag", kind="categorical", table="tag"),
        ),
        tables=(
            Table(name="user", num_rows=50, dim=4),
            Table(name="tag", num_rows=20, dim=4),
            Table(name="item", num_rows=30, dim=8),
        ),
        tasks=(Task(name="click"), Task(name="spend", kind="regression")),
    )
