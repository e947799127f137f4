"""Which values of raw rows are missing. Counted as rows are written: afterwards a filled number looks like any other."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .values import one_array, plain


@dataclass(frozen=True)
class Missing:
    """Of N raw rows: null, or NaN. A list or text that is there and empty is not missing, nor is a null inside a list.

    Attributes:
        masks: raw column -> [N] bool; None where every value is there.
    """

    masks: Mapping[str, np.ndarray | None]

    @classmethod
    def of(cls, batch: pa.RecordBatch, columns: Collection[str], *, known: Mapping[str, np.ndarray]) -> "Missing":
        """Of some columns.

        Args:
            known: [N] bool of columns whose arrays do not tell any more.
        """
        return cls({name: known[name] if name in known else _mask(one_array(batch.column(name))) for name in columns})

    def take(self, index: np.ndarray) -> "Missing":
        """Of the rows at `index`."""
        return Missing({name: mask if mask is None else mask[index] for name, mask in self.masks.items()})

    def counts(self, start: int, stop: int) -> dict[str, int]:
        """Column -> missing values in rows start .. stop - 1."""
        return {name: 0 if mask is None else int(np.count_nonzero(mask[start:stop])) for name, mask in self.masks.items()}


def _mask(column: pa.Array) -> np.ndarray | None:
    if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
        column = plain(column)
    if pa.types.is_floating(column.type):
        missing = np.isnan(column.to_numpy(zero_copy_only=False))  # a null becomes NaN
        return missing if missing.any() else None
    return column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None


def added(counts: Mapping[str, int] | None, more: Mapping[str, int] | None) -> dict[str, int] | None:
    """Sums of counts of the same columns; None where either was not recorded."""
    if counts is None or more is None:
        return None
    return {name: count + more[name] for name, count in counts.items()} if counts else dict(more)
