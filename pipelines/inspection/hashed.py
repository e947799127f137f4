"""Hashed tables of a cache: how many values share how many rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from torchrec_models.pipelines.data.ids import Hash
from torchrec_models.pipelines.data.shards import Cache


@dataclass(frozen=True)
class HashedTable:
    """How large it is, and why.

    Attributes:
        margin: `ids.margin`; 0 where the config gave the buckets, and nothing was counted.
    """

    name: str
    buckets: int
    margin: float

    @property
    def num_distinct(self) -> float:
        """Distinct values of the training rows, as estimated then: what ceil(margin x distinct) came from. NaN without a margin."""
        return math.floor(self.buckets / Decimal(str(self.margin))) if self.margin else math.nan

    @property
    def collision_share(self) -> float:
        """Expected share of these values that share their row with another: 1 - (1 - 1/buckets)^(distinct - 1)."""
        return 1 - (1 - 1 / self.buckets) ** max(self.num_distinct - 1, 0) if self.margin else math.nan


def hashed_tables(cache: Cache) -> list[HashedTable]:
    """In the order of the schema; none for a cache that was not prepared from raw rows."""
    tables = cache.transforms.tables if cache.manifest["transforms"] else {}
    settings = (cache.manifest["inputs"] or {}).get("settings", {}).get("tables", {})
    return [
        HashedTable(name, table.buckets, settings.get(name, {}).get("ids", {}).get("margin", 0.0))
        for name, table in tables.items()
        if isinstance(table, Hash)
    ]


def hashed_lines(tables: Sequence[HashedTable]) -> Iterator[str]:
    """A line per table under a heading, after an empty line; nothing without tables."""
    if tables:
        yield ""
        yield f"{'hashed table':24} {'buckets':>14} {'distinct':>14} {'collide':>8}   (training rows, estimated for margin)"
    for table in tables:
        shown = f"~{table.num_distinct:,} {table.collision_share:.2%}".split() if table.margin else ["-", "-"]
        yield f"{table.name:24} {table.buckets:>14,} {shown[0]:>14} {shown[1]:>8}"
