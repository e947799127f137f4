"""Producing the next items in a thread while the current one is used."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Generic, TypeVar

T = TypeVar("T")


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
        self._ready: queue.SimpleQueue = queue.SimpleQueue()  # in C; `queue.Queue` takes 8 microseconds more per item (measured)
        self._room: queue.SimpleQueue = queue.SimpleQueue()  # something in it for each item that may be put into `_ready`
        for _ in range(depth):
            self._room.put(None)
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _put(self, item: object) -> bool:
        self._room.get()
        if not self._is_closed:
            self._ready.put(item)
        return not self._is_closed

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
            self._room.put(None)
            yield item

    def close(self) -> None:
        """Stops the thread."""
        self._is_closed = True
        self._room.put(None)
        self._thread.join()


def read_ahead(produce: Callable[[], Generator[T, None, None]], *, depth: int, name: str) -> Generator[T, None, None]:
    """A `ReadAhead` that starts with the first `next`, and ends with the iterator: when it is closed or dropped."""
    items = ReadAhead(produce, depth=depth, name=name)
    try:
        yield from items
    finally:
        items.close()
