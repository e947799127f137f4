"""Raw values to rows of an embedding table. Row 0 is for values not known (identity tables have no such row).

Runs in exported bundles too: numpy and pyarrow only.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import decimals, distinct
from .hashes import hash_bytes, hash_number, hash_numbers, hash_strings
from .plain_values import RowsByValue, Undecided, check_text, plain_number, plain_text
from .values import Kind, Place, numbers, plain, shown, strings, whole

NullPolicy = Literal["token", "oov", "error"]
_MISSING = b"trm-missing"
_REMEMBERED_HASHES = 1 << 16  # per table; of texts no longer than this, so that callers cannot fill the memory
_REMEMBERED_CHARACTERS = 64
_MOST_PER_VALUE = 4  # a table of all numbers up to the largest is made for this many numbers per value looked up, at most


@dataclass(frozen=True, eq=False, kw_only=True)
class IdTransform:
    """Raw values to table rows.

    Args:
        null: `token` gives missing values a row of their own, `oov` row 0, `error` refuses them.
    """

    null: NullPolicy

    @property
    def num_rows(self) -> int:
        raise NotImplementedError

    @property
    def null_id(self) -> int:
        return 0

    def _lookup(self, values: pa.Array, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """ids [N] int32 (anything where missing); missing [N] bool."""
        raise NotImplementedError

    @property
    def reads_text(self) -> bool:
        """Whether values are compared as text; else as numbers."""
        return False

    def _find(self, value: Any) -> int | None:
        """What `_lookup` makes of one plain value; None where it is missing."""
        raise NotImplementedError

    @cached_property
    def known(self) -> RowsByValue:
        """A plain value to what `encode` gives for a column of that value: `known[value]`.

        That raises `Undecided` where `encode` would refuse the value, and for values of unusual types, and TypeError for
        what has no hash.
        `known.get` knows only the values that were found before, and a vocabulary's own.
        """
        return RowsByValue(self._finder_of_plain_values())

    def _finder_of_plain_values(self) -> Callable[[Any], int]:
        find, null_id, refuses = self._find, self.null_id, self.null == "error"

        def row_of(value: Any) -> int:
            found = find(value)
            if found is None:
                if refuses:
                    raise Undecided
                return null_id
            return found

        return row_of

    def encode(self, values: pa.Array, place: Place) -> np.ndarray:
        """Rows [N] int32 of values [N], which may be dictionary-encoded.

        Raises:
            ValueError: for values that the transform cannot take, with file, column and row.
        """
        if (of_small := decimals.small(values)) and (found := self._rows_of_small(*of_small, place)) is not None:
            return found
        if self.reads_text and not pa.types.is_dictionary(values.type):
            values = distinct.encoded(values)
        if not pa.types.is_dictionary(values.type) or len(values.dictionary) > len(values):
            return self._encode_each(values, place)
        try:
            ids, missing = self._lookup(values.dictionary, place)
        except ValueError:  # a bad entry may be one that these rows do not use; if they do, this names the row
            return self._encode_each(values, place)
        if self.null == "error" and (missing.any() or values.indices.null_count):
            return self._encode_each(values, place)
        return distinct.look_up(values, np.where(missing, np.int32(self.null_id), ids), of_null=self.null_id)

    def _rows_of_small(self, values: np.ndarray, num_small: int, place: Place) -> np.ndarray | None:
        """Rows [N] int32 of whole numbers below `num_small` [N] int32; None where that is not the way to find them."""
        if num_small > len(self._by_number[0]):
            if num_small > _MOST_PER_VALUE * len(values):
                return None
            numbers = pa.array(np.arange(1 << num_small.bit_length(), dtype=np.int32))
            self._by_number[0] = self._lookup(numbers, place)[0]  # threads that do this at once find the same
        return distinct.look_up_numbers(values, self._by_number[0], of_null=0)

    @cached_property
    def _by_number(self) -> list[np.ndarray]:
        """One array: rows of the whole numbers from 0 on, as far as they were asked for."""
        return [np.empty(0, np.int32)]

    def _encode_each(self, values: pa.Array, place: Place) -> np.ndarray:
        return self._with_null(*self._lookup(plain(values), place), place)

    def _with_null(self, ids: np.ndarray, missing: np.ndarray, place: Place) -> np.ndarray:
        if missing.any():
            if self.null == "error":
                raise place.error(int(missing.argmax()), "the value is missing, and ids.null is error; clean the data or allow it")
            ids = np.where(missing, np.int32(self.null_id), ids)
        return ids


@dataclass(frozen=True, eq=False, kw_only=True)
class Vocabulary(IdTransform):
    """Value i of `values` is row i + 1; any other value is row 0. `values` holds a null where missing values have a row.

    Args:
        values: distinct int64, float64 or string values.
    """

    values: pa.Array

    @property
    def num_rows(self) -> int:
        return len(self.values) + 1

    @cached_property
    def null_id(self) -> int:
        position = pc.index(self.values.is_null(), True).as_py()
        return position + 1

    @property
    def kind(self) -> Kind:
        return "string" if pa.types.is_string(self.values.type) else "number"

    def _lookup(self, values: pa.Array, place: Place) -> tuple[np.ndarray, np.ndarray]:
        if self.kind == "string":
            text = strings(values, place)
            return self._find_strings(text), text.is_null().to_numpy(zero_copy_only=False)
        number, missing = numbers(values, place)
        if pa.types.is_floating(self.values.type):
            return self._find_numbers(number.astype(np.float64)), missing
        integers, is_whole = whole(number)
        return np.where(is_whole, self._find_numbers(integers), np.int32(0)), missing

    def _find_strings(self, values: pa.Array) -> np.ndarray:
        if self._finder and (rows := self._finder.rows_of_texts(values)) is not None:
            return rows
        if len(values) * 16 < len(self.values):  # index_in hashes the whole vocabulary at every call
            coded = values.dictionary_encode()
            found = self.known
            ids = np.fromiter((found[v] for v in coded.dictionary.to_pylist()), np.int32, len(coded.dictionary))
            return np.append(ids, np.int32(0))[coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        position = pc.index_in(values, value_set=self.values)
        return position.fill_null(-1).to_numpy(zero_copy_only=False) + np.int32(1)

    @property
    def reads_text(self) -> bool:
        return self.kind == "string"

    @cached_property
    def known(self) -> RowsByValue:
        """See `IdTransform.known`. Of many values, those asked for: a dict of all would hold the interpreter at every load."""
        values = () if self._finder else zip(self.values.to_pylist(), range(1, len(self.values) + 1))
        return RowsByValue(self._finder_of_plain_values(), values)

    def _find(self, value: Any) -> int | None:
        if self.kind == "string":
            text = plain_text(value)
            return None if text is None else self._row_of(check_text(text))
        number = plain_number(value)
        if number is None:
            return None
        return self._row_of(float(number) if pa.types.is_floating(self.values.type) else number)

    def _row_of(self, value: str | int | float) -> int:
        if value in self.known or self._finder is None:
            return self.known.get(value, 0)
        row = self._finder.row_of(value)
        if row:
            self.known[value] = row
        return row

    @cached_property
    def _finder(self) -> distinct.Finder | None:
        return distinct.Finder.of(self.values)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        present = self.values.is_valid().to_numpy(zero_copy_only=False)
        keys = self.values.drop_null().to_numpy(zero_copy_only=False)
        order = np.argsort(keys, kind="stable")
        return keys[order], (np.flatnonzero(present)[order] + 1).astype(np.int32)

    @cached_property
    def _direct(self) -> np.ndarray | None:
        """Rows by `value - lowest`, where the integers lie close enough together for such a table."""
        keys, rows = self._sorted
        if keys.dtype != np.int64 or not len(keys) or int(keys[-1]) - int(keys[0]) > 4 * len(keys) + 1024:
            return None
        table = np.zeros(int(keys[-1]) - int(keys[0]) + 1, np.int32)
        table[keys - keys[0]] = rows
        return table

    def _find_numbers(self, values: np.ndarray) -> np.ndarray:
        keys, rows = self._sorted
        if not len(keys):
            return np.zeros(len(values), np.int32)
        if self._direct is not None:
            inside = (values >= keys[0]) & (values <= keys[-1])
            return np.where(inside, self._direct[np.where(inside, values, keys[0]) - keys[0]], np.int32(0))
        if self._finder and values.dtype == np.int64:
            return self._finder.rows_of_integers(values)
        at = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
        return np.where(keys[at] == values, rows[at], np.int32(0))


@dataclass(frozen=True, eq=False, kw_only=True)
class Hash(IdTransform):
    """Row 1 + hash(seed, value) mod buckets. A missing value is hashed as a token of its own, or is row 0 (`null: oov`)."""

    buckets: int
    seed: int
    kind: Kind

    @property
    def num_rows(self) -> int:
        return self.buckets + 1

    @property
    def null_id(self) -> int:
        return 1 + self.hash_of_missing % self.buckets if self.null == "token" else 0

    @property
    def hash_of_missing(self) -> int:
        return hash_bytes(b"", self.seed, _MISSING)

    @property
    def reads_text(self) -> bool:
        return self.kind == "string"

    def _find(self, value: Any) -> int | None:
        if self.kind == "number":
            number = plain_number(value)
            return None if number is None else self._remember(number, 1 + hash_number(number, self.seed) % self.buckets)
        text = plain_text(value)
        if text is None:
            return None
        row = 1 + hash_bytes(check_text(text).encode(), self.seed) % self.buckets
        return self._remember(text, row) if len(text) <= _REMEMBERED_CHARACTERS else row

    def _remember(self, value: Any, row: int) -> int:
        if len(self.known) >= _REMEMBERED_HASHES:
            self.known.clear()
        self.known[value] = row
        return row

    def _lookup(self, values: pa.Array, place: Place) -> tuple[np.ndarray, np.ndarray]:
        hashes, missing = self.hashes(values, place)
        return (hashes % np.uint64(self.buckets)).astype(np.int32) + np.int32(1), missing

    def hashes(self, values: pa.Array, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """hashes [N] uint64 (anything where missing); missing [N] bool."""
        if self.kind == "string":
            text = strings(values, place)
            return hash_strings(text, self.seed), text.is_null().to_numpy(zero_copy_only=False)
        number, missing = numbers(values, place)
        return hash_numbers(number, self.seed), missing


@dataclass(frozen=True, eq=False, kw_only=True)
class Buckets(IdTransform):
    """Row 1 + (number of boundaries <= value): b boundaries make b + 1 buckets. `null: token` adds one row after the last."""

    boundaries: tuple[float, ...]

    @property
    def num_rows(self) -> int:
        return len(self.boundaries) + 2 + (self.null == "token")

    @property
    def null_id(self) -> int:
        return len(self.boundaries) + 2 if self.null == "token" else 0

    def _find(self, value: Any) -> int | None:
        number = plain_number(value)
        return None if number is None else bisect_right(self.boundaries, float(number)) + 1

    def _lookup(self, values: pa.Array, place: Place) -> tuple[np.ndarray, np.ndarray]:
        number, missing = numbers(values, place)
        return (np.searchsorted(np.asarray(self.boundaries), number, side="right") + 1).astype(np.int32), missing


@dataclass(frozen=True, eq=False, kw_only=True)
class Identity(IdTransform):
    """The value is the row, 0 .. size - 1; anything else is refused."""

    size: int

    @property
    def num_rows(self) -> int:
        return self.size

    def _rows_of_small(self, values: np.ndarray, num_small: int, place: Place) -> np.ndarray | None:
        if num_small > self.size:
            return None
        return values if values.flags.writeable else values.copy()  # torch wants to be able to write

    def _find(self, value: Any) -> int | None:
        number = plain_number(value)
        if number is None:
            return None
        if 0 <= number < self.size and number == int(number):
            return int(number)
        raise Undecided

    def _lookup(self, values: pa.Array, place: Place) -> tuple[np.ndarray, np.ndarray]:
        number, missing = numbers(values, place)
        integers, is_whole = whole(number)
        bad = (~is_whole | (integers < 0) | (integers >= self.size)) & ~missing
        if bad.any():
            index = int(bad.argmax())
            allowed = f"ids: identity allows 0 .. {self.size - 1} (num_rows {self.size})"
            raise place.error(index, f"{shown(number[index].item())} is out of range; {allowed}")
        return integers.astype(np.int32), missing
