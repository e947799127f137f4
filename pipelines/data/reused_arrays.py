"""Memory that is used again: fresh memory costs a page fault per 4 KiB, which for batches of megabytes is most of the time.

Runs in exported bundles too: numpy and pyarrow only.
"""

import threading
import weakref
from collections import deque

import numpy as np
import pyarrow as pa

from . import huge_pages

ALIGNMENT_BYTES = 64  # a line of the processor's cache


class ArrayPool:
    """Byte arrays whose memory comes back when nothing refers to it any more (a view of a view keeps it, too). They begin at a
    multiple of ALIGNMENT_BYTES.

    Args:
        max_kept: blocks to hold for later use; more are given back to the system.
    """

    def __init__(self, *, max_kept: int) -> None:
        self._max_kept = max_kept
        self._kept: list[np.ndarray] = []
        self._lock = threading.Lock()
        self._returned: deque[np.ndarray] = deque()  # without the lock: by whichever thread drops the last reference

    def take(self, num_bytes: int) -> np.ndarray:
        """[num_bytes] uint8, with anything in it."""
        with self._lock:
            block = self._fitting(num_bytes)
        view = block[:num_bytes]
        weakref.finalize(view, self._returned.append, block).atexit = False
        return np.frombuffer(pa.py_buffer(view), np.uint8)  # a view of a numpy view would hold the block, and not the view

    def _fitting(self, num_bytes: int) -> np.ndarray:
        while self._returned:
            self._kept.append(self._returned.popleft())
        fitting = [i for i, block in enumerate(self._kept) if num_bytes <= len(block) <= 2 * num_bytes + 4096]
        if fitting:
            return self._kept.pop(min(fitting, key=lambda i: len(self._kept[i])))
        del self._kept[: -self._max_kept]
        room = huge_pages.empty(_rounded(num_bytes) + ALIGNMENT_BYTES)  # rounded up: batches of similar size share blocks
        first = -room.__array_interface__["data"][0] % ALIGNMENT_BYTES
        return room[first : first + len(room) - ALIGNMENT_BYTES]


def _rounded(num_bytes: int) -> int:
    step = 1 << max(12, num_bytes.bit_length() - 4)
    return -(-max(num_bytes, 1) // step) * step
