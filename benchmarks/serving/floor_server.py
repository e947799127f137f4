"""Servers that do nothing but answer: what is left for a model when sockets and HTTP have had their part.

    python -m benchmarks.serving.floor_server protocol PORT     uvloop and httptools, one callback, the same bytes each time
    python -m benchmarks.serving.floor_server asgi PORT         uvicorn with an ASGI application that sends the same bytes

`python -m benchmarks.serving FOLDER floor` starts them.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httptools
import uvicorn
import uvloop

BODY = b'{"model":"model","version":"0123456789abcdef","predictions":{"click":0.08340000361204147}}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Protocol(asyncio.Protocol):
    """Parses requests and answers each."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(ANSWER)


async def application(scope: Message, receive: Receive, send: Send) -> None:
    """Reads the request's body and answers."""
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


async def serve_protocol(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "protocol":
        uvloop.run(serve_protocol(port))
    else:
        uvicorn.run(application, port=port, access_log=False, log_level="warning", lifespan="off", proxy_headers=False)
