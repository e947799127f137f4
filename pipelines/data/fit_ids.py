"""Learn the vocabulary of one table, from every feature that reads it."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config.data import VocabularyIds
from . import decimals, distinct
from .ids import Vocabulary
from .statistics import ValueCounts
from .values import Kind, Place, numbers, one_array, plain, strings, whole

_EXACT_FLOAT = 2.0**53


class VocabularyFit:
    """Counts values; `finish` keeps the frequent ones, most frequent first, ties by value (numbers ascending, text by code point).

    A missing value under `null: token` counts as a value, after all others of its frequency.

    Args:
        kind: `string` where any of the table's columns is text.
    """

    def __init__(self, table: str, config: VocabularyIds, *, kind: Kind) -> None:
        self._table = table
        self._config = config
        self._kind = kind
        self._counts: dict[pa.DataType, ValueCounts] = {}
        self._of_small = np.zeros(0, np.int64)  # by number, of text that is read as numbers
        self._num_missing = 0

    def update(self, values: pa.Array, place: Place) -> None:
        """`add` of `counted`."""
        self.add(self.counted(values, place))

    def counted(self, values: pa.Array, place: Place) -> pa.Table:
        """Columns `value` and `count` of values [n], which may be dictionary-encoded; a null is a value. Any thread may do this.

        Raises:
            ValueError: for missing values under `null: error` (file, column and row).
        """
        if self._kind == "string" and (of_small := decimals.counted(values)):
            return pa.table(dict(zip(("value", "count"), of_small)))  # text of small numbers, as numbers
        different, counts = counted_values(values)
        try:
            found = self._canonical(different, place)
        except ValueError:
            self._canonical(values, place)  # names the row
            raise
        if self._config.null == "error" and found.null_count:
            index = pc.index(pc.is_null(plain(values), nan_is_null=True), True).as_py()
            raise place.error(index, "the value is missing, and ids.null is error; clean the data or set null: token or null: oov")
        return pa.table({"value": found, "count": counts})

    def add(self, counted: pa.Table) -> None:
        """Count what `counted` gave."""
        values, counts = (one_array(counted[name]) for name in ("value", "count"))
        if pa.types.is_int32(values.type):
            self._count_small(values.to_numpy(), counts.to_numpy())
            return
        missing = values.is_null()
        self._num_missing += pc.sum(counts.filter(missing)).as_py() or 0
        present = pc.invert(missing)
        self._counts.setdefault(values.type, ValueCounts()).add(values.filter(present), counts.filter(present))

    def _count_small(self, values: np.ndarray, counts: np.ndarray) -> None:
        if (missing := int(values.max(initial=-1)) + 1 - len(self._of_small)) > 0:
            self._of_small = np.append(self._of_small, np.zeros(missing, np.int64))
        self._of_small[values] += counts

    def _settle(self) -> None:
        """Counts of small numbers become those of their text."""
        used, self._of_small, of_small = np.flatnonzero(self._of_small), self._of_small[:0], self._of_small
        if len(used):
            self._counts.setdefault(pa.string(), ValueCounts()).add(pa.array(used).cast(pa.string()), pa.array(of_small[used]))

    def state(self) -> Iterator[tuple[dict[str, Any], pa.Table]]:
        """What was counted so far: a key that JSON can hold, and a table, for each type of values."""
        self._settle()
        tables = [table for counts in self._counts.values() if (table := counts.table()) is not None]
        for i, table in enumerate(tables or [_no_counts(pa.string())]):
            yield {"num_missing": 0 if i else self._num_missing}, table

    def merge(self, key: dict[str, Any], table: pa.Table) -> None:
        """Count what another has counted."""
        self._num_missing += key["num_missing"]
        for batch in table.to_batches():
            self._counts.setdefault(table.schema.field("value").type, ValueCounts()).add(batch["value"], batch["count"])

    def _canonical(self, values: pa.Array, place: Place) -> pa.Array:
        if self._kind == "string":
            return strings(values, place)
        number, missing = numbers(values, place)
        return pa.array(number, mask=missing)

    def finish(self) -> Vocabulary:
        counts = self._one_type()
        config = self._config
        if config.null == "token" and self._num_missing:
            missing = pa.table({"value": pa.nulls(1, counts["value"].type), "count": pa.array([self._num_missing], pa.int64())})
            counts = pa.concat_tables([counts, missing])
        counts = counts.filter(pc.greater_equal(counts["count"], config.min_count))
        order = pc.sort_indices(counts, sort_keys=[("count", "descending"), ("value", "ascending")])
        values = counts["value"].take(order[: config.max_size] if config.max_size else order).combine_chunks()
        if not len(values):
            warnings.warn(
                f"table {self._table!r}: no value was seen {config.min_count} times or more in training, "
                f"so every id becomes row 0 (OOV); lower ids.min_count or drop the features that read it",
                stacklevel=2,
            )
        return Vocabulary(values=values, null=config.null)

    def _one_type(self) -> pa.Table:
        """Counts with one value type: integers and floats meet as integers where every float is one."""
        self._settle()
        tables = {type: table for type, counts in self._counts.items() if (table := counts.table()) is not None}
        if self._kind == "string":
            return tables.get(pa.string(), _no_counts(pa.string()))
        floats, integers = tables.get(pa.float64()), tables.get(pa.int64(), _no_counts(pa.int64()))
        if floats is None:
            return integers
        as_integers, is_whole = whole(floats["value"].to_numpy())
        if is_whole.all() and (np.abs(floats["value"].to_numpy()) <= _EXACT_FLOAT).all():
            parts = [integers, floats.set_column(0, "value", pa.array(as_integers))]
        else:
            number = integers["value"].to_numpy()
            if (np.abs(number.astype(np.float64)) > _EXACT_FLOAT).any():
                raise ValueError(
                    f"table {self._table!r}: integers above 2^53 share it with fractions and cannot be told apart as floats; "
                    f"store the ids as integers or as text in every column"
                )
            parts = [integers.set_column(0, "value", pa.array(number.astype(np.float64))), floats]
        both = ValueCounts()
        for part in parts:
            for batch in part.to_batches():
                both.add(batch.column("value"), batch.column("count"))
        return both.table() or _no_counts(parts[0]["value"].type)


def counted_values(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Distinct values, a null among them where there are nulls, and how often each stands there."""
    if of_small := decimals.counted(values):
        return of_small
    values = distinct.encoded(values)
    if not pa.types.is_dictionary(values.type) or values.null_count:
        pair = pc.value_counts(values)
        return plain(pair.field("values")), pair.field("counts").cast(pa.int64())
    counts = pa.array(distinct.counts(values))
    used = pc.greater(counts, 0)
    return values.dictionary.filter(used), counts.filter(used)


def _no_counts(type: pa.DataType) -> pa.Table:
    return pa.table({"value": pa.array([], type), "count": pa.array([], pa.int64())})
