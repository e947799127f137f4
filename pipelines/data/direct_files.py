"""Files written and read past the page cache (O_DIRECT): its pages are fresh memory, and one more copy.

So the disk moves whole blocks, from and to memory that begins at a block. What lies behind the last whole block goes through the
page cache, and so does everything else where the file system knows no other way or the memory begins elsewhere.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .durable import naming

BLOCK_BYTES = 4096
_MOST_BYTES = 1 << 20  # of one call: a disk takes turns between calls, and what others write would wait for 16 MiB of reading


def set_direct(descriptor: int, direct: bool) -> bool:
    """Past the page cache from now on, or through it. Returns which: not every file system can pass it by."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return direct


def write(path: Path, data: np.ndarray, rest: bytes) -> None:
    """A new file of `data` [n] uint8 and `rest` behind it.

    Raises:
        OSError: with the path, if the disk refuses.
    """
    with naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            _in_blocks(descriptor, data, lambda part, at: os.pwrite(descriptor, part, at))
            _all(memoryview(rest), lambda part, at: os.pwrite(descriptor, part, len(data) + at))
        finally:
            os.close(descriptor)


def read(path: Path, into: np.ndarray, *, num_direct: int) -> None:
    """Fills `into` [n] uint8 with the first n bytes of a file.

    Args:
        num_direct: so many of them were the `data` of `write`; the others are in the page cache.

    Raises:
        OSError: with the path, if the disk refuses, or the file is shorter.
    """
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _in_blocks(descriptor, into[:num_direct], lambda part, at: os.preadv(descriptor, [part], at))
            _all(into[num_direct:].data, lambda part, at: os.preadv(descriptor, [part], num_direct + at))
        finally:
            os.close(descriptor)


def _in_blocks(descriptor: int, data: np.ndarray, move: Callable[[memoryview, int], int]) -> None:
    """Moves whole blocks past the page cache, as far as that goes, and the others through it."""
    done, num_direct = 0, len(data) // BLOCK_BYTES * BLOCK_BYTES
    aligned = data.__array_interface__["data"][0] % BLOCK_BYTES == 0
    if num_direct and aligned and set_direct(descriptor, True):
        try:
            while done < num_direct and done % BLOCK_BYTES == 0:
                done += _some(data[done : min(num_direct, done + _MOST_BYTES)].data, done, move)
        except OSError as error:
            if error.errno != errno.EINVAL:  # it wants larger blocks
                raise
        set_direct(descriptor, False)
    _all(data[done:].data, lambda part, at: move(part, done + at))


def _all(data: memoryview, move: Callable[[memoryview, int], int]) -> None:
    done = 0
    while done < len(data):
        done += _some(data[done : done + _MOST_BYTES], done, move)


def _some(part: memoryview, at: int, move: Callable[[memoryview, int], int]) -> int:
    if not (moved := move(part, at)):
        raise OSError(errno.EIO, "the file ends too early")
    return moved
