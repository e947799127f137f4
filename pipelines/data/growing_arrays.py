"""Arrays on the disk whose first axis grows, written past the page cache, with a checksum of what was written.

Pages of the page cache are fresh memory and one more copy, and must be written all the same before the array is safe. Here the disk
takes what it gets from memory that is used again.
"""

import errno
import io
import math
import mmap
import os
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import xxhash

from .checksums import HEADER_BYTES, HEADER_LAST, FileEntry
from .direct_files import set_direct
from .durable import naming
from .shards import NPY_HEADER_BYTES

# its halves are written while the disk reads, too: 512 KiB at a time were 0.9 GB/s then, and what prepare waited for
_MOST_BUFFER_BYTES = 1 << 22
_LEAST_BUFFER_BYTES = 1 << 17  # its half is a multiple of the blocks that direct writing wants
_ALL_BUFFERS_BYTES = 1 << 25


def buffers_for(num_arrays: int) -> list[mmap.mmap]:
    """A buffer for each of some arrays that are written side by side."""
    share = _ALL_BUFFERS_BYTES // max(num_arrays, 1)
    size = min(max(1 << share.bit_length() - 1, _LEAST_BUFFER_BYTES), _MOST_BUFFER_BYTES)
    return [mmap.mmap(-1, size) for _ in range(num_arrays)]


class GrowingArray:
    """An .npy file whose first axis grows. Arrays that fit into the buffer are written as any file is.

    Args:
        columns: of a matrix; None: the array has one axis.
        buffer: used until the array is closed.
        pool: writes one half of the buffer while the other one is filled; None: `append` does.
    """

    def __init__(
        self, path: Path, dtype: np.dtype, columns: int | None, *, buffer: mmap.mmap, pool: Executor | None = None
    ) -> None:
        self.path = path
        self.dtype = dtype
        self.tail = () if columns is None else (columns,)
        self.length = 0
        self._digest = xxhash.xxh3_128()
        self._half, self._other = np.split(np.frombuffer(buffer, np.uint8), 2)
        self._pool = pool
        self._under_way: Future[None] | None = None
        self._filled = self._hashed = NPY_HEADER_BYTES  # the header comes last: numpy pads it, whatever the length
        self._direct = False
        self._descriptor = -1
        with naming(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self._let_go()

    def append(self, values: np.ndarray) -> None:
        """Adds [n, ...] values.

        Raises:
            OSError: with the path, if the disk refuses these or earlier ones.
        """
        assert values.shape[1:] == self.tail and values.dtype == self.dtype, (self.path, values.shape, values.dtype)
        self.length += len(values)
        data, size = np.ascontiguousarray(values).reshape(-1).view(np.uint8), len(self._half)
        start = 0
        while start < len(data):
            stop = min(len(data), start + size - self._filled)
            self._half[self._filled : self._filled + stop - start] = data[start:stop]
            self._filled += stop - start
            start = stop
            if self._filled == size:
                self._hand_over()

    def _hand_over(self) -> None:
        """The full half goes to the disk while the other one is filled."""
        self._wait()
        full, hashed, self._filled, self._hashed = self._half, self._hashed, 0, 0
        if self._pool is None:
            self._write(full, hashed, direct=True)
            return
        self._under_way = self._pool.submit(self._write, full, hashed, direct=True)
        self._half, self._other = self._other, self._half

    def _wait(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _write(self, data: np.ndarray, hashed: int, *, direct: bool) -> None:
        with naming(self.path):
            self._set_direct(direct)
            self._digest.update(data[hashed:].data)
            written = 0
            while written < len(data):
                try:
                    written += os.write(self._descriptor, data[written:].data)
                except OSError as error:
                    if error.errno != errno.EINVAL or not self._direct:
                        raise
                    self._set_direct(False)  # the file system took a part, or wants larger blocks

    def _set_direct(self, direct: bool) -> None:
        """Past the page cache, where the file system can do that."""
        if direct != self._direct:
            self._direct = set_direct(self._descriptor, direct)

    def close(self) -> FileEntry:
        """Writes what is left, and the header; it is not yet forced to the disk.

        Raises:
            OSError: with the path, if the disk refuses.
        """
        header = io.BytesIO()
        kind = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length, *self.tail)}
        np.lib.format.write_array_header_1_0(header, kind)
        assert header.tell() == NPY_HEADER_BYTES == HEADER_BYTES, header.tell()
        self._wait()
        self._write(self._half[: self._filled], self._hashed, direct=False)  # no whole block
        with naming(self.path):
            os.pwrite(self._descriptor, header.getvalue(), 0)
            self._let_go()
        self._digest.update(header.getvalue())
        num_bytes = NPY_HEADER_BYTES + self.length * math.prod(self.tail) * self.dtype.itemsize
        return FileEntry(num_bytes, HEADER_LAST + self._digest.hexdigest())
