"""Files past the page cache hold the bytes they were given, whatever the file system can do."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchrec_models.pipelines.data import direct_files, huge_pages
from torchrec_models.pipelines.data.direct_files import BLOCK_BYTES


def memory(num_bytes: int, *, begins_at_a_block: bool = True) -> np.ndarray:
    shift = 0 if begins_at_a_block else 8
    return huge_pages.empty(huge_pages.HUGE_PAGE_BYTES + num_bytes)[shift : shift + num_bytes]


def filled(num_bytes: int, *, begins_at_a_block: bool = True) -> np.ndarray:
    out = memory(num_bytes, begins_at_a_block=begins_at_a_block)
    out[:] = np.random.default_rng(num_bytes).integers(0, 256, num_bytes, np.uint8)
    return out


def read_back(path: Path, *, num_direct: int, begins_at_a_block: bool = True) -> bytes:
    into = memory(path.stat().st_size, begins_at_a_block=begins_at_a_block)
    direct_files.read(path, into, num_direct=num_direct)
    return into.tobytes()


@pytest.mark.parametrize("begins_at_a_block", [True, False])
@pytest.mark.parametrize("num_bytes", [0, 5, BLOCK_BYTES, 3 * BLOCK_BYTES + 17])
@pytest.mark.parametrize("rest", [b"", b"behind it" * 1000])
def test_what_is_written_is_read(tmp_path: Path, num_bytes: int, rest: bytes, begins_at_a_block: bool) -> None:
    data, path = filled(num_bytes, begins_at_a_block=begins_at_a_block), tmp_path / "file"
    path.write_bytes(b"an older and longer file" * 1000)
    direct_files.write(path, data, rest)
    assert path.read_bytes() == data.tobytes() + rest
    assert read_back(path, num_direct=num_bytes, begins_at_a_block=begins_at_a_block) == data.tobytes() + rest


@pytest.mark.parametrize("refused", ["flag", "write", "half"])
def test_where_the_page_cache_cannot_be_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """A file system without direct files, one that wants larger blocks, and one that moves only a part of a block."""
    data, path = filled(5 * BLOCK_BYTES + 3), tmp_path / "file"
    real_fcntl, real_write, real_read, num_refused = fcntl.fcntl, os.pwrite, os.preadv, [0]

    def is_direct(descriptor: int) -> bool:
        return bool(real_fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)

    def set_flag(descriptor: int, command: int, argument: int = 0) -> int:
        if refused == "flag" and command == fcntl.F_SETFL and argument & os.O_DIRECT:
            num_refused[0] += 1
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_fcntl(descriptor, command, argument)

    def moved(descriptor: int, data: Any, at: int, real: Any) -> int:
        if refused == "flag" or not is_direct(descriptor):
            return real(data, at)
        num_refused[0] += 1
        if refused == "half" and at == 0:
            set_flag(descriptor, fcntl.F_SETFL, 0)
            return real(data[: 2 * BLOCK_BYTES + 100], at)
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", set_flag)
    monkeypatch.setattr(os, "pwrite", lambda fd, part, at: moved(fd, part, at, lambda p, a: real_write(fd, p, a)))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: moved(fd, parts[0], at, lambda p, a: real_read(fd, [p], a)))
    direct_files.write(path, data, b"rest")
    assert num_refused[0] == 1 and path.read_bytes() == data.tobytes() + b"rest"
    assert read_back(path, num_direct=len(data)) == data.tobytes() + b"rest" and num_refused[0] == 2


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        direct_files.write(Path("/dev/full"), filled(2 * BLOCK_BYTES), b"")
    path = tmp_path / "short"
    path.write_bytes(b"short")
    with pytest.raises(OSError, match=r"the file ends too early: '.*short'"):
        direct_files.read(path, memory(BLOCK_BYTES), num_direct=BLOCK_BYTES)
