"""The ASGI application: reads a request, finds its route, applies the limits, turns refusals into answers.

Raw ASGI, because a framework's layers cost more than the model: measured in docs/serving.md.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .access_log import AccessLog
from .messages import HttpError, Request, Response, Route, encode_json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
log = logging.getLogger(__name__)
_CLOSE = (b"connection", b"close")
_BURST_SECONDS = 0.1
OVERLOAD = HttpError(503, "the server has all the work it can do; try again", headers=((b"retry-after", b"1"),))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes at most.

    Args:
        body_bytes: of one request's body; more is refused with 413.
        concurrent_requests: in work at once, in one worker; more are refused with 503 and Retry-After.
        refusals_per_second: of those, and of requests without the token or for no path, answered per second (the first of a burst
            at once); the others wait for their refusal. Callers who come back at once would else take the time of those served.
        body_seconds: for a body that comes in pieces to be complete; else 408.
    """

    body_bytes: int = 1 << 20
    concurrent_requests: int = 256
    refusals_per_second: float = 1000.0
    body_seconds: float = 10.0


class KnownHead(NamedTuple):
    """A request's line and headers as they were parsed: where it goes, its headers, and how many bytes of body follow."""

    route: Route
    headers: list[tuple[bytes, bytes]]
    body_bytes: int


