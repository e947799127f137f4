"""Coroutines that are run by hand instead of by a task: `Stepper`."""

from collections.abc import Callable, Coroutine
from typing import Any

RESUMED = object()  # what a coroutine yields when whoever it waits for will call `Stepper.step`

_current: "Stepper | None" = None


def current() -> "Stepper | None":
    """Whose coroutine is running right now; None within a task."""
    return _current


class Stepper:
    """Runs a coroutine up to the first thing it waits for at once, not in the loop's next turn, and goes on when that is there.

    asyncio.Task does the same a turn later and at several times the cost. Inside, asyncio.current_task() is None, so what needs a
    task (timeouts, wait_for, cancellation) cannot be awaited; futures, sleep(0) and to_thread can, and what yields `RESUMED`.

    Args:
        call_soon: the loop's.
        on_done: called once, with what the coroutine returned, or None and what it raised.
    """

    __slots__ = ("_call_soon", "_coroutine", "_on_done")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        *,
        call_soon: Callable[..., Any],
        on_done: Callable[[Any, Exception | None], None],
    ) -> None:
        self._coroutine = coroutine
        self._call_soon = call_soon
        self._on_done = on_done

    def _ended(self, value: Any, error: Exception | None) -> None:
        self._on_done(value, error)

    def step(self, _: object = None) -> None:
        """Run on, until it waits or ends."""
        global _current
        outer, _current = _current, self
        try:
            awaited = self._coroutine.send(None)
        except StopIteration as stop:
            _current = outer
            self._ended(stop.value, None)
            return
        except Exception as error:
            _current = outer
            self._ended(None, error)
            return
        _current = outer
        if awaited is None:  # asyncio.sleep(0)
            self._call_soon(self.step)
        elif awaited is not RESUMED:
            awaited._asyncio_future_blocking = False
            awaited.add_done_callback(self.step)
