"""Columns as distinct values and numbers of them, by plain C (pieces.c): a text is looked at once, as bytes, never as an object.

Everything here has a twin in pyarrow that gives the same values more slowly; `None` says that the caller is to use that. Runs in
exported bundles too: numpy and pyarrow only.
"""

import ctypes
from functools import cache
from typing import Literal

import numpy as np
import pyarrow as pa

from .c_arguments import ADDRESS, COUNT, FLAG, MOST_BYTES, TEXTS, Texts, addresses, int32_array, most_pieces, texts, validity
from .native import native_library

_LEAST_BYTES = 1 << 12  # less is not worth a call: a request of a server never waits for a compiler
_MOST_VALUES = 2**31 - 1
_ROW = ctypes.c_int32
_FUNCTIONS: dict[str, tuple[tuple, object]] = {
    "distinct_new": ((), ADDRESS),
    "distinct_free": ((ADDRESS,), None),
    "distinct_count": ((ADDRESS,), COUNT),
    "distinct_text_bytes": ((ADDRESS,), COUNT),
    "distinct_texts": ((ADDRESS, ADDRESS, ADDRESS), None),
    "distinct_integers": ((ADDRESS, ADDRESS), None),
    "distinct_split": (
        (ADDRESS, *TEXTS, ADDRESS, COUNT, COUNT, ctypes.c_char, COUNT, FLAG, ADDRESS, ADDRESS),
        COUNT,
    ),
    "distinct_of_texts": ((ADDRESS, *TEXTS, ADDRESS, COUNT, COUNT, ADDRESS), COUNT),
    "distinct_of_integers": ((ADDRESS, ADDRESS, ADDRESS, COUNT, COUNT, ADDRESS), COUNT),
    "find_texts": ((ADDRESS, *TEXTS, COUNT, _ROW, ADDRESS), None),
    "find_integers": ((ADDRESS, ADDRESS, COUNT, _ROW, ADDRESS), None),
    "count_numbers": ((ADDRESS, COUNT, ADDRESS), None),
    "add_counts": ((ADDRESS, COUNT, ADDRESS, ADDRESS), None),
    "look_up": ((ADDRESS, COUNT, ADDRESS, _ROW, ADDRESS), None),
}


@cache
def _library() -> ctypes.CDLL | None:
    library = native_library("pieces", "columns are taken apart by pyarrow")
    for name, (arguments, result) in _FUNCTIONS.items() if library else ():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


