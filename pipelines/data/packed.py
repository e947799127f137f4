"""Whole numbers in as few bits as the largest of them takes, by plain C (packed.c): less for the disk to write and read."""

import ctypes
from functools import cache

import numpy as np

from .c_arguments import ADDRESS, COUNT, FLAG, int32_array
from .native import native_library

_BLOCK_VALUES = 512
_WORDS_PER_BIT = 16
UNPACKED_BITS = 32


@cache
def _library() -> ctypes.CDLL | None:
    library = native_library("packed", "numbers between the passes are kept in 32 bits")
    if library:
        library.bits_of.argtypes, library.bits_of.restype = (ADDRESS, COUNT), COUNT
        for function in (library.pack, library.unpack):
            function.argtypes, function.restype = (ADDRESS, COUNT, FLAG, ADDRESS), None
    return library


def packed(numbers: np.ndarray) -> tuple[np.ndarray, int]:
    """[n] int32 to [m] int32 and the bits of each number: 32 where nothing is gained (negative ones, no compiler)."""
    if (library := _library()) is None:
        return numbers, UNPACKED_BITS
    bits = library.bits_of(numbers.ctypes.data, len(numbers))
    if bits >= UNPACKED_BITS:
        return numbers, UNPACKED_BITS
    out = int32_array(num_words(len(numbers), bits))
    library.pack(numbers.ctypes.data, len(numbers), bits, out.ctypes.data)
    return out, bits


def num_words(num_values: int, bits: int) -> int:
    """How many int32 `packed` makes of so many numbers."""
    return num_values if bits == UNPACKED_BITS else -(-num_values // _BLOCK_VALUES) * _WORDS_PER_BIT * bits


def unpacked(words: np.ndarray, num_values: int, bits: int) -> np.ndarray:
    """[num_values] int32 of what `packed` gave."""
    library = _library()
    if bits == UNPACKED_BITS or library is None:
        return words
    out = int32_array(num_values)
    library.unpack(words.ctypes.data, num_values, bits, out.ctypes.data)
    return out
