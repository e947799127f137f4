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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Saved:
    """How far an array had grown, and what tells whether its file still holds that: XXH3-128 of it without the header."""

    length: int
    checksum: str


class GrowingArray:
    """An .npy file whose first axis grows. Arrays that fit into the buffer are written as any file is.

    Args:
        columns: of a matrix; None: the array has one axis.
        buffer: used until the array is closed.
        pool: writes one half of the buffer while the other one is filled; None: `append` does.
        behind: goes on behind what `saved` told of an earlier array at `path`; None: the file begins anew.

    Raises:
        OSError: with the path, if the disk refuses.
        ValueError: where the file is not as `saved` told; it is left as it is.
    """

    def __init__(
        self,
        path: Path,
        dtype: np.dtype,
        columns: int | None,
        *,
        buffer: mmap.mmap,
        pool: Executor | None = None,
        behind: "Saved | None" = None,
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
            flags = os.O_CREAT | os.O_TRUNC if behind is None else 0
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o666)
            if behind is not None:
                self._go_on_behind(behind)

    def _go_on_behind(self, saved: "Saved") -> None:
        self.length = saved.length
        num_bytes, size = self._num_bytes, len(self._half)
        for start in range(0, num_bytes, size):
            stop = min(num_bytes, start + size)
            self._set_direct(stop - start == size)
            self._read(self._half[: stop - start], start)
            self._filled = stop - start
            if self._filled == size:
                self._digest.update(self._half[self._hashed :].data)
                self._filled = self._hashed = 0
        if self._digest_so_far() != saved.checksum:
            raise ValueError(f"{self.path}: altered after it was saved")
        self._set_direct(False)
        os.ftruncate(self._descriptor, num_bytes)
        os.lseek(self._descriptor, num_bytes // size * size, os.SEEK_SET)

    def _read(self, data: np.ndarray, start: int) -> None:
        done = 0
        while done < len(data):
            try:
                more = os.preadv(self._descriptor, [data[done:].data], start + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                more = 0
            if not more and not self._direct:
                raise ValueError(f"{self.path}: ends at byte {start + done}")
            done += more
            self._set_direct(False)  # for what is left, if anything: the file system gave a part, or wants larger blocks

    @property
    def _num_bytes(self) -> int:
        return NPY_HEADER_BYTES + self.length * math.prod(self.tail) * self.dtype.itemsize

    def _digest_so_far(self) -> str:
        digest = self._digest.copy()
        digest.update(self._half[self._hashed : self._filled].data)
        return digest.hexdigest()

    def saved(self) -> "Saved":
        """Puts all that was appended into the file, which is not yet forced to the disk; more may be appended.

        Raises:
            OSError: with the path, if the disk refuses.
        """
        self._wait()
        with naming(self.path):
            self._set_direct(False)
            end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            written = 0
            while written < self._filled:  # written once more when the half is full
                written += os.pwrite(self._descriptor, self._half[written : self._filled].data, end + written)
        return Saved(self.length, self._digest_so_far())

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
        return FileEntry(self._num_bytes, HEADER_LAST + self._digest.hexdigest())
