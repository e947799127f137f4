"""Separated text whose pieces are small whole numbers, as ids mostly are: plain C (decimals.c) reads them while it cuts, without
looking any text up. It gives [n] int32, which every reader of columns takes for the text of these numbers where it wants text.

Runs in exported bundles too: numpy and pyarrow only.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
import pyarrow as pa

from . import distinct
from .c_arguments import ADDRESS, COUNT, FLAG, TEXTS, int32_array, most_pieces, texts, validity
from .native import native_library

_LEAST_BYTES = 1 << 12  # less is not worth a call: a request of a server never waits for a compiler
_MOST_VALUES = 2**31 - 1
_NO_MEMORY = -1
MOST_SMALL = 1 << 20
"""Tables by value are not made for larger ones."""


@cache
def _function() -> Callable[..., int] | None:
    library = native_library("decimals", "separated numbers are cut as any text")
    if library is None:
        return None
    function = library.split_decimals
    function.argtypes = (*TEXTS, ADDRESS, COUNT, COUNT, ctypes.c_char, COUNT, FLAG, ADDRESS, ADDRESS)
    function.restype = COUNT
    return function


def split(
    column: pa.Array, *, separator: str, max_len: int, keep: Literal["first", "last"]
) -> tuple[pa.Int32Array, np.ndarray] | None:
    """Text cut at a separator of one ASCII character, as `values.explode` does, where all pieces are whole numbers of up to 6
    digits as they are written in decimal: no sign, no zeros before them.

    Returns:
        [n] the numbers, and [N + 1] int64 offsets; None for other pieces, and where there is no compiler.
    """
    found = texts(column, least_bytes=_LEAST_BYTES)
    if found is None or len(separator) != 1 or not separator.isascii() or (function := _function()) is None:
        return None
    values, offsets = int32_array(most_pieces(column)), np.empty(len(column) + 1, np.int64)
    options = (separator.encode(), min(max_len, _MOST_VALUES), int(keep == "last"))
    total = function(*found, *validity(column), len(column), *options, values.ctypes.data, offsets.ctypes.data)
    if total == _NO_MEMORY:
        raise MemoryError
    return (pa.array(values[:total]), offsets) if total >= 0 else None


def small(values: pa.Array) -> tuple[np.ndarray, int] | None:
    """[N] int32 and one more than the largest, of an int32 column of small numbers that are not negative; None for any other."""
    if not pa.types.is_int32(values.type) or values.null_count or not len(values):
        return None
    numbers = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values)]
    most = int(numbers.view(np.uint32).max())  # negative ones are the largest so
    return (numbers, most + 1) if most < MOST_SMALL else None


def counted(values: pa.Array) -> tuple[pa.Int32Array, pa.Int64Array] | None:
    """The different values of a column that is `small`, and how often each stands there."""
    if (found := small(values)) is None:
        return None
    counts = distinct.count_numbers(*found)
    used = np.flatnonzero(counts)
    return pa.array(used.astype(np.int32)), pa.array(counts[used])