class _Table:
    """Distinct values in the order of their first appearance."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.handle = library.distinct_new()
        if not self.handle:
            raise MemoryError

    def __del__(self) -> None:
        if self.handle:
            self._library.distinct_free(self.handle)

    def __len__(self) -> int:
        return self._library.distinct_count(self.handle)

    def numbers_of(self, values: pa.Array) -> np.ndarray:
        """[n] int32 numbers of text or int64 values, -1 for null; new values get the next ones."""
        out, place = np.empty(len(values), np.int32), (*validity(values), len(values))
        if pa.types.is_int64(values.type):
            address = values.buffers()[1].address + 8 * values.offset if len(values) else None
            _checked(self._library.distinct_of_integers(self.handle, address, *place, out.ctypes.data))
        else:
            _checked(self._library.distinct_of_texts(self.handle, *addresses(values), *place, out.ctypes.data))
        return out

    def values(self, kind: pa.DataType) -> pa.Array:
        """The distinct values."""
        return self.integers() if pa.types.is_int64(kind) else self.texts()

    def texts(self) -> pa.Array:
        offsets = np.empty(len(self) + 1, np.int64)
        text = np.empty(self._library.distinct_text_bytes(self.handle), np.uint8)
        if len(text) > MOST_BYTES:
            size = f"{len(self):,} different texts take {len(text):,} bytes, more than 2 GiB"
            raise ValueError(f"{size}; give the column ids: {{by: hash}}")
        self._library.distinct_texts(self.handle, offsets.ctypes.data, text.ctypes.data)
        buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(text)]
        return pa.Array.from_buffers(pa.string(), len(self), buffers)

    def integers(self) -> pa.Array:
        values = np.empty(len(self), np.int64)
        self._library.distinct_integers(self.handle, values.ctypes.data)
        return pa.array(values)


def _checked(result: int) -> int:
    if result < 0:
        raise MemoryError
    return result


def _texts(column: pa.Array) -> Texts | None:
    return texts(column, least_bytes=_LEAST_BYTES)


def split(
    column: pa.Array, *, separator: str, max_len: int, keep: Literal["first", "last"]
) -> tuple[pa.DictionaryArray, np.ndarray] | None:
    """Text cut at a separator of one ASCII character, as `values.explode` does.

    Returns:
        [n] pieces, dictionary-encoded, and [N + 1] int64 offsets.
    """
    texts = _texts(column)
    if texts is None or len(separator) != 1 or not separator.isascii() or (library := _library()) is None:
        return None
    table = _Table(library)
    numbers, offsets = int32_array(most_pieces(column)), np.empty(len(column) + 1, np.int64)
    options = (separator.encode(), min(max_len, _MOST_VALUES), int(keep == "last"))
    total = library.distinct_split(
        table.handle, *texts, *validity(column), len(column), *options, numbers.ctypes.data, offsets.ctypes.data
    )
    return pa.DictionaryArray.from_arrays(pa.array(numbers[: _checked(total)]), table.texts(), safe=False), offsets


def encoded(values: pa.Array) -> pa.Array:
    """Text and 64-bit integers dictionary-encoded; any other array, and few values, as they are."""
    texts = _texts(values)
    integers = pa.types.is_int64(values.type) and values.nbytes >= _LEAST_BYTES
    if not (texts or integers) or (library := _library()) is None:
        return values
    table = _Table(library)
    numbers = table.numbers_of(values)
    found = pa.array(numbers, mask=numbers < 0 if values.null_count else None)
    return pa.DictionaryArray.from_arrays(found, table.values(values.type), safe=False)


def counts(values: pa.DictionaryArray) -> np.ndarray:
    """[D] int64: how often each value of the dictionary stands in the array."""
    return count_numbers(_numbers(values), len(values.dictionary))


def count_numbers(numbers: np.ndarray, num_values: int) -> np.ndarray:
    """[num_values] int64: how often each number from 0 on stands in `numbers` [N] int32."""
    out = np.zeros(num_values, np.int64)
    if (library := _library()) is None:
        np.add.at(out, numbers[numbers >= 0], 1)
    else:
        library.count_numbers(numbers.ctypes.data, len(numbers), out.ctypes.data)
    return out


def look_up(values: pa.DictionaryArray, of_value: np.ndarray, *, of_null: int) -> np.ndarray:
    """[N] int32: `of_value` [D] int32 of each value, `of_null` of nulls."""
    return look_up_numbers(_numbers(values), of_value, of_null=of_null)


def look_up_numbers(numbers: np.ndarray, of_value: np.ndarray, *, of_null: int) -> np.ndarray:
    """[N] int32: `of_value` [D] int32 of each of `numbers` [N] int32, `of_null` of -1."""
    if (library := _library()) is None:
        return np.append(of_value, np.int32(of_null))[numbers]
    out, of_value = int32_array(len(numbers)), np.ascontiguousarray(of_value, np.int32)
    library.look_up(numbers.ctypes.data, len(numbers), of_value.ctypes.data, of_null, out.ctypes.data)
    return out


def _numbers(values: pa.DictionaryArray) -> np.ndarray:
    """[N] int32 positions in the dictionary, -1 for null."""
    indices = values.indices if pa.types.is_int32(values.indices.type) else values.indices.cast(pa.int32())
    return (indices.fill_null(-1) if indices.null_count else indices).to_numpy()


class Finder:
    """Rows of values among many fixed ones. Threads may share it.

    Args:
        values: distinct text or int64; value i is row i + 1. A null among them is never found.
    """

    def __init__(self, library: ctypes.CDLL, values: pa.Array) -> None:
        self._library, self._table = library, _Table(library)
        self._rows = np.append(0, np.flatnonzero(values.is_valid()) + 1).astype(np.int32) if values.null_count else None
        self._table.numbers_of(values.drop_null())

    @classmethod
    def of(cls, values: pa.Array) -> "Finder | None":
        """None for other types, and for so few values that a table is not worth it."""
        known = _texts(values) or (pa.types.is_int64(values.type) and values.nbytes >= _LEAST_BYTES)
        library = _library() if known else None
        return cls(library, values) if library else None

    def rows_of_texts(self, values: pa.Array) -> np.ndarray | None:
        """[n] int32, 0 where not found and anything for null; None where pyarrow is to be used."""
        if (found := texts(values, least_bytes=0)) is None:
            return None
        out = np.empty(len(values), np.int32)
        self._library.find_texts(self._table.handle, *found, len(values), 1, out.ctypes.data)
        return out if self._rows is None else self._rows[out]

    def row_of(self, value: str | float) -> int:
        """The row of one text or whole number, 0 where not found."""
        out = _ROW()
        if isinstance(value, str):
            text = value.encode()
            ends = (_ROW * 2)(0, len(text))
            texts = (text, len(text), ctypes.addressof(ends), 0)
            self._library.find_texts(self._table.handle, *texts, 1, 1, ctypes.addressof(out))
        elif -(2**63) <= value < 2**63 and value == int(value):
            number = COUNT(int(value))
            self._library.find_integers(self._table.handle, ctypes.addressof(number), 1, 1, ctypes.addressof(out))
        return out.value if self._rows is None else int(self._rows[out.value])

    def rows_of_integers(self, values: np.ndarray) -> np.ndarray:
        """[n] int32 of [n] int64, 0 where not found."""
        out, values = np.empty(len(values), np.int32), np.ascontiguousarray(values, np.int64)
        self._library.find_integers(self._table.handle, values.ctypes.data, len(values), 1, out.ctypes.data)
        return out if self._rows is None else self._rows[out]


class Counter:
    """How often each text, or each int64, was seen."""

    def __init__(self, library: ctypes.CDLL, kind: pa.DataType) -> None:
        self._library, self._kind = library, kind
        self._table = _Table(library)
        self._totals = np.zeros(1024, np.int64)

    @classmethod
    def of(cls, kind: pa.DataType) -> "Counter | None":
        """None for values of other types."""
        known = pa.types.is_string(kind) or pa.types.is_int64(kind)
        library = _library() if known else None
        return cls(library, kind) if library else None

    def add(self, values: pa.Array, counts: pa.Array) -> None:
        """Values [n] without null, each seen as often as `counts` [n] int64 says."""
        numbers, more = self._table.numbers_of(values), np.ascontiguousarray(counts.to_numpy())
        missing = len(self._table) - len(self._totals)
        if missing > 0:
            self._totals = np.concatenate([self._totals, np.zeros(max(missing, len(self._totals)), np.int64)])
        self._library.add_counts(numbers.ctypes.data, len(numbers), more.ctypes.data, self._totals.ctypes.data)

    def table(self) -> pa.Table:
        """Columns `value` and `count`."""
        return pa.table({"value": self._table.values(self._kind), "count": pa.array(self._totals[: len(self._table)])})
