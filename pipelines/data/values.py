"""Raw Arrow columns as plain values: where a value came from, which kind it is, lists and separated text taken apart.

Runs in exported bundles too: numpy and pyarrow only.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import decimals, distinct

Kind = Literal["number", "string"]
_MOST_EXACT = float(2**63)


class RefusedValue(ValueError):
    """A value, or a whole column, that cannot be taken.

    Args:
        column: the raw column.
        row: 0-based number of the row, as `Place` counts them; None where it is the whole column.
    """

    def __init__(self, reason: str, column: str = "", row: int | None = None) -> None:
        super().__init__(reason)
        self.column = column
        self.row = row


def of_feature(error: ValueError, feature: str) -> ValueError:
    """The error with the feature's name before it."""
    text = f"feature {feature!r}: {error}"
    return RefusedValue(text, error.column, error.row) if isinstance(error, RefusedValue) else ValueError(text)


@dataclass(frozen=True, eq=False)
class Place:
    """Where values came from, so that an error names file, column and row.

    Args:
        where: the file, or empty.
        column: the raw column.
        first_row: 0-based number in the file of the first row at hand.
        rows: [N] 0-based numbers in the file, for rows that do not follow one another.
        offsets: [N + 1] for values of lists: value i belongs to row r where offsets[r] <= i < offsets[r + 1].
    """

    where: str
    column: str
    first_row: int = 0
    rows: np.ndarray | None = None
    offsets: np.ndarray | None = None

    def error(self, index: int, text: str) -> RefusedValue:
        """An error about value `index`. Rows are told as 1-based data rows: a header line is not counted."""
        row = index if self.offsets is None else int(np.searchsorted(self.offsets, index, side="right")) - 1
        row = self.first_row + row if self.rows is None else int(self.rows[row])
        return RefusedValue(f"{self.where or 'input'}: column {self.column!r}, data row {row + 1}: {text}", self.column, row)

    def column_error(self, text: str) -> RefusedValue:
        """An error about the whole column."""
        return RefusedValue(f"{self.where or 'input'}: column {self.column!r}: {text}", self.column)

    def with_offsets(self, offsets: np.ndarray) -> "Place":
        return replace(self, offsets=offsets)


def is_list(type: pa.DataType) -> bool:
    return bool(pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type) or _is_list_view(type))


def is_cut(type: pa.DataType) -> bool:
    """Separated text that was cut up before (see pieces.py): lists as `explode` gives them."""
    return bool(pa.types.is_large_list(type) and (pa.types.is_dictionary(type.value_type) or pa.types.is_int32(type.value_type)))


def _is_list_view(type: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(type) or pa.types.is_large_list_view(type))


def is_text(type: pa.DataType) -> bool:
    """Text, or bytes, which are read as UTF-8 text (old Spark writes text so)."""
    if pa.types.is_dictionary(type):
        return is_text(type.value_type)
    test = pa.types
    return bool(
        test.is_string(type) or test.is_large_string(type) or test.is_string_view(type)
        or test.is_binary(type) or test.is_large_binary(type)
    )  # fmt: skip


def kind_of(type: pa.DataType) -> Kind | None:
    """The kind of single values of an Arrow type; None for an all-null column.

    Booleans are the numbers 0 and 1; dates and times are their ISO text.

    Raises:
        ValueError: for lists, structs and other types that cannot be one id.
    """
    if pa.types.is_dictionary(type):
        return kind_of(type.value_type)
    if pa.types.is_null(type):
        return None
    if is_text(type) or pa.types.is_date(type) or pa.types.is_timestamp(type) or pa.types.is_time(type):
        return "string"
    if pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_boolean(type) or pa.types.is_decimal(type):
        return "number"
    raise ValueError(f"a column of type {type} cannot be read; numbers, text, dates and lists can")


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column of a table or of a record batch, in one piece."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 0:
        return pa.array([], column.type)
    return pa.concat_arrays(column.unify_dictionaries().chunks)


def plain(values: pa.Array) -> pa.Array:
    """The values of a dictionary-encoded array, one by one; any other array as it is."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def cast(values: pa.Array, type: pa.DataType, place: Place, what: str) -> pa.Array:
    """A checked cast.

    Raises:
        ValueError: that names the first value that does not fit, and `what` was expected.
    """
    try:
        return values.cast(type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        index = first_failure(values, lambda part: _casts(part, type))
        raise place.error(index, f"{shown(values[index])} is not {what}") from None


def _casts(values: pa.Array, type: pa.DataType) -> bool:
    try:
        values.cast(type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def first_failure(values: pa.Array, works: Callable[[pa.Array], bool]) -> int:
    """The first index whose value makes `works` false, by halving (the whole array is known to fail)."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        if works(values.slice(low, middle - low)):
            low = middle
        else:
            high = middle
    return low


