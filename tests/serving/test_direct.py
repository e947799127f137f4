"""The short way from a socket to a handler gives what uvicorn's way gives, in order, through real sockets."""

import asyncio
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from torchrec_models.pipelines.serving import direct
from torchrec_models.pipelines.serving.app import App, Limits
from torchrec_models.pipelines.serving.direct import DirectProtocol
from torchrec_models.pipelines.serving.messages import HttpError, Request, Response, Route


class CountingApp(App):
    """Counts the requests that took uvicorn's way."""

    num_asgi = 0

    async def __call__(self, scope, receive, send):
        self.num_asgi += scope["type"] == "http"
        await super().__call__(scope, receive, send)


class Handlers:
    """Routes that end in every way a handler can end; `gate` holds back those that wait."""

    def __init__(self) -> None:
        self.gate: asyncio.Future[None] | None = None
        self.arrived = threading.Event()

    async def echo(self, request: Request) -> Response:
        return Response(request.method.encode() + b" " + request.body, headers=((b"x-kind", request.header(b"x-kind") or b"none"),))

    async def turns(self, request: Request) -> Response:
        for _ in range(3):
            await asyncio.sleep(0)
        return Response(await asyncio.to_thread(lambda: request.body[::-1]))

    async def wait(self, request: Request) -> Response:
        loop = asyncio.get_running_loop()
        self.gate = loop.create_future()
        self.arrived.set()
        await self.gate
        return Response(b"waited")

    async def refuse(self, request: Request) -> Response:
        await asyncio.sleep(0)
        raise HttpError(422, "not like this", headers=((b"x-reason", b"taste"),))

    async def fail(self, request: Request) -> Response:
        raise RuntimeError("a bug")

    async def nothing(self, request: Request) -> Response:
        return Response(b"", status=204)

    def routes(self) -> list[Route]:
        names = ("echo", "turns", "wait", "refuse", "fail", "nothing")
        return [Route("POST", f"/{name}", getattr(self, name)) for name in names] + [Route("GET", "/echo", self.echo)]


@contextmanager
def running(app: App, *, timeout_keep_alive: int = 5) -> Iterator[tuple[int, uvicorn.Server]]:
    """The app behind uvicorn in a thread: (port, server)."""
    plain = {"interface": "asgi3", "proxy_headers": False, "server_header": False, "date_header": False}
    config = uvicorn.Config(
        app,
        http=DirectProtocol,
        loop="uvloop",
        log_config=None,
        lifespan="on",
        port=0,
        timeout_keep_alive=timeout_keep_alive,
        **plain,
    )
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