class App:
    """An ASGI application of routes.

    Args:
        routes: tried by exact path first, then by their pattern. `direct_routes` has the former by (method, path) in bytes.
        limits: of every route.
        token: a bearer token that every request must carry, but for the health routes; empty asks for none.
        open_paths: answered without a token and while overloaded.
        observe: called with (route path, status, seconds) after each answer.
        access_log: writes a line per request, or per sampled request.
        on_start, on_stop: called when the server starts, and when it has answered its last request.

    Attributes:
        known_heads: by their bytes; see direct.py.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        limits: Limits = Limits(),
        token: str = "",
        open_paths: frozenset[str] = frozenset(),
        observe: Callable[[str, int, float], None] | None = None,
        access_log: AccessLog | None = None,
        on_start: Callable[[], None] | None = None,
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        self.routes = tuple(routes)
        self.limits = limits
        self.num_in_work = 0
        self.most_in_work = limits.concurrent_requests
        self.draining = False
        self.has_token = bool(token)
        self._token = token.encode()
        self._open_paths = open_paths
        self._observe = observe
        self._access_log = access_log
        self._on_start = on_start
        self._on_stop = on_stop
        self._next_refusal = 0.0
        self._exact = {(r.method, r.path): r for r in routes if "{" not in r.path}
        self.direct_routes = {(method.encode(), path.encode()): route for (method, path), route in self._exact.items()}
        self.known_heads: dict[bytes, KnownHead] = {}
        self._patterns = [r for r in routes if "{" in r.path]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if self._on_start:
                    self._on_start()
                await send({"type": "lifespan.startup.complete"})
            else:
                if self._on_stop:
                    self._on_stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        request = Request(scope["method"], scope["path"], scope["headers"], b"")
        route = self._exact.get((request.method, request.path))
        try:
            try:
                self.admit(route, request)
                if route is None:
                    route = self._match(request)
                    self.admit(route, request)
                if self.is_overloaded(route):
                    raise OVERLOAD
            except HttpError:
                await asyncio.sleep(self.seconds_to_refusal())
                raise
            response = await self._respond(route, request, receive)
        except _Disconnected:
            return
        except Exception as error:
            response = self.response_to(error, request)
        headers = [(b"content-type", response.content_type), (b"content-length", b"%d" % len(response.body)), *response.headers]
        if self.draining:
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})
        self.answered(route, request, scope.get("client"), response.status, time.perf_counter() - start)

    async def _respond(self, route: Route, request: Request, receive: Receive) -> Response:
        self.num_in_work += 1
        try:
            request.body = await self._body(request, receive)
            return await route.handler(request)
        finally:
            self.num_in_work -= 1

    def is_overloaded(self, route: Route) -> bool:
        """Whether a request for this route is to be refused with `OVERLOAD`."""
        return self.num_in_work >= self.most_in_work and route.path not in self._open_paths

    def seconds_to_refusal(self) -> float:
        """How long this refusal waits for its turn: 0 until a tenth of a second's refusals came at once."""
        now, gap = time.monotonic(), 1 / self.limits.refusals_per_second
        self._next_refusal = max(self._next_refusal, now - _BURST_SECONDS) + gap
        return max(0.0, self._next_refusal - now)

    def admit(self, route: Route | None, request: Request) -> None:
        """Whether the caller may ask this: before anything else, so that a stranger learns neither which paths there are nor how
        much there is to do.

        Args:
            route: None where it is not known (yet).

        Raises:
            HttpError: 401 and 403 where a token is missing or wrong.
        """
        if (self.has_token or (route and route.admin)) and request.path not in self._open_paths:
            self._check_token(request)

    def response_to(self, error: Exception, request: Request) -> Response:
        """The answer where a handler raised: what an `HttpError` says, else 500, and the log has the traceback."""
        if isinstance(error, HttpError):
            return error.response()
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        return Response(encode_json({"error": "the server failed at this request; its log says why"}), status=500)

    def answered(self, route: Route | None, request: Request, client: tuple[str, int] | None, status: int, seconds: float) -> None:
        """Counts and logs one answer."""
        if self._observe:
            self._observe(route.path if route else "", status, seconds)
        if self._access_log:
            self._access_log.write(request, client, status, seconds)

    def _match(self, request: Request) -> Route:
        parts = tuple(request.path.strip("/").split("/"))
        allowed = [r.method for r in self.routes if r.path == request.path]
        for route in self._patterns:
            params = _params(route.parts, parts)
            if params is None:
                continue
            if route.method == request.method:
                request.params = params
                return route
            allowed.append(route.method)
        if allowed:
            methods = ", ".join(sorted(set(allowed)))
            reason = f"{request.method} {request.path} is not allowed; allowed: {methods}"
            raise HttpError(405, reason, headers=((b"allow", methods.encode()),))
        raise HttpError(404, f"no such path {request.path[:200]}; GET /openapi.json lists all")

    def _check_token(self, request: Request) -> None:
        given = request.header(b"authorization") or b""
        if not self._token or not hmac.compare_digest(given, b"Bearer " + self._token):
            reason = "a valid bearer token is needed" if self._token else "this path is off: the server was started without a token"
            raise HttpError(401 if self._token else 403, reason, headers=((b"www-authenticate", b"Bearer"),))

    async def _body(self, request: Request, receive: Receive) -> bytes:
        limit = self.limits.body_bytes
        length = request.header(b"content-length")
        if length is not None and int(length) > limit:  # the parser has checked that these are digits
            raise _too_large(limit)
        message = await receive()
        if not message.get("more_body"):
            body = message.get("body", b"")
        else:
            try:
                body = await asyncio.wait_for(_rest_of_body(message, receive, limit), self.limits.body_seconds)
            except asyncio.TimeoutError:
                reason = f"the body was not complete after {self.limits.body_seconds:g} s"
                raise HttpError(408, reason, headers=(_CLOSE,)) from None
        if len(body) > limit:
            raise _too_large(limit)
        return body


async def _rest_of_body(message: MutableMapping[str, Any], receive: Receive, limit: int) -> bytes:
    parts = [message.get("body", b"")]
    size = len(parts[0])
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body is larger than {limit} bytes, which is this server's limit", headers=(_CLOSE,))


def _params(pattern: tuple[str, ...], parts: tuple[str, ...]) -> dict[str, str] | None:
    if len(pattern) != len(parts):
        return None
    params = {}
    for expected, found in zip(pattern, parts):
        if expected.startswith("{"):
            if not found:
                return None
            params[expected[1:-1]] = found
        elif expected != found:
            return None
    return params


class _Disconnected(Exception):
    """The caller went away before its body was complete."""
