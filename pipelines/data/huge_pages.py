"""Memory for large arrays that live long, asked for in pages of 2 MiB where the system has them (Linux: transparent huge pages).

2.3 kB pieces that lie anywhere in 1 GiB are copied 1.5 times as fast out of such pages as out of pages of 4 KiB, as the processor
then knows where every page lies, and memory is used for the first time 4 times as fast (measured on a virtual machine). numpy asks
for them too, from 4 MiB on, but for whatever memory malloc gives: where that was used before its pages stay small, and at both ends
they are. torch does not ask.

Runs in exported bundles too: numpy only.
"""

import mmap
from contextlib import suppress
from math import prod

import numpy as np
from numpy.typing import DTypeLike

HUGE_PAGE_BYTES = 2 << 20  # x86, and ARM with pages of 4 KiB; where they are larger, advice for less is ignored
_CAN_ASK = hasattr(mmap, "MADV_HUGEPAGE")


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = np.uint8) -> np.ndarray:
    """As `np.empty`. From 2 MiB on: memory of its own, which begins at a multiple of 2 MiB and is given back with the last view of
    it. Only whole pages are asked for, so no more memory is resident than is used.

    For arrays that are kept: each one costs a call of the system, and its pages are given anew.
    """
    kind, count = np.dtype(dtype), prod(shape if isinstance(shape, tuple) else (shape,))
    num_bytes = count * kind.itemsize
    if num_bytes < HUGE_PAGE_BYTES or not _CAN_ASK:
        return np.empty(shape, kind)
    memory = mmap.mmap(-1, num_bytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -np.frombuffer(memory, np.uint8).__array_interface__["data"][0] % HUGE_PAGE_BYTES
    with suppress(OSError):  # a kernel without them: pages of 4 KiB do as well, only slower
        memory.madvise(mmap.MADV_HUGEPAGE, start, num_bytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES)
    return np.frombuffer(memory, kind, count, start).reshape(shape)
