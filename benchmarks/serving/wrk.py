"""The closed loop: each connection sends the next request when it has the answer to the last. Driven by wrk, a C program."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SCRIPT = """
local bodies = {}
for line in io.lines(os.getenv("BODIES")) do
  bodies[#bodies + 1] = wrk.format("POST", nil, {["content-type"] = "application/json"}, line)
end
local next = 0
function request()
  next = next % #bodies + 1
  return bodies[next]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests": %d, "us": %d, "p50": %g, "p90": %g, "p99": %g, "p99.9": %g, ',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    latency:percentile(99.9)))
  io.write(string.format('"refused": %d, "failed": %d}\\n', e.status, e.connect + e.read + e.write + e.timeout))
end
"""


def find() -> str | None:
    """wrk's path, None where it is not installed (Debian: apt-get install wrk)."""
    return shutil.which("wrk")


def closed_loop(port: int, path: str, bodies: list[bytes], *, connections: int, seconds: float, core: int) -> dict[str, Any]:
    """Requests per second and latency in ms. `refused` are answers of status 400 and above, `failed` those that never came.

    Args:
        core: the only core that wrk may use.
    """
    with tempfile.TemporaryDirectory() as folder:
        script, lines = Path(folder) / "bodies.lua", Path(folder) / "bodies"
        script.write_text(SCRIPT)
        lines.write_bytes(b"\n".join(bodies) + b"\n")
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(round(seconds), 1)}s",
            "-s",
            str(script),
            f"http://127.0.0.1:{port}{path}",
        ]
        done = subprocess.run(
            command,
            env={**os.environ, "BODIES": str(lines)},
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    found = json.loads(done.stdout.rpartition("RESULT ")[2])
    answered = found["requests"] - found["refused"]
    return {
        "requests_per_second": round(answered / found["us"] * 1e6),
        **{f"{p}_ms": round(found[p] / 1000, 3) for p in ("p50", "p90", "p99", "p99.9")},
        "answered": answered,
        "refused": found["refused"],
        "failed": found["failed"],
    }
