"""Memory that is used again: fresh memory costs a page fault per 4 KiB, which for batches of megabytes is most of the time."""

import threading
import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

ALIGNMENT_BYTES = 64


class BufferPool:
    """Byte tensors whose memory comes back when no tensor refers to it any more (a view of a view keeps it, too).

    Args:
        max_kept: blocks to hold for later use; more are given back to the system.
        pin_memory: page-locked memory; torch's own allocator then keeps the blocks, and waits for copies to the GPU that use them.
    """

    def __init__(self, *, max_kept: int, pin_memory: bool = False) -> None:
        self._max_kept = max_kept
        self._pin_memory = pin_memory
        self._kept: list[np.ndarray] = []
        self._lock = threading.Lock()
        self._returned: deque[np.ndarray] = deque()  # without the lock: by whichever thread drops the last tensor

    def take(self, num_bytes: int) -> Tensor:
        """[num_bytes] uint8, with anything in it."""
        if self._pin_memory:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        with self._lock:  # two epochs of one loader may be under way
            block = self._fitting(num_bytes)
        view = block[:num_bytes]
        weakref.finalize(view, self._returned.append, block).atexit = False
        return torch.from_numpy(view)  # holds the view until its storage is freed

    def _fitting(self, num_bytes: int) -> np.ndarray:
        while self._returned:
            self._kept.append(self._returned.popleft())
        fitting = [i for i, block in enumerate(self._kept) if num_bytes <= len(block) <= 2 * num_bytes + 4096]
        if fitting:
            return self._kept.pop(min(fitting, key=lambda i: len(self._kept[i])))
        del self._kept[: -self._max_kept]
        return np.empty(_rounded(num_bytes), np.uint8)  # rounded up: batches of similar size share blocks


def _rounded(num_bytes: int) -> int:
    step = 1 << max(12, num_bytes.bit_length() - 4)
    return -(-max(num_bytes, 1) // step) * step
