"""Rows that arrive within one turn of the event loop are scored by one call of the graph.

The first row that arrives schedules a flush for the loop's next turn, after every request of this turn has been read. There is no
timer: a lone request does not wait, and under load the batch grows by itself.
Shapes in names: N rows, S slots, D dense features, T tasks.
"""

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

Answers = list[list[float]]
RunGraph = Callable[[np.ndarray, np.ndarray], np.ndarray]
OnBatch = Callable[[np.ndarray, np.ndarray], None]


class _Waiting:
    """Encoded rows of one request, not all of them scored yet."""

    __slots__ = ("answers", "dense", "done", "future", "ids", "num_rows")

    def __init__(self, ids: Sequence[int], dense: Sequence[float], num_rows: int, future: "asyncio.Future[Answers]") -> None:
        self.ids = ids
        self.dense = dense
        self.num_rows = num_rows
        self.future = future
        self.done = 0
        self.answers: Answers = []


class Batcher:
    """Collects encoded rows and answers them in order. It belongs to the event loop that it is first used in.

    Args:
        run: (ids [N, S] int64, dense [N, D] float32) -> [N, T]; called in the event loop's thread.
        num_slots, num_dense: S and D.
        max_rows: most rows of one call. Requests with more rows are scored in pieces, between which others get their turn.
        on_batch: called with (ids [N, S], answers [N, T]) of every call, for metrics.
    """

    def __init__(
        self,
        run: RunGraph,
        *,
        num_slots: int,
        num_dense: int,
        max_rows: int = 64,
        on_batch: OnBatch | None = None,
    ) -> None:
        self._run = run
        self._num_slots = num_slots
        self._num_dense = num_dense
        self._max_rows = max_rows
        self._on_batch = on_batch
        self._small: deque[_Waiting] = deque()  # fit into one call
        self._large: deque[_Waiting] = deque()
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.queued_rows = 0

    def submit(self, ids: Sequence[int], dense: Sequence[float], num_rows: int) -> "asyncio.Future[Answers]":
        """Queue a request's rows.

        Args:
            ids: flat table rows of all rows, one row after another (N * S numbers).
            dense: numeric features likewise (N * D numbers).

        Returns:
            A future of N lists of T numbers. It fails only if the graph itself does.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()  # a system call each time, so it is asked for once
        future: asyncio.Future[Answers] = loop.create_future()
        if not num_rows:
            future.set_result([])
            return future
        waiting = _Waiting(ids, dense, num_rows, future)
        (self._small if num_rows <= self._max_rows else self._large).append(waiting)
        self.queued_rows += num_rows
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)
        return future

    def _flush(self) -> None:
        """One call for small requests, then one for a piece of a large one; what is left waits for the next turn of the loop."""
        chosen: list[_Waiting] = []
        num_rows = 0
        while self._small and num_rows + self._small[0].num_rows <= self._max_rows:
            chosen.append(self._small.popleft())
            num_rows += chosen[-1].num_rows
        if chosen:
            self._score_small(chosen, num_rows)
        if self._large:
            self._score_piece(self._large[0])
        if self._small or self._large:
            assert self._loop is not None
            self._loop.call_soon(self._flush)
        else:
            self._scheduled = False

    def _score_small(self, chosen: list[_Waiting], num_rows: int) -> None:
        ids = array("q", chosen[0].ids)
        dense = array("f", chosen[0].dense)
        for waiting in chosen[1:]:
            ids.extend(waiting.ids)
            dense.extend(waiting.dense)
        self.queued_rows -= num_rows
        try:
            answers = self._call(ids, dense, num_rows)
        except Exception as error:
            for waiting in chosen:
                _fail(waiting.future, error)
            return
        start = 0
        for waiting in chosen:
            stop = start + waiting.num_rows
            if not waiting.future.done():  # the caller may have gone away
                waiting.future.set_result(answers[start:stop])
            start = stop

    def _score_piece(self, waiting: _Waiting) -> None:
        start, stop = waiting.done, min(waiting.done + self._max_rows, waiting.num_rows)
        self.queued_rows -= stop - start
        if waiting.future.done():
            self.queued_rows -= waiting.num_rows - stop
            self._large.popleft()
            return
        ids = array("q", waiting.ids[start * self._num_slots : stop * self._num_slots])
        dense = array("f", waiting.dense[start * self._num_dense : stop * self._num_dense])
        try:
            waiting.answers += self._call(ids, dense, stop - start)
        except Exception as error:
            self.queued_rows -= waiting.num_rows - stop
            self._large.popleft()
            _fail(waiting.future, error)
            return
        waiting.done = stop
        if stop == waiting.num_rows:
            self._large.popleft()
            waiting.future.set_result(waiting.answers)

    def _call(self, ids: array, dense: array, num_rows: int) -> Answers:
        ids_NS = np.frombuffer(ids, np.int64).reshape(num_rows, self._num_slots)
        dense_ND = np.frombuffer(dense, np.float32).reshape(num_rows, self._num_dense)
        answers_NT = self._run(ids_NS, dense_ND)
        if self._on_batch:
            self._on_batch(ids_NS, answers_NT)
        return answers_NT.tolist()


def _fail(future: "asyncio.Future[Answers]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
