"""A real `trm serve` in a process of its own (`from server_process import serving`)."""

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_READY = re.compile(r"serving .* on https?://[\d.]+:(\d+)")


class Answer:
    """Status, headers (lower case) and body of a response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {k.lower(): v for k, v in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A running server.

    Attributes:
        port: where it listens, on 127.0.0.1.
        lines: what it wrote to standard error until it was ready.
    """

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0
        with log.open() as lines:
            while process.poll() is None:
                line = lines.readline()
                found = _READY.search(line)
                if found:
                    self.port = int(found[1])
                    break
        if not self.port:
            raise RuntimeError(f"trm serve ended with status {process.wait()}: {log.read_text()}")
        self.ask("GET", "/readyz")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own; a body that is not bytes goes as JSON. `_` in header names stands for `-`."""
        connection = self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = Answer(connection.getresponse())
        connection.close()
        return answer

    def metric(self, start: str) -> float:
        """The sum of the metrics whose line starts so."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@contextmanager
def serving(folder: Path, *arguments: str | Path, make: type[Served] = Served) -> Iterator[Served]:
    """`trm serve *arguments` on a free port, with its log in `folder`; ended at the end."""
    code = "import sys; from torchrec_models.pipelines.cli import main; sys.exit(main())"
    log = folder / "serve.log"
    command = [sys.executable, "-c", code, "serve", "--port", "0", *map(str, arguments)]
    with log.open("w") as err, (folder / "serve.out").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=err)
    try:
        yield make(process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