def request(path: str, body: bytes = b"{}", *, method: str = "POST", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def answer(stream) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status line, headers and body of the next response."""
    status = stream.readline()
    headers = dict(line.split(b": ", 1) for line in iter(lambda: stream.readline().strip(), b""))
    return status, headers, stream.read(int(headers.get(b"content-length", b"0")))


def ask(port: int, *parts: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """One request on a connection of its own, sent part by part, each read by the server before the next is sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for part in parts[:-1]:
            connection.sendall(part)
            time.sleep(0.05)
        connection.sendall(parts[-1])
        return answer(connection.makefile("rb"))


@pytest.mark.parametrize("path", ["/echo", "/turns", "/refuse", "/fail", "/nothing"])
def test_both_ways_give_the_same_answer(handlers, path):
    app = CountingApp(handlers.routes())
    with running(app) as (port, _):
        whole = request(path, b'{"a": 1}', headers="X-Kind: odd\r\n")
        direct = ask(port, whole)
        assert app.num_asgi == 0
        assert ask(port, whole[:-3], whole[-3:]) == direct
        assert app.num_asgi == 1
        assert ask(port, whole[:20], whole[20:]) == direct  # cut in the headers: the body still comes whole with their end
        assert app.num_asgi == 1
        assert app.num_in_work == 0
    expected = {"/echo": b"200", "/turns": b"200", "/refuse": b"422", "/fail": b"500", "/nothing": b"204"}
    assert direct[0].split()[1] == expected[path]
    if path == "/echo":
        assert direct[2] == b'POST {"a": 1}' and direct[1][b"x-kind"] == b"odd"


def test_what_is_not_plain_takes_uvicorns_way(handlers):
    app = CountingApp(handlers.routes(), limits=Limits(body_bytes=100))
    with running(app) as (port, _):
        assert ask(port, request("/echo", b"x" * 100))[2] == b"POST " + b"x" * 100
        assert ask(port, b"GET /echo HTTP/1.1\r\nhost: x\r\n\r\n")[2] == b"GET "
        assert app.num_asgi == 0
        for sent, status in (
            (request("/echo", b"x" * 101), b"413"),
            (request("/echo?x=1"), b"200"),
            (request("/missing"), b"404"),
            (request("/echo", method="PUT"), b"405"),
            (request("/echo", headers="Connection: close\r\n"), b"200"),
            (b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"200"),
            (b"POST /echo HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}", b"200"),
        ):
            before = app.num_asgi
            assert ask(port, sent)[0].split()[1] == status, sent
            assert app.num_asgi == before + 1, sent


@pytest.fixture
def parsed(monkeypatch) -> list[bytes]:
    """What uvicorn's parser was given."""
    found: list[bytes] = []
    data_received = HttpToolsProtocol.data_received

    def counted(self: HttpToolsProtocol, data: bytes) -> None:
        found.append(data)
        data_received(self, data)

    monkeypatch.setattr(HttpToolsProtocol, "data_received", counted)
    return found


def test_a_head_that_was_parsed_is_known_again(handlers, parsed):
    app = CountingApp(handlers.routes())
    first, second, longer = (request("/echo", body, headers="X-Kind: odd\r\n") for body in (b"one", b"\r\n\r", b"four"))
    with running(app) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        stream = connection.makefile("rb")
        for sent in (first, second, longer, b"GET /echo HTTP/1.1\r\n\r\n", b"GET /echo HTTP/1.1\r\n\r\n", second):
            connection.sendall(sent)
            status, headers, body = answer(stream)
            assert status.split()[1] == b"200" and body == sent.split()[0] + b" " + sent.partition(b"\r\n\r\n")[2]
            assert headers[b"x-kind"] == (b"none" if sent.startswith(b"GET") else b"odd")
        assert parsed == [first, longer, b"GET /echo HTTP/1.1\r\n\r\n"]
        assert ask(port, second)[2] == b"POST \r\n\r"  # on another connection
        assert len(parsed) == 3 and app.num_asgi == 0 and len(app.known_heads) == 3


def test_a_known_head_is_one_only_where_a_request_begins(handlers, parsed):
    """Not within a head or a body, and not before the answers to the requests before it."""
    app = CountingApp(handlers.routes())
    known = request("/echo", b"known")
    with running(app) as (port, _):
        assert ask(port, known)[2] == ask(port, known)[2] == b"POST known"
        assert len(parsed) == 1
        inside = b"POST /echo HTTP/1.1\r\nHost: x\r\nX-Kind: "  # the rest of this line is the known head's first
        assert ask(port, inside, known)[1][b"x-kind"] == b"POST /echo HTTP/1.1"
        large = request("/echo", b"x" * 10 + known)
        assert ask(port, large[: -len(known)], known)[2] == b"POST " + b"x" * 10 + known
        assert ask(port, known[:-1], known[-1:])[2] == b"POST known"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(request("/wait"))
            assert handlers.arrived.wait(20)
            connection.sendall(known)
            time.sleep(0.05)
            handlers.gate.get_loop().call_soon_threadsafe(handlers.gate.set_result, None)
            stream = connection.makefile("rb")
            assert [answer(stream)[2] for _ in range(2)] == [b"waited", b"POST known"]
            connection.sendall(known + known)
            assert [answer(stream)[2] for _ in range(2)] == [b"POST known"] * 2
            num_parsed = len(parsed)
            connection.sendall(known)
            assert answer(stream)[2] == b"POST known" and len(parsed) == num_parsed


def test_known_heads_are_bounded(handlers, monkeypatch):
    monkeypatch.setattr(direct, "_MOST_HEADS", 5)
    app = CountingApp(handlers.routes())
    with running(app) as (port, _):
        for number in range(12):
            sent = request("/echo", headers=f"X-Kind: {number}\r\nX-Long: {'x' * 300 * number}\r\n")
            assert ask(port, sent)[1][b"x-kind"] == b"%d" % number
    assert 0 < len(app.known_heads) <= 5 and max(map(len, app.known_heads)) <= 2048


def test_pipelined_answers_stay_in_order(handlers):
    app = CountingApp(handlers.routes())
    with running(app) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request("/wait") + request("/echo", b"second") + request("/refuse") + request("/echo", b"fourth"))
        assert handlers.arrived.wait(20)
        handlers.gate.get_loop().call_soon_threadsafe(handlers.gate.set_result, None)
        stream = connection.makefile("rb")
        assert [answer(stream)[2] for _ in range(4)] == [b"waited", b"POST second", b'{"error":"not like this"}', b"POST fourth"]
        connection.sendall(request("/echo", b"later"))  # and the connection is as before
        assert answer(stream)[2] == b"POST later"


def test_a_caller_that_goes_away_leaves_nothing_behind(handlers):
    app = CountingApp(handlers.routes())
    with running(app) as (port, _):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(request("/wait"))
            assert handlers.arrived.wait(20)
            assert app.num_in_work == 1
        time.sleep(0.05)
        handlers.gate.get_loop().call_soon_threadsafe(handlers.gate.set_result, None)
        assert ask(port, request("/echo", b"next"))[2] == b"POST next"
        deadline = time.monotonic() + 20
        while app.num_in_work and time.monotonic() < deadline:
            time.sleep(0.01)
        assert app.num_in_work == 0


def test_shutdown_answers_what_was_begun(handlers):
    app = CountingApp(handlers.routes())
    with running(app) as (port, server), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request("/wait"))
        assert handlers.arrived.wait(20)
        server.should_exit = True
        time.sleep(0.3)  # uvicorn looks ten times a second
        handlers.gate.get_loop().call_soon_threadsafe(handlers.gate.set_result, None)
        stream = connection.makefile("rb")
        status, headers, body = answer(stream)
        assert (status.split()[1], headers[b"connection"], body) == (b"200", b"close", b"waited")
        assert stream.read() == b""


