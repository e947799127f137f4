"""Memory asked for in huge pages: what it is, that it is asked for, and that it goes back."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from torchrec_models.pipelines.data import huge_pages
from torchrec_models.pipelines.data.huge_pages import HUGE_PAGE_BYTES

SMAPS = Path("/proc/self/smaps")
HAS_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
MIB = 1 << 20


def flags_at(address: int) -> set[str]:
    """What the system notes about the memory at an address ("hg": huge pages were asked for)."""
    is_there = False
    for line in SMAPS.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_there = int(found[1], 16) <= address < int(found[2], 16)
        elif is_there and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    return set()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("shape", [0, 7, (3, 5), (0, 4), 3 * MIB, (MIB + 1, 2), (2, 3, 999_983)])
@pytest.mark.parametrize("dtype", ["u1", "<i4", "<f4", "<i8"])
def test_it_is_an_array_as_numpy_makes_them(shape: int | tuple[int, ...], dtype: str) -> None:
    made, numpy_made = huge_pages.empty(shape, dtype), np.empty(shape, dtype)
    assert (made.shape, made.dtype, made.strides) == (numpy_made.shape, numpy_made.dtype, numpy_made.strides)
    assert made.flags.writeable and made.flags.c_contiguous and made.flags.aligned
    made[...] = 1
    assert (made == 1).all()


@pytest.mark.skipif(not HAS_HUGE_PAGES, reason="this system has no transparent huge pages")
def test_whole_pages_are_asked_for_and_no_others() -> None:
    large = huge_pages.empty(2 * HUGE_PAGE_BYTES + 4096)
    address = large.__array_interface__["data"][0]
    assert address % HUGE_PAGE_BYTES == 0
    assert "hg" in flags_at(address) and "hg" in flags_at(address + 2 * HUGE_PAGE_BYTES - 1)
    assert "hg" not in flags_at(address + 2 * HUGE_PAGE_BYTES)
    assert huge_pages.empty(HUGE_PAGE_BYTES - 1).base is None


@pytest.mark.skipif(not SMAPS.exists(), reason="this system does not say how much memory a process has")
def test_memory_goes_back_with_the_last_view() -> None:
    before = resident_bytes()
    views = []
    for _ in range(20):
        large = huge_pages.empty(64 * MIB)
        large.fill(1)
        views = [large[5:7].view(np.uint16)]
    assert 64 * MIB <= resident_bytes() - before < 130 * MIB
    assert views[0][0] == 0x0101
    del large, views
    assert resident_bytes() - before < 32 * MIB


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_its_own() -> None:
    large = huge_pages.empty(4 * MIB)
    large.fill(1)
    child = os.fork()
    if not child:
        large.fill(2)
        os._exit(0 if large[-1] == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (large == 1).all()


def test_without_huge_pages_it_is_numpy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_CAN_ASK", False)
    large = huge_pages.empty((4, MIB), np.float32)
    assert large.base is None and large.shape == (4, MIB)
