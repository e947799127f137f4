"""Restarted processes find each other, not the names that dead ones left; a process that waits too long ends itself."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from torchrec_models.pipelines.rendezvous import _announce, _ask


def test_every_attempt_agrees_on_a_name_of_its_own() -> None:
    store = dist.HashStore()
    names = []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            peers = [pool.submit(_ask, store, rank, timeout=timedelta(seconds=20)) for rank in (1, 2)]
            time.sleep(0.1)  # after the first attempt, both peers read the old name before rank 0 speaks
            first = pool.submit(_announce, store, 3).result(20)
            assert [peer.result(20) for peer in peers] == [first, first]
        names.append(first)
    assert len(set(names)) == 3


def test_a_peer_without_a_first_process_gives_up() -> None:
    store = dist.HashStore()
    store.set("attempt", "of the dead")
    with pytest.raises(dist.DistStoreError, match="rank 0 did not answer rank 1 within 0 s"):
        _ask(store, 1, timeout=timedelta(seconds=0.1))


WATCHED = """
import time
from torchrec_models.pipelines.distributed import Watchdog
dog = Watchdog(0.3)
time.sleep(0.6); print("not watched before the first step", flush=True)
dog.feed(); dog.pause(); time.sleep(0.9); print("alive in a pause", flush=True)
dog.feed(); time.sleep(0.1); dog.feed(); time.sleep(0.2); print("alive while fed", flush=True)
time.sleep(60)
"""


def test_the_watchdog_ends_a_process_whose_step_outlives_its_limit() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, timeout=50)
    assert done.returncode == 75, done.stderr
    assert done.stdout.splitlines() == ["not watched before the first step", "alive in a pause", "alive while fed"]
    assert "no step finished within 0 s: a peer is gone or stuck" in done.stderr
