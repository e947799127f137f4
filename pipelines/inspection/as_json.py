"""Statistics for programs: what `trm data stats --json` prints."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .hashed import HashedTable
from .statistics import IdStats, NumberStats, SplitStats


def as_dict(stats: Mapping[str, SplitStats], *, hashed: Sequence[HashedTable]) -> dict[str, Any]:
    """Plain values that JSON can hold: what does not apply (NaN) is null."""
    tables = {t.name: {"buckets": t.buckets, "distinct": t.num_distinct, "collision_share": t.collision_share} for t in hashed}
    return _without_nan({"splits": {name: _split(split) for name, split in stats.items()}, "hashed_tables": tables})


def _split(split: SplitStats) -> dict[str, Any]:
    return {
        "num_rows": split.num_rows,
        "label_means": split.label_means,
        "missing": None
        if split.missing is None
        else {column: {"rows": rows, "share": split.missing_share(column)} for column, rows in split.missing.items()},
        "numbers": {name: _number(number) for name, number in split.numbers.items()},
        "ids": {name: _ids(ids) for name, ids in split.ids.items()},
        "over_time": vars(split.over_time) if split.over_time else None,
    }


def _number(number: NumberStats) -> dict[str, Any]:
    return {"mean": number.mean, "std": number.std, "min": number.low, "max": number.high, "zeros": number.zeros}


def _ids(ids: IdStats) -> dict[str, Any]:
    return {
        "distinct": ids.distinct,
        "table_rows": len(ids.counts),
        "oov_share": ids.oov_share,
        "missing_share": ids.missing_share,
        "mean_length": ids.mean_length,
        "empty_share": ids.empty_share,
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
