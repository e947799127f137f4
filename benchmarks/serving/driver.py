"""Requests over raw sockets, in an open or a closed loop.

Open: requests arrive when they arrive (a Poisson process), whether or not earlier ones were answered. Latency counts from the
scheduled arrival, so a server that stalls is charged for everybody who had to wait, and so is a driver that comes late. A request
goes to a connection that waits for no answer; where there is none it waits, and its clock runs.
Closed: each connection sends the next request when it has the answer to the last.
For machines without a C compiler (else open_loop.c does the open loop) and without wrk: above 15,000 requests/s it is the limit.

The driver spins on epoll: timers of an event loop would be late by up to a millisecond. It wants a core of its own.
"""

import contextlib
import gc
import re
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np

PATIENCE_SECONDS = 1.0
LAST_ANSWER_SECONDS = 5.0
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_NO_BODY = (204, 304)


class _Connection:
    __slots__ = ("data", "is_waiting", "scheduled", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.data = b""
        self.is_waiting = False
        self.scheduled = 0.0


class Driver:
    """Connections to one server.

    Args:
        port: on 127.0.0.1.
        path, bodies: what is posted, one body after another, over and over.
        connections: how many.
        each_second: called about once a second, while requests wait: it must be short.
    """

    def __init__(
        self, port: int, path: str, bodies: list[bytes], *, connections: int, each_second: Callable[[], None] | None = None
    ) -> None:
        self._port = port
        self._requests = [http_request(path, body) for body in bodies]
        self._each_second = each_second
        self._poll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._free: deque[_Connection] = deque()
        self._heads: dict[bytes, tuple[int, int]] = {}
        for _ in range(connections):
            self._connect()
        self.sent = self.failed = self.given_up = 0
        self.statuses = Counter[int]()
        self.latencies: list[float] = []

    def open_loop(self, rate: float, seconds: float, *, seed: int = 0) -> dict[str, Any]:
        """Poisson arrivals, `rate` per second; `summary` says what comes back."""
        schedule = deque(arrivals(rate, seconds, seed))
        num = len(schedule)

        def send_due(elapsed: float) -> bool:
            while schedule and schedule[0] <= elapsed and self._free:
                at = schedule.popleft()
                if elapsed - at > PATIENCE_SECONDS:
                    self.given_up += 1
                else:
                    self._send(self._free.popleft(), at)
            return bool(schedule)

        took = self._run(send_due, seconds)
        self.given_up += len(schedule)
        return {"offered_per_second": round(num / seconds), **self.summary(took)}

    def closed_loop(self, seconds: float) -> dict[str, Any]:
        """As many requests as the server answers; `summary` says what comes back."""

        def send_all(elapsed: float) -> bool:
            while self._free and elapsed < seconds:
                self._send(self._free.popleft(), elapsed)
            return elapsed < seconds

        return self.summary(self._run(send_all, seconds))

    def summary(self, seconds: float) -> dict[str, Any]:
        """Answers below status 400 per second, and their latency.

        `refused` are the others, by status; `failed`: connections that broke, and answers that did not come within 5 s of the end;
        `given_up`: requests for which no connection was free for a second.
        """
        return {
            "requests_per_second": round(len(self.latencies) / seconds),
            **percentiles_ms(np.array(self.latencies)),
            "answered": len(self.latencies),
            "refused": {str(status): count for status, count in sorted(self.statuses.items()) if status >= 400},
            "failed": self.failed,
            "given_up": self.given_up,
        }

    def _run(self, send: Callable[[float], bool], seconds: float) -> float:
        """Calls `send(elapsed)` until it says that nothing is left and every answer is there. Returns the seconds it took."""
        gc.collect()
        gc.disable()
        start, tick = time.perf_counter(), 1.0
        self._start = start
        while True:
            elapsed = time.perf_counter() - start
            goes_on = send(elapsed)
            for fd, _ in self._poll.poll(0):
                self._receive(fd)
            if elapsed > tick:
                tick += 1.0
                if self._each_second:
                    self._each_second()
            if not goes_on and len(self._free) == len(self._open):
                break
            if elapsed > seconds + LAST_ANSWER_SECONDS:
                self.failed += len(self._open) - len(self._free)
                break
        gc.enable()
        for connection in self._open.values():
            connection.socket.close()
        self._poll.close()
        return max(time.perf_counter() - start, seconds)

    def _connect(self) -> None:
        connection = _Connection(self._port)
        self._open[connection.socket.fileno()] = connection
        self._poll.register(connection.socket.fileno(), select.EPOLLIN)
        self._free.append(connection)

    def _send(self, connection: _Connection, scheduled: float) -> None:
        connection.scheduled = scheduled
        connection.is_waiting = True
        with contextlib.suppress(OSError):  # closed by the server: reading from it says so
            connection.socket.send(self._requests[self.sent % len(self._requests)])
        self.sent += 1

    def _receive(self, fd: int) -> None:
        connection = self._open[fd]
        try:
            received = connection.socket.recv(65536)
        except OSError:
            received = b""
        if not received:
            self._replace(fd, connection)
            return
        data = connection.data + received if connection.data else received
        status = self._status(data)
        if status is None:
            connection.data = data
            return
        connection.data = b""
        connection.is_waiting = False
        self.statuses[status] += 1
        if status < 400:
            self.latencies.append(time.perf_counter() - self._start - connection.scheduled)
        self._free.append(connection)

    def _replace(self, fd: int, connection: _Connection) -> None:
        """The server closed a connection; whoever waited on it gets no answer."""
        self._poll.unregister(fd)
        del self._open[fd]
        connection.socket.close()
        if connection.is_waiting:
            self.failed += 1
        else:
            self._free.remove(connection)
        self._connect()

    def _status(self, data: bytes) -> int | None:
        """Of a complete answer; None of one that is not complete. Heads repeat, so most are read once."""
        end = data.find(_HEAD_END) + len(_HEAD_END)
        if end < len(_HEAD_END):
            return None
        head = data[:end]
        found = self._heads.get(head)
        if found is None:
            status, length = int(head[9:12]), _LENGTH.search(head)
            if length is None and status not in _NO_BODY:
                raise RuntimeError(f"an answer without content-length, which this driver does not read: {head!r}")
            found = self._heads[head] = (status, int(length[1]) if length else 0)
        status, size = found
        return status if len(data) >= end + size else None


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """When requests arrive, in seconds from the start: gaps are exponential with mean 1 / rate."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 1.2) + 100)
    at = np.cumsum(gaps)
    return at[at < seconds].tolist()


def percentiles_ms(seconds: np.ndarray) -> dict[str, float | None]:
    """p50, p90, p99 and p99.9; None of no numbers."""
    found = np.percentile(seconds, [50, 90, 99, 99.9]) * 1000 if len(seconds) else [None] * 4
    return {f"{p}_ms": None if ms is None else round(float(ms), 3) for p, ms in zip(("p50", "p90", "p99", "p99.9"), found)}


def http_request(path: str, body: bytes) -> bytes:
    """A POST, as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body