def test_idle_connections_are_closed_and_used_ones_are_not(handlers):
    app = CountingApp(handlers.routes())
    with running(app, timeout_keep_alive=2) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        stream = connection.makefile("rb")
        for _ in range(3):  # longer than two seconds in all
            connection.sendall(request("/echo"))
            assert answer(stream)[2] == b"POST {}"
            time.sleep(0.8)
        connection.sendall(request("/wait"))
        assert handlers.arrived.wait(20)
        time.sleep(2.5)  # for its answer, too, it waits
        handlers.gate.get_loop().call_soon_threadsafe(handlers.gate.set_result, None)
        assert answer(stream)[2] == b"waited"
        assert stream.read() == b""


@pytest.mark.parametrize("cut", [False, True], ids=["direct", "asgi"])
def test_overload_is_refused_on_both_ways(handlers, cut):
    app = CountingApp(handlers.routes(), limits=Limits(concurrent_requests=1), open_paths=frozenset({"/echo"}))
    with running(app) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request("/wait"))
        assert handlers.arrived.wait(20)
        sent = request("/turns")
        parts = (sent[:-1], sent[-1:]) if cut else (sent,)
        status, headers, body = ask(port, *parts)
        assert status.split()[1] == b"503" and headers[b"retry-after"] == b"1" and b"try again" in body
        assert ask(port, request("/echo"))[0].split()[1] == b"200"
        assert app.num_asgi == int(cut)
        handlers.gate.get_loop().call_soon_threadsafe(handlers.gate.set_result, None)
        assert answer(connection.makefile("rb"))[2] == b"waited"
        assert ask(port, *parts)[0].split()[1] == b"200"


@pytest.mark.parametrize("cut", [False, True], ids=["direct", "asgi"])
def test_strangers_learn_neither_paths_nor_load(handlers, cut):
    """Whoever has no token gets 401, also where others would get 503, 404 or 405."""
    app = CountingApp(handlers.routes(), limits=Limits(concurrent_requests=1), token="t" * 16, open_paths=frozenset({"/echo"}))
    holder = f"Authorization: Bearer {'t' * 16}\r\n"

    def status_of(path: str, headers: str, *, method: str = "POST") -> bytes:
        sent = request(path, method=method, headers=headers)
        return ask(port, *((sent[:-1], sent[-1:]) if cut else (sent,)))[0].split()[1]

    def statuses(headers: str) -> list[bytes]:
        return [status_of(path, headers) for path in ("/turns", "/missing", "/echo")] + [status_of("/turns", headers, method="PUT")]

    with running(app) as (port, _), socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        assert statuses(holder) == [b"200", b"404", b"200", b"405"]
        assert statuses("") == statuses("Authorization: Bearer wrong\r\n") == [b"401", b"401", b"200", b"401"]
        connection.sendall(request("/wait", headers=holder))
        assert handlers.arrived.wait(20)
        assert statuses(holder) == [b"503", b"404", b"200", b"405"]
        assert statuses("") == statuses("Authorization: Bearer wrong\r\n") == [b"401", b"401", b"200", b"401"]
        assert app.num_in_work == 1
        handlers.gate.get_loop().call_soon_threadsafe(handlers.gate.set_result, None)
        assert answer(connection.makefile("rb"))[2] == b"waited"


@pytest.mark.parametrize("cut", [False, True], ids=["direct", "asgi"])
def test_a_flood_of_strangers_waits_while_others_are_served(handlers, cut):
    """Four refusals a second: the last of ten strangers is told after the holder, who asks last."""
    app = CountingApp(handlers.routes(), limits=Limits(refusals_per_second=4), token="t" * 16)
    sent = [request("/echo")] * 10 + [request("/echo", headers=f"Authorization: Bearer {'t' * 16}\r\n")]
    with running(app) as (port, _), ExitStack() as opened, selectors.DefaultSelector() as ready:
        connections = [opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in sent]
        for place in (slice(-1), slice(-1, None)) if cut else (slice(None),):
            for connection, whole in zip(connections, sent):
                connection.sendall(whole[place])
            time.sleep(0.05)
        for connection in connections:
            ready.register(connection, selectors.EVENT_READ)
        order: list[bytes] = []
        while len(order) < len(sent):
            for key, _ in ready.select(20):
                order.append(key.fileobj.recv(4096).split()[1])
                ready.unregister(key.fileobj)
    assert sorted(order) == [b"200"] + [b"401"] * 10 and order[-1] == b"401"
    assert app.num_asgi == 11 * cut


def test_refusals_of_a_flood_take_turns():
    app = App([], limits=Limits(refusals_per_second=100))
    delays = [app.seconds_to_refusal() for _ in range(50)]
    assert delays[:9] == [0.0] * 9  # a tenth of a second's worth at once
    assert delays[-1] == pytest.approx(0.4, abs=0.05) and delays == sorted(delays)
