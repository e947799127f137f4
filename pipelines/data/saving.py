"""When unfinished work is saved: often enough that little is lost, and never for more than a twentieth of the time."""

import time

SECONDS_BETWEEN = 10.0
_LEAST_WORK_PER_SAVING = 20


class Pace:
    """Says when it is time to save again: `SECONDS_BETWEEN` after the last time, and later where saving took long."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SECONDS_BETWEEN

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def saved(self, *, took_seconds: float) -> None:
        """Call when saved."""
        self._next = time.monotonic() + max(SECONDS_BETWEEN, _LEAST_WORK_PER_SAVING * took_seconds)
