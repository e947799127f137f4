"""The short way from a socket to a handler: no ASGI messages, no task.

uvicorn's own protocol makes a scope, an event, a cycle object and a task for each request, which together cost more than the model.
A request that arrives whole in one read, for a route without parameters, is handed to its handler right here, and the handler's
coroutine is stepped by hand. Everything else (bodies in pieces, pipelined requests, `Expect: 100-continue`, HTTP/1.0, other paths)
takes uvicorn's way to the same `App`. Both ways give the same answers; tests/serving/test_direct.py holds them against each other.

A caller's requests begin with the same bytes again and again, up to the body's length: a head that was parsed once is known again.
"""

import asyncio
import math
import time

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .app import OVERLOAD, App, KnownHead
from .messages import HttpError, Request, Response, Route
from .stepping import Stepper

_answer_heads: dict[tuple[int, bytes, tuple[tuple[bytes, bytes], ...]], bytes] = {}
_MOST_HEADS = 1024
_MOST_HEAD_BYTES = 2048
_END_OF_HEAD = b"\r\n\r\n"


class DirectProtocol(HttpToolsProtocol):
    """A uvicorn HTTP protocol: `uvicorn.Config(App(...), http=DirectProtocol, interface="asgi3", proxy_headers=False)`.

    Raises:
        TypeError: if the application is not an `App`, or uvicorn put a layer around it.
    """

    app: App
    _arriving: "_Exchange | None" = None
    _is_between_requests = True  # nothing of the next one was given to the parser
    _idle_since = math.inf  # the loop's time of the last answer; infinite while something is asked
    _received = b""  # the read that the parser has at hand, if it began between two requests

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if not isinstance(self.app, App):
            raise TypeError(f"DirectProtocol serves an App, not {type(self.app).__name__}")
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()

    def on_response_complete(self) -> None:
        """uvicorn's, with one timer as long as the connection lives: a new one after each answer costs more than parsing a head."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if self.flow.read_paused:
            self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = math.inf

    def timeout_keep_alive_handler(self) -> None:
        seconds = min(self._idle_since - self.loop.time(), 0.0) + self.timeout_keep_alive
        if seconds <= 0:
            super().timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def on_message_begin(self) -> None:
        self._is_between_requests = False
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        route = self._direct_route()
        if route is None:
            self._to_asgi(b"")
        else:
            self._arriving = _Exchange(self, route, self.headers)

    def on_body(self, body: bytes) -> None:
        if self._arriving is None:
            super().on_body(body)
        else:
            self._arriving.body += body

    def on_message_complete(self) -> None:
        self._is_between_requests = True
        exchange = self._arriving
        if exchange is None:
            super().on_message_complete()
            return
        self._arriving = None
        self._remember(exchange)
        exchange.begin()

    def _remember(self, exchange: "_Exchange") -> None:
        """Keeps the parsed head of a request that came in one read, alone."""
        heads, num_bytes = self.app.known_heads, len(self._received) - len(exchange.body)
        if num_bytes == self._received.find(_END_OF_HEAD) + len(_END_OF_HEAD) and num_bytes <= _MOST_HEAD_BYTES:
            if len(heads) >= _MOST_HEADS:
                heads.clear()
            heads[self._received[:num_bytes]] = KnownHead(exchange.route, self.headers, len(exchange.body))

    def data_received(self, data: bytes) -> None:
        if self._is_between_requests:
            num_bytes = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
            known = self.app.known_heads.get(data[:num_bytes])
            if known is not None and known.body_bytes == len(data) - num_bytes and self._can_go_directly():
                self._idle_since = math.inf
                _Exchange(self, known.route, known.headers, data[num_bytes:]).begin()
                return
            self._received = data
        super().data_received(data)
        self._received = b""
        if self._arriving is not None and self.parser is not None:  # the rest is still on its way
            body, self._arriving = self._arriving.body, None
            if not self.transport.is_closing():
                self._to_asgi(body)

    def _can_go_directly(self) -> bool:
        return (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

    def _direct_route(self) -> Route | None:
        app, parser = self.app, self.parser
        route = app.direct_routes.get((parser.get_method(), self.url))
        if (
            route is None
            or self.expect_100_continue
            or not self._can_go_directly()
            or parser.should_upgrade()
            or not parser.should_keep_alive()
            or parser.get_http_version() != "1.1"
        ):
            return None
        for name, value in self.headers:
            if name == b"transfer-encoding" or (name == b"content-length" and int(value) > app.limits.body_bytes):
                return None
        return route

    def _to_asgi(self, body: bytes) -> None:
        """Begin the request at hand as uvicorn would have, with what is there of its body."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects
        self.scope["headers"] = headers
        super().on_headers_complete()
        if body:
            super().on_body(body)


