"""A key-value store that no earlier attempt of the job has written to.

torchelastic keeps its TCP store over a restart and hands it to the new processes without a prefix of their own
(`torch/distributed/rendezvous.py`, `_create_c10d_store`; pytorch/pytorch#135712). A process that looks before its peer has
written then reads the address of a dead one, and the group waits for a connection to nobody: on gloo every third or fourth
restart hung. The restart count cannot serve as a prefix, for with several nodes it grows only where a process failed.
"""

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_ASK_AGAIN_SECONDS = 0.02


def fresh_store(*, timeout: timedelta) -> tuple[dist.Store, int, int]:
    """(store, rank, world size) of the processes that torchrun describes in the environment.

    Rank 0 invents a name for this attempt and announces it. Another rank may read an old name first, so it asks with a word of
    its own and believes the name only once that word is answered, which no process of an earlier attempt can have done.

    Raises:
        torch.distributed.DistError: the peers did not come within `timeout`.
    """
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    name = _announce(store, world_size) if rank == 0 else _ask(store, rank, timeout=timeout)
    return dist.PrefixStore(name, store), rank, world_size


def _announce(store: dist.Store, world_size: int) -> str:
    name = uuid.uuid4().hex
    store.set("attempt", name)
    for peer in range(1, world_size):
        word = store.get(f"{name}/asks/{peer}").decode()  # waits for it
        store.set(f"{name}/answers/{word}", "")
    return name


def _ask(store: dist.Store, rank: int, *, timeout: timedelta) -> str:
    word = uuid.uuid4().hex
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        name = store.get("attempt").decode()
        store.set(f"{name}/asks/{rank}", word)
        if store.check([f"{name}/answers/{word}"]):
            return name
        time.sleep(_ASK_AGAIN_SECONDS)
    raise dist.DistStoreError(f"rank 0 did not answer rank {rank} within {timeout.total_seconds():.0f} s")
