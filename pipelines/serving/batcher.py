"""Rows that arrive within one turn of the event loop are scored by one call of the graph.

The first row that arrives schedules a flush for the loop's next turn, after every request of this turn has been read; a full batch
goes at once, while it is in the cache. There is no timer: a lone request does not wait, and under load the batch grows by itself.
Shapes in names: N rows, S slots, D dense features, T tasks.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import stepping

Answers = list[list[float]]
RunGraph = Callable[[np.ndarray, np.ndarray], np.ndarray]
BindGraph = Callable[[np.ndarray, np.ndarray], Callable[[int], np.ndarray]]
OnBatch = Callable[[np.ndarray, int, Answers], None]
log = logging.getLogger(__name__)


class Waiting:
    """Rows of one request, not all scored yet. `await` it for N lists of T numbers; it fails only if the graph does."""

    __slots__ = ("answers", "error", "future", "is_done", "num_rows", "stepper")

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.answers: Answers = []
        self.error: Exception | None = None
        self.is_done = num_rows == 0
        self.future: asyncio.Future[None] | None = None
        self.stepper: stepping.Stepper | None = None

    def __await__(self) -> Generator[Any, None, Answers]:
        if not self.is_done:
            self.stepper = stepping.current()
            if self.stepper is not None:
                yield stepping.RESUMED
            else:
                self.future = asyncio.get_running_loop().create_future()
                yield from self.future
        if self.error is not None:
            raise self.error
        return self.answers

    @property
    def is_given_up(self) -> bool:
        """Whether whoever waited was cancelled."""
        return self.future is not None and self.future.cancelled()

    def finish(self, error: Exception | None = None) -> None:
        """Let whoever waits go on: a stepped coroutine now, a task in the loop's next turn."""
        self.is_done = True
        self.error = error
        if self.stepper is not None:
            try:
                self.stepper.step()
            except Exception:
                log.exception("an answer could not be given")
        elif self.future is not None and not self.future.done():
            self.future.set_result(None)


class Batcher:
    """Collects encoded rows and answers them in order. It belongs to the event loop that it is first used in.

    Args:
        run: (ids [N, S] int64, dense [N, D] float32) -> [N, T]; called in the event loop's thread.
        num_slots, num_dense: S and D.
        max_rows: most rows of one call. Requests with more rows are scored in pieces, between which others get their turn.
        bind: (ids [max_rows, S], dense [max_rows, D]) -> a quicker `run` of their first N rows; for the batcher's own arrays.
        on_batch: called with (ids [N, S], the address of their first, answers) of every call, for metrics; the ids are overwritten
            by the next call's.
    """

    def __init__(
        self,
        run: RunGraph,
        *,
        num_slots: int,
        num_dense: int,
        max_rows: int = 64,
        bind: BindGraph | None = None,
        on_batch: OnBatch | None = None,
    ) -> None:
        self._run = run
        self._max_rows = max_rows
        self._on_batch = on_batch
        self._ids_NS = np.zeros((max_rows, num_slots), np.int64)  # of the next call
        self._dense_ND = np.zeros((max_rows, num_dense), np.float32)
        self._first_row = self._ids_NS.ctypes.data, self._dense_ND.ctypes.data
        self._row_bytes = num_slots * self._ids_NS.itemsize, num_dense * self._dense_ND.itemsize
        self._run_first = bind(self._ids_NS, self._dense_ND) if bind else None
        self._small: list[Waiting] = []  # their rows fit into one call together, and stand in its arrays already
        self._num_small_rows = 0
        self._large: deque[_Large] = deque()
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.queued_rows = 0

    def next_row(self) -> tuple[int, int]:
        """Where the next row's S ids (int64) and D numbers (float32) go: two addresses, good until anything else is submitted."""
        if self._num_small_rows == self._max_rows:
            self._score_small()
        number, (ids, dense), (ids_bytes, dense_bytes) = self._num_small_rows, self._first_row, self._row_bytes
        return ids + number * ids_bytes, dense + number * dense_bytes

    def submit_next_row(self) -> Waiting:
        """Queue the row that was written at `next_row`."""
        waiting = Waiting(1)
        self._small.append(waiting)
        self._num_small_rows += 1
        self.queued_rows += 1
        if not self._scheduled:
            self._schedule()
        return waiting

    def submit(self, ids_NS: np.ndarray, dense_ND: np.ndarray) -> Waiting:
        """Queue a request's rows."""
        num_rows = len(ids_NS)
        waiting = Waiting(num_rows)
        if not num_rows:
            return waiting
        if num_rows > self._max_rows:
            self._large.append(_Large(waiting, ids_NS, dense_ND))
            self.queued_rows += num_rows
            self._schedule()
            return waiting
        if self._num_small_rows + num_rows > self._max_rows:
            self._score_small()
        place = slice(self._num_small_rows, self._num_small_rows + num_rows)
        self._ids_NS[place], self._dense_ND[place] = ids_NS, dense_ND
        self._small.append(waiting)
        self._num_small_rows += num_rows
        self.queued_rows += num_rows
        self._schedule()
        return waiting

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            if self._loop is None:
                self._loop = asyncio.get_running_loop()  # a system call each time, so it is asked for once
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """One call for small requests, then one for a piece of a large one; what is left waits for the next turn of the loop."""
        if self._small:
            self._score_small()
        if self._large:
            self._score_piece(self._large[0])
        if self._small or self._large:
            assert self._loop is not None
            self._loop.call_soon(self._flush)
        else:
            self._scheduled = False

    def _score_small(self) -> None:
        chosen, num_rows = self._small, self._num_small_rows
        self._small, self._num_small_rows = [], 0
        self.queued_rows -= num_rows
        try:
            answers = self._call_first(num_rows)
        except Exception as error:
            for waiting in chosen:
                waiting.finish(error)
            return
        start = 0
        for waiting in chosen:
            stop = start + waiting.num_rows
            waiting.answers = answers[start:stop]
            waiting.finish()
            start = stop

    def _score_piece(self, large: "_Large") -> None:
        waiting, start = large.waiting, large.num_scored
        stop = min(start + self._max_rows, waiting.num_rows)
        self.queued_rows -= stop - start
        if waiting.is_given_up:
            self.queued_rows -= waiting.num_rows - stop
            self._large.popleft()
            return
        try:
            waiting.answers += self._call(large.ids_NS[start:stop], large.dense_ND[start:stop])
        except Exception as error:
            self.queued_rows -= waiting.num_rows - stop
            self._large.popleft()
            waiting.finish(error)
            return
        large.num_scored = stop
        if stop == waiting.num_rows:
            self._large.popleft()
            waiting.finish()

    def _call_first(self, num_rows: int) -> Answers:
        if self._run_first is None:
            return self._call(self._ids_NS[:num_rows], self._dense_ND[:num_rows])
        answers = self._run_first(num_rows).tolist()
        if self._on_batch:
            self._on_batch(self._ids_NS[:num_rows], self._first_row[0], answers)
        return answers

    def _call(self, ids_NS: np.ndarray, dense_ND: np.ndarray) -> Answers:
        answers = self._run(ids_NS, dense_ND).tolist()
        if self._on_batch:
            self._on_batch(ids_NS, ids_NS.ctypes.data, answers)
        return answers


@dataclass
class _Large:
    """A request of more rows than one call takes."""

    waiting: Waiting
    ids_NS: np.ndarray
    dense_ND: np.ndarray
    num_scored: int = 0