class _Nobody:
    """Stands for the event that uvicorn sets when a connection is lost: nothing waits for it here."""

    def set(self) -> None:
        pass


class _Exchange(Stepper):
    """One request and its answer; to uvicorn, the connection's cycle. It steps the handler's coroutine.

    Attributes:
        keep_alive: uvicorn unsets it when it shuts down.
        response_complete, disconnected, message_event: as in uvicorn's RequestResponseCycle.
    """

    __slots__ = (
        "_protocol",
        "_request",
        "_start",
        "body",
        "disconnected",
        "headers",
        "keep_alive",
        "response_complete",
        "route",
    )
    message_event = _Nobody()

    def __init__(self, protocol: DirectProtocol, route: Route, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> None:
        self._start = time.perf_counter()
        self._protocol = protocol
        self._call_soon = protocol.loop.call_soon
        self.route = route
        self.headers = headers
        self.body = body
        self.keep_alive = True
        self.response_complete = False
        self.disconnected = False

    def begin(self) -> None:
        protocol = self._protocol
        protocol.cycle = self  # type: ignore[assignment]
        app = protocol.app
        route = self.route
        request = self._request = Request(route.method, route.path, self.headers, self.body)
        if app.has_token or route.admin:
            try:
                app.admit(route, request)
            except HttpError as error:
                self._refuse(app, error)
                return
        if app.num_in_work >= app.most_in_work and app.is_overloaded(route):
            self._refuse(app, OVERLOAD)
            return
        app.num_in_work += 1
        self._coroutine = route.handler(request)
        self.step()

    def _refuse(self, app: App, refusal: HttpError) -> None:
        seconds = app.seconds_to_refusal()
        if seconds:
            self._protocol.loop.call_later(seconds, self._reply, app, refusal.response())
        else:
            self._reply(app, refusal.response())

    def _ended(self, response: Response, error: Exception | None) -> None:
        app = self._protocol.app
        app.num_in_work -= 1
        self._reply(app, response if error is None else app.response_to(error, self._request))

    def _reply(self, app: App, response: Response) -> None:
        self.response_complete = True
        protocol = self._protocol
        if not self.disconnected:
            if app.draining:
                self.keep_alive = False
            body = response.body
            close = b"" if self.keep_alive else b"connection: close\r\n"
            protocol.transport.write(b"%bcontent-length: %d\r\n%b\r\n%b" % (_head(response), len(body), close, body))
            if not self.keep_alive:
                protocol.transport.close()
            protocol.on_response_complete()
        app.answered(self.route, self._request, protocol.client, response.status, time.perf_counter() - self._start)


def _head(response: Response) -> bytes:
    """Status line and headers, but for the body's length."""
    key = (response.status, response.content_type, response.headers)
    head = _answer_heads.get(key)
    if head is None:
        lines = [(b"content-type", response.content_type), *response.headers]
        head = STATUS_LINE[response.status] + b"".join(b"%b: %b\r\n" % line for line in lines)
        if len(_answer_heads) < _MOST_HEADS:
            _answer_heads[key] = head
    return head