def shown(value: Any) -> str:
    try:
        text = repr(value.as_py() if isinstance(value, pa.Scalar) else value)
    except UnicodeDecodeError:
        text = repr(value.as_buffer().to_pybytes())
    return text if len(text) <= 60 else text[:57] + "..."


def numbers(values: pa.Array, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, and which of them are missing (null or NaN).

    Returns:
        [N] int64, or float64 when the column holds floats or text with fractions; [N] bool.

    Raises:
        ValueError: for text that is not a number, and unsigned numbers above 2^63 - 1.
    """
    values = plain(values)
    type = values.type
    if pa.types.is_null(type):
        return np.zeros(len(values), np.int64), np.ones(len(values), bool)
    if is_text(type):
        text = strings(values, place)
        number = text.cast(pa.int64()) if _casts(text, pa.int64()) else cast(text, pa.float64(), place, "a number")
    elif pa.types.is_floating(type) or (pa.types.is_decimal(type) and type.scale > 0):
        number = values.cast(pa.float64())
    elif kind_of(type) == "number":
        number = cast(values, pa.int64(), place, "a 64-bit signed integer; store such ids as text")
    else:
        raise place.column_error(f"the column has type {type}, where numbers are needed")
    missing = number.is_null().to_numpy(zero_copy_only=False)
    out = (number.fill_null(0) if number.null_count else number).to_numpy(zero_copy_only=False)
    if out.dtype == np.float64:
        missing = missing | np.isnan(out)
        out = np.where(missing, 0.0, out + 0.0)  # + 0.0 makes -0.0 the same value as 0.0
    return out, missing


def whole(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Floats as integers, and which of them are integers: 7.0 is the integer 7, as pandas writes integers beside nulls."""
    if values.dtype == np.int64:
        return values, np.ones(len(values), bool)
    fits = np.abs(values) < _MOST_EXACT
    integers = np.where(fits, values, 0.0).astype(np.int64)
    return integers, fits & (integers == values)


def strings(values: pa.Array, place: Place) -> pa.Array:
    """Values as text (UTF-8). A number becomes its shortest decimal text, 7.0 becomes "7"; NaN becomes null."""
    values = plain(values)
    type = values.type
    if pa.types.is_string(type):
        return values
    if pa.types.is_null(type):
        return values.cast(pa.string())
    if is_text(type):
        return cast(values, pa.string(), place, "UTF-8 text")
    if kind_of(type) == "string":
        return values.cast(pa.string())
    number, missing = numbers(values, place)
    integers, is_whole = whole(number)
    text = pa.array(integers, mask=missing).cast(pa.string())
    if is_whole.all():
        return text
    return pc.if_else(pa.array(is_whole), text, pa.array(number, mask=missing).cast(pa.string()))


def explode(column: pa.Array, *, separator: str, max_len: int, keep: Literal["first", "last"]) -> tuple[pa.Array, np.ndarray]:
    """Lists, or text cut at `separator`, as flat values and offsets; at most `max_len` of each row, from the end that `keep` says.

    A null row is an empty row. Empty pieces of separated text are dropped; nulls inside lists stay.

    Returns:
        [n] values, dictionary-encoded where that is fast, or int32 for the text of small whole numbers; [N + 1] int64 offsets.
    """
    if separator:
        column = plain(column)
        for split in (decimals.split, distinct.split):
            if pieces := split(column, separator=separator, max_len=max_len, keep=keep):
                return pieces
    lists = pc.split_pattern(column, separator) if separator else column
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = pc.list_flatten(lists)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if separator:
        full = pc.not_equal(values, pa.scalar("", values.type))
        num_full = np.concatenate([[0], np.cumsum(full.to_numpy(zero_copy_only=False))])
        if num_full[-1] < len(values):
            values, offsets = values.filter(full), num_full[offsets]
    lengths = np.diff(offsets)
    if len(lengths) and lengths.max() > max_len:
        first = offsets[:-1] if keep == "first" else np.maximum(offsets[:-1], offsets[1:] - max_len)
        kept = np.concatenate([[0], np.cumsum(np.minimum(lengths, max_len))])
        index = np.arange(kept[-1]) + np.repeat(first - kept[:-1], np.diff(kept))
        values, offsets = values.take(pa.array(index)), kept
    return values, offsets
