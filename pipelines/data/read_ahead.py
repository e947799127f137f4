"""Producing the next items in a thread while the current one is used."""

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.1  # how long a producer blocked on a full queue takes to notice that its consumer is gone


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    pass


def read_ahead(produce: Callable[[], Generator[T, None, None]], *, depth: int, name: str) -> Generator[T, None, None]:
    """Items of `produce()`, made by a thread that stays at most `depth` items ahead.

    The thread starts with the first `next`. An exception in it is raised here, at its place in the stream. Closing the
    iterator (or dropping it) stops the thread.

    Args:
        depth: items to hold ready.
        name: of the thread.
    """
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            with closing(produce()) as items:
                for item in items:
                    if not put(item):
                        return
            put(_End())
        except BaseException as error:  # handed to the consumer, whatever it is
            put(_Failure(error))

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stop.set()
        thread.join()
