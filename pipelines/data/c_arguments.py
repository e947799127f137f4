"""Arrow columns as arguments of our C (pieces.c, decimals.c), and memory for what it writes.

Runs in exported bundles too: numpy and pyarrow only.
"""

import ctypes

import numpy as np
import pyarrow as pa

from .reused_arrays import ArrayPool

ADDRESS, COUNT, FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
TEXTS = (ADDRESS, COUNT, ADDRESS, FLAG)
"""Types of what `texts` gives: data, its bytes, offsets, whether these are of 64 bits."""
MOST_BYTES = 2**31 - 1
_POOL = ArrayPool(max_kept=8)
_LEAST_POOLED = 1 << 16  # fewer cost no page faults

Texts = tuple[int | None, int, int | None, int]


def texts(column: pa.Array, *, least_bytes: int) -> Texts | None:
    """A text column; None for other types, and for too few and too many bytes."""
    if not (pa.types.is_large_string(column.type) or pa.types.is_string(column.type)):
        return None
    data = column.buffers()[2]
    return addresses(column) if data is not None and least_bytes <= data.size <= MOST_BYTES else None


def addresses(column: pa.Array) -> Texts:
    """`texts` of what is known to be text."""
    _, offsets, data = column.buffers()
    wide = pa.types.is_large_string(column.type)
    start = None if offsets is None else offsets.address + column.offset * (8 if wide else 4)
    return (None if data is None else data.address), (0 if data is None else data.size), start, int(wide)


def validity(column: pa.Array) -> tuple[int | None, int]:
    """Address of the bits that say which values are there, or None, and the first bit."""
    bits = column.buffers()[0] if column.null_count else None
    return (bits.address if bits else None), column.offset


def most_pieces(column: pa.Array) -> int:
    """How many pieces that are not empty a text column can have."""
    if not len(column):
        return 0
    kind = np.int64 if pa.types.is_large_string(column.type) else np.int32
    offsets = np.frombuffer(column.buffers()[1], kind)[column.offset : column.offset + len(column) + 1]
    return (int(offsets[-1]) - int(offsets[0])) // 2 + len(column) + 1


def int32_array(count: int) -> np.ndarray:
    """[count] int32 with anything in it; large ones in memory that was used before."""
    return _POOL.take(4 * count).view(np.int32) if count >= _LEAST_POOLED else np.empty(count, np.int32)
