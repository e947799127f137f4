"""Producing the next items in a thread while the current one is used."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.1  # how long a producer blocked on a full queue takes to notice that its consumer is gone


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    pass


class ReadAhead(Generic[T]):
    """Items of `produce()`, made by a thread that starts now and stays at most `depth` items ahead.

    An exception in it is raised here, at its place in the stream. Whoever does not use up all items must `close`.

    Args:
        depth: items to hold ready.
        name: of the thread.
    """

    def __init__(self, produce: Callable[[], Generator[T, None, None]], *, depth: int, name: str) -> None:
        self._produce = produce
        self._ready: queue.Queue = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _put(self, item: object) -> bool:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def _work(self) -> None:
        try:
            with closing(self._produce()) as items:
                for item in items:
                    if not self._put(item):
                        return
                    del item  # it belongs to the consumer
            self._put(_End())
        except BaseException as error:  # handed to the consumer, whatever it is
            self._put(_Failure(error))

    def __iter__(self) -> Iterator[T]:
        while not isinstance(item := self._ready.get(), _End):
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def close(self) -> None:
        """Stops the thread."""
        self._stop.set()
        self._thread.join()


def read_ahead(produce: Callable[[], Generator[T, None, None]], *, depth: int, name: str) -> Generator[T, None, None]:
    """A `ReadAhead` that starts with the first `next`, and ends with the iterator: when it is closed or dropped."""
    items = ReadAhead(produce, depth=depth, name=name)
    try:
        yield from items
    finally:
        items.close()
