"""What a handler gets and gives: one HTTP request, one response, and refusals with a status."""

import json
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from zlib import crc32

import msgspec

JSON = b"application/json"
encode_json: Callable[[Any], bytes] = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode


class HttpError(Exception):
    """A request that is refused.

    Args:
        status: the HTTP status, 400 to 503.
        reason: what was given, what is allowed, the way out; goes to the caller as `{"error": reason}`.
        headers: more response headers, lower case.
    """

    def __init__(self, status: int, reason: str, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers
        self._response: Response | None = None

    def response(self) -> "Response":
        """The refusal as an answer; made once."""
        if self._response is None:
            self._response = Response(encode_json({"error": self.reason}), status=self.status, headers=self.headers)
        return self._response


class Response:
    """Status, body and headers of an answer. Content type and length are added by the app."""

    __slots__ = ("body", "content_type", "headers", "status")

    def __init__(
        self, body: bytes = b"", *, status: int = 200, content_type: bytes = JSON, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers


@dataclass(slots=True)
class Request:
    """One HTTP request, its body read completely.

    Attributes:
        params: what the route's `{name}` parts matched.
    """

    method: str
    path: str
    raw_headers: list[tuple[bytes, bytes]]
    body: bytes
    params: Mapping[str, str] = field(default_factory=dict)

    def header(self, name: bytes) -> bytes | None:
        """The first header of this (lower-case) name."""
        for key, value in self.raw_headers:
            if key == name:
                return value
        return None

    @property
    def key(self) -> bytes:
        """What decides, together with a split's share, which version answers: X-Request-Id, else the body."""
        return self.header(b"x-request-id") or self.body


def parse_json(body: bytes) -> Any:
    """A body as plain Python values. Integers of any size that Python reads; NaN and infinity are not JSON.

    Raises:
        HttpError: 400, with what is wrong with the JSON.
    """
    try:
        return _decode_json(body)
    except msgspec.MsgspecError as error:
        raise HttpError(400, f"the body is not JSON: {constant_in(body) or error}") from None
    except UnicodeDecodeError:
        raise HttpError(400, "the body is not JSON: a text is not UTF-8") from None
    except RecursionError:
        raise HttpError(400, "the body is not a request: its JSON is nested too deeply") from None


def constant_in(body: bytes) -> str:
    """What to say of a body's first NaN or Infinity, which Python's json writes; empty where something else is wrong with it."""
    if b"NaN" not in body and b"Infinity" not in body:
        return ""
    try:
        place, name = next(_constants(json.loads(body, parse_constant=_Constant), ""))
    except (ValueError, RecursionError, StopIteration):
        return ""
    where = f", and {place[:200]} is {name}" if place else ""
    return f"JSON has no {name}{where}; send null for a missing value{'' if name == 'NaN' else ', or a finite number'}"


class _Constant(str):
    """NaN, Infinity or -Infinity: what no text is."""


def _constants(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, _Constant):
        yield place, str(value)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _constants(one, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _constants(one, f"{place}[{index}]")


def share_of(key: bytes) -> float:
    """A number in [0, 1) that depends on `key` only: which part of a percentage split a request falls into."""
    return crc32(key) / 2**32


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class Route:
    """One method and path that the app answers.

    Args:
        path: parts in braces match one path segment each and become `Request.params`: "/v2/models/{name}/infer".
        admin: whether the bearer token is asked for even where reading routes are open, and the route is off without a token.
    """

    method: str
    path: str
    handler: Handler
    admin: bool = False

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.path.strip("/").split("/"))
