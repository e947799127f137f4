"""The open loop: Poisson arrivals, latency from the scheduled arrival. open_loop.c drives; without a compiler, driver.py."""

import shutil
import struct
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .driver import LAST_ANSWER_SECONDS, PATIENCE_SECONDS, Driver, arrivals, http_request, percentiles_ms

AFTER_SECONDS = 1.5
SOURCE = Path(__file__).with_name("open_loop.c")


@cache
def find() -> str | None:
    """The compiled driver's path, None where there is no C compiler (Debian: apt-get install gcc)."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    program = Path(tempfile.mkdtemp(prefix="open-loop-")) / "open_loop"
    subprocess.run([compiler, "-O2", "-o", str(program), str(SOURCE)], check=True)
    return str(program)


def open_loop(
    port: int,
    path: str,
    bodies: list[bytes],
    *,
    connections: int,
    rate: float,
    seconds: float,
    each_second: Callable[[], None] | None = None,
    moments: list[float] | None = None,
) -> dict[str, Any]:
    """`rate` requests per second on average, for `seconds`; `Driver.summary` says what comes back, and `driver` who drove.

    Args:
        each_second: called about once a second meanwhile.
        moments: `time.monotonic()` of events, put there by `each_second`; latencies from then until AFTER_SECONDS later are apart.
    """
    program = find()
    if program is None:
        driver = Driver(port, path, bodies, connections=connections, each_second=each_second)
        return {"driver": "driver.py", **driver.open_loop(rate, seconds)}
    schedule = np.array(arrivals(rate, seconds, seed=0))
    with tempfile.TemporaryDirectory() as folder:
        requests, at, out = (Path(folder) / name for name in ("requests", "arrivals", "outcomes"))
        whole = [http_request(path, body) for body in bodies]
        requests.write_bytes(b"".join(struct.pack("=I", len(one)) + one for one in whole))
        at.write_bytes(schedule.tobytes())
        numbers = (port, connections, PATIENCE_SECONDS, LAST_ANSWER_SECONDS)
        start = time.monotonic()
        running = subprocess.Popen([program, *map(str, numbers), str(requests), str(at), str(out)])
        while running.poll() is None:
            try:
                running.wait(1.0)
            except subprocess.TimeoutExpired:
                if each_second:
                    each_second()
        if running.returncode:
            raise RuntimeError(f"{SOURCE.name} ended with status {running.returncode}")
        outcomes = np.frombuffer(out.read_bytes()).reshape(-1, 2)
    took, statuses = max(outcomes[-1, 0], seconds), outcomes[:-1, 1].astype(int)
    is_answered = (statuses > 0) & (statuses < 400)
    answered = outcomes[:-1, 0][is_answered]
    apart: dict[str, Any] = {}
    if moments is not None:
        is_after = np.zeros(len(schedule), bool)
        for moment in moments:
            is_after |= (schedule >= moment - start) & (schedule < moment - start + AFTER_SECONDS)
        parts = {"after": is_after, "else": ~is_after}
        apart = {f"{name}_events": percentiles_ms(outcomes[:-1, 0][is_answered & part]) for name, part in parts.items()}
        seconds_of = schedule[is_answered].astype(int)
        apart["p99_ms_of_seconds"] = [percentiles_ms(answered[seconds_of == s])["p99_ms"] for s in range(int(seconds))]
    return {
        "driver": SOURCE.name,
        "offered_per_second": round(len(schedule) / seconds),
        "requests_per_second": round(len(answered) / took),
        **percentiles_ms(answered),
        "answered": len(answered),
        "refused": {str(s): n for s, n in sorted(Counter(statuses[statuses >= 400].tolist()).items())},
        "failed": int((statuses == -1).sum()),
        "given_up": int((statuses == 0).sum()),
        **apart,
    }
