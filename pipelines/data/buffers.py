"""Memory that is used again, as tensors (see reused_arrays.py); page-locked where a GPU reads it."""

import torch
from torch import Tensor

from .reused_arrays import ArrayPool


class BufferPool:
    """Byte tensors whose memory comes back when no tensor refers to it any more (a view of a view keeps it, too).

    Args:
        max_kept: blocks to hold for later use; more are given back to the system.
        pin_memory: page-locked memory; torch's own allocator then keeps the blocks, and waits for copies to the GPU that use them.
    """

    def __init__(self, *, max_kept: int, pin_memory: bool = False) -> None:
        self._arrays = ArrayPool(max_kept=max_kept)
        self._pin_memory = pin_memory

    def take(self, num_bytes: int) -> Tensor:
        """[num_bytes] uint8, with anything in it."""
        if self._pin_memory:
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(self._arrays.take(num_bytes))  # holds the array until its storage is freed
