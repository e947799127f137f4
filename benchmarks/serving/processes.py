"""A server in a process of its own, held to one core, and what it costs there."""

import contextlib
import http.client
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.duel import busy_seconds, process_seconds
from benchmarks.record import ROOT

START_SECONDS = 60.0
STOP_SECONDS = 20.0


class Server:
    """A running server. Use as a context manager.

    Args:
        name: for messages.
        command: its command line; started in the repository's root.
        core: the only core that it and its children may use.
        port: where it will listen, on 127.0.0.1.
        ready_path: answers with 200 when it is ready.

    Raises:
        RuntimeError: if it ends, or is not ready after a minute, with the end of its log.
    """

    def __init__(self, name: str, command: list[str], *, core: int, port: int, ready_path: str = "/readyz") -> None:
        self.name = name
        self.port = port
        self._log = tempfile.NamedTemporaryFile(prefix="server-", suffix=".log")  # noqa: SIM115 closed in __exit__
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=self._log, stderr=self._log, preexec_fn=lambda: os.sched_setaffinity(0, {core})
        )
        try:
            self._wait(ready_path)
        except BaseException:
            self.stop()
            raise

    def _wait(self, path: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.get(path)[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
        last = Path(self._log.name).read_text()[-2000:]
        raise RuntimeError(f"{self.name} did not become ready on port {self.port}; its last words:\n{last}")

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def metric(self, start: str) -> float:
        """The sum of the Prometheus lines that start so."""
        return sum(float(line.rpartition(" ")[2]) for line in self.get("/metrics")[1].splitlines() if line.startswith(start))

    def processes(self) -> list[int]:
        """Its process id, its children's and theirs."""
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(path.read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):  # ended meanwhile
                continue
            children.setdefault(parent, []).append(int(path.parent.name))
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue += children.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """Of all its processes."""
        return sum(process_seconds(pid) for pid in self.processes())

    def rss_bytes(self) -> int:
        """Resident memory of all its processes; pages that they share count in each."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.processes()) * os.sysconf("SC_PAGE_SIZE")

    def signal(self, number: signal.Signals) -> None:
        """To all its processes: SIGSTOP, and SIGCONT to let it go on."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        """Ends it, and its children where it leaves them behind: they would take the next server's core."""
        children = self.processes()[1:]
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._log.close()


def ours(bundle: Path, *options: str | Path, core: int, port: int) -> Server:
    """`trm serve` with a bundle."""
    command = [sys.executable, "-m", "torchrec_models.pipelines.cli", "serve", f"model={bundle}", "--port", str(port)]
    return Server("trm serve", [*command, *map(str, options)], core=core, port=port)


def loop_milliseconds(core: int, *, tries: int = 5) -> float:
    """How long a fixed loop of the interpreter takes on a core now, the best of some tries.

    Virtual machines share their processors: one and the same loop may take twice as long a minute later, and so does the server.
    """
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    best = math.inf
    for _ in range(tries):
        start = time.perf_counter()
        for _ in range(200_000):
            pass
        best = min(best, time.perf_counter() - start)
    os.sched_setaffinity(0, mine)
    return round(1000 * best, 2)


@dataclass
class Meter:
    """What a server, this process and everybody else used of the processors since the meter was made."""

    server: Server

    def __post_init__(self) -> None:
        self._start, self._server, self._busy, self._own = time.perf_counter(), self.server.cpu_seconds(), busy_seconds(), _own()

    def read(self, num_answers: int) -> dict[str, float]:
        seconds = time.perf_counter() - self._start
        server = self.server.cpu_seconds() - self._server
        others = busy_seconds() - self._busy - server - (_own() - self._own)
        return {
            "server_cpu_us_per_request": round(1e6 * server / max(num_answers, 1), 1),
            "server_cpu_share": round(server / seconds, 3),
            "rss_mib": round(self.server.rss_bytes() / 2**20, 1),
            "other_cpus": round(max(others, 0.0) / seconds, 2),
        }


def _own() -> float:
    """Processor seconds of this process and of the children that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
