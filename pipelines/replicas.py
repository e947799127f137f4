"""Processes that make one thing together and share a file system, not tensors.

They agree on small values through a key-value store; large things go through files. A process that stops, or dies without a word,
makes the others stop, too.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from .rendezvous import fresh_store

T = TypeVar("T")
_ASK_AGAIN_SECONDS = 0.05
_BEAT_SECONDS = 1.0
_LEAVE_SECONDS = 10.0


class ReplicaFailed(RuntimeError):
    """Another process of the job stopped, and this one with it.

    Attributes:
        wrong_input: the other one stopped for a ValueError, which will come again.
    """

    def __init__(self, text: str, *, wrong_input: bool = False) -> None:
        super().__init__(text)
        self.wrong_input = wrong_input


class Replicas:
    """This process among its peers. All call `gather`, `from_first` and `barrier` in one order, with values that JSON can hold.

    Each of these, and `check`, raises ReplicaFailed when a peer has stopped.

    Args:
        store: None for a process that is alone.
        silence_seconds: after which a peer is held to be dead.
    """

    def __init__(self, store: dist.Store | None, rank: int, world_size: int, *, silence_seconds: float = 60.0) -> None:
        assert store is not None or world_size == 1, world_size
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._silence_beats = max(round(silence_seconds / _BEAT_SECONDS), 2)
        self._num_asked = 0
        self._failure: ReplicaFailed | None = None
        self._done = threading.Event()
        self._heart: threading.Thread | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def check(self) -> None:
        """Raises ReplicaFailed if a peer has stopped. Costs nothing."""
        if self._failure:
            raise self._failure

    def gather(self, what: str, value: T) -> list[T]:
        """Every process's value, in rank order, when all are there.

        Args:
            what: the value is, the same on all; for whoever reads the store.
        """
        if self._store is None:
            return [value]
        self._num_asked += 1
        names = [f"{self._num_asked}/{what}/{rank}" for rank in range(self.world_size)]
        self._store.set(names[self.rank], json.dumps(value))
        return [self._read(name) for name in names]

    def from_first(self, what: str, make: Callable[[], T]) -> T:
        """What `make` gives on the first process, which alone calls it."""
        if self._store is None:
            return make()
        self._num_asked += 1
        name = f"{self._num_asked}/{what}"
        if self.is_first:
            self._store.set(name, json.dumps(make()))
        return self._read(name)

    def barrier(self, what: str) -> None:
        """Waits until all have come here."""
        self.gather(what, None)

    def _read(self, name: str) -> Any:
        assert self._store is not None
        while not self._store.check([name]):
            self.check()
            time.sleep(_ASK_AGAIN_SECONDS)
        return json.loads(self._store.get(name))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Whatever is raised inside stops the peers."""
        if self._store is None:
            yield
            return
        self._heart = threading.Thread(target=self._beat, name="heart", daemon=True)
        self._heart.start()
        try:
            yield
        except BaseException as error:
            self.stop(error)
            with suppress(dist.DistError):  # the machine of the store is gone, and so is whoever was to be told
                if self.is_first:
                    self._store.set("over", "")
                else:  # a launcher kills the rest when the first of them exits: let the first process clear up
                    self._wait_for(["over"])
            raise
        self._leave()

    def stop(self, error: BaseException) -> None:
        """Tells the peers why this process stops; the first process then waits until they have stopped, too."""
        if self._store is None or self._done.is_set():
            return
        if not isinstance(error, ReplicaFailed):
            text = f"process {self.rank + 1} of {self.world_size} stopped: {error or type(error).__name__}"
            with suppress(dist.DistError):  # silence will tell them
                self._store.set("failure", json.dumps({"text": text, "wrong_input": isinstance(error, ValueError)}))
        self._leave()

    def _leave(self) -> None:
        """The first process goes last, for the store may live in it."""
        assert self._store is not None and self._heart is not None
        if self._done.is_set():
            return
        self._done.set()
        self._heart.join()
        with suppress(dist.DistError):
            self._store.set(f"left/{self.rank}", "")
            if self.is_first:
                self._wait_for([f"left/{rank}" for rank in range(self.world_size)])

    def _wait_for(self, names: list[str]) -> None:
        assert self._store is not None
        deadline = time.monotonic() + _LEAVE_SECONDS
        while not self._store.check(names) and time.monotonic() < deadline:
            time.sleep(_ASK_AGAIN_SECONDS)

    def _beat(self) -> None:
        """Tells the peers that this process lives, and listens to them. Silence is counted in own beats: a process that was itself
        stopped for a while must not think that the others were."""
        assert self._store is not None
        peers = [rank for rank in range(self.world_size) if rank != self.rank]
        last, silent, beat = dict.fromkeys(peers, b""), dict.fromkeys(peers, 0), 0
        while not self._done.is_set():
            try:
                self._store.set(f"alive/{self.rank}", str(beat))
                if self._store.check(["failure"]):
                    self._failure = ReplicaFailed(**json.loads(self._store.get("failure")))
                    return
                for rank in peers:
                    told = self._store.get(f"alive/{rank}") if self._store.check([f"alive/{rank}"]) else b""
                    silent[rank] = 0 if told != last[rank] or self._store.check([f"left/{rank}"]) else silent[rank] + 1
                    last[rank] = told
                    if silent[rank] > self._silence_beats:
                        seconds = round(self._silence_beats * _BEAT_SECONDS)
                        peer = f"process {rank + 1} of {self.world_size}"
                        self._failure = ReplicaFailed(f"{peer} has not been heard for {seconds} s: it died, or it hangs")
                        return
            except dist.DistError as error:
                self._failure = ReplicaFailed(f"the machine of process 1 of {self.world_size} cannot be reached: {error}")
                return
            beat += 1
            self._done.wait(_BEAT_SECONDS)


ALONE = Replicas(None, 0, 1)


def replicas(*, join_seconds: float = 300.0, silence_seconds: float = 60.0) -> Replicas:
    """The processes that torchrun describes in the environment; `ALONE` without it.

    Raises:
        torch.distributed.DistError: the peers did not come within `join_seconds`.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    store, rank, world_size = fresh_store(timeout=timedelta(seconds=join_seconds))
    return Replicas(store, rank, world_size, silence_seconds=silence_seconds) if world_size > 1 else ALONE
