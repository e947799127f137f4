"""Arrays that grow on the disk are the files numpy would have written, with the checksum that is found when they are read."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torchrec_models.pipelines.data.checksums import FileEntry, checksum_of_file
from torchrec_models.pipelines.data.growing_arrays import GrowingArray, buffers_for

KINDS = [(np.float32, 7), (np.int32, None), (np.int64, 0)]


def written(path: Path, values: np.ndarray, cuts: list[int]) -> FileEntry:
    columns = values.shape[1] if values.ndim == 2 else None
    array = GrowingArray(path, values.dtype, columns, buffer=buffers_for(200)[0])
    for part in np.split(values, cuts):
        array.append(part)
    return array.close()


@pytest.mark.parametrize(("dtype", "columns"), KINDS)
@pytest.mark.parametrize("length", [0, 100, (2**16 - 128) // 4, 2**16, 300_001])
def test_the_file_is_numpys(tmp_path: Path, dtype: type, columns: int | None, length: int) -> None:
    shape = (length,) if columns is None else (length, columns)
    values = (np.random.default_rng(3).random(shape) * 1000).astype(dtype)
    entry = written(tmp_path / "by_us.npy", values, [length // 3, length // 3, length // 2])
    np.save(tmp_path / "by_numpy.npy", values)
    assert (tmp_path / "by_us.npy").read_bytes() == (tmp_path / "by_numpy.npy").read_bytes()
    entry.check(tmp_path / "by_us.npy")
    assert entry == written(tmp_path / "again.npy", values, [length - length // 5])


def test_the_checksum_covers_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    entry = written(path, np.arange(50_000), [])
    assert entry.checksum == checksum_of_file(path, like=entry.checksum)
    for at in (9, 127, 128, 65_536, entry.bytes - 1):
        whole = path.read_bytes()
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="altered after it was prepared"):
            entry.check(path)
        path.write_bytes(whole)
    entry.check(path)


@pytest.mark.parametrize("refused", ["flag", "write", "half"])
def test_where_the_page_cache_cannot_be_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """A file system without direct writing, one that wants larger blocks, and one that takes only a part."""
    values = np.arange(100_000)
    expected = written(tmp_path / "a.npy", values, [])
    real_fcntl, real_write, num_refused = fcntl.fcntl, os.write, [0]

    def set_flag(descriptor: int, command: int, argument: int = 0) -> int:
        if refused == "flag" and command == fcntl.F_SETFL and argument & os.O_DIRECT:
            num_refused[0] += 1
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_fcntl(descriptor, command, argument)

    def write(descriptor: int, data: Any) -> int:
        direct = real_fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
        if refused != "flag" and direct:
            num_refused[0] += 1
            if refused == "half" and len(data) == 2**16:
                return real_write(descriptor, data[: 2**15])
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(descriptor, data)

    monkeypatch.setattr(fcntl, "fcntl", set_flag)
    monkeypatch.setattr(os, "write", write)
    assert written(tmp_path / "b.npy", values, []) == expected
    assert num_refused[0] and (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_a_full_disk_is_told_with_the_path() -> None:
    array = GrowingArray(Path("/dev/full"), np.dtype(np.int64), None, buffer=buffers_for(1000)[0])
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        array.append(np.arange(100_000))


def test_buffers_share_what_there_is() -> None:
    assert [len(buffers_for(n)[0]) for n in (1, 7, 100, 5000)] == [2**22, 2**22, 2**18, 2**17]
