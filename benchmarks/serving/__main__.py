"""The load test: `trm serve` on one core, driven from another; benchmarks/results/serving.json.

    python -m benchmarks.serving FOLDER all --quick                       a rehearsal of everything, nothing written: a minute
    python -m benchmarks.serving FOLDER closed | open | floor | overload | soak   each under 8 minutes
    python -m benchmarks.serving FOLDER peers --peers VENV                beside others (benchmarks/peers/setup_serving.sh VENV)

FOLDER gets the models, made on the first call (some two minutes). The machine must be quiet: `other_cpus` in each row says how many
processors were busy with anything else, `loop_ms` how fast the server's core was just before (a fixed loop; compare rows of equal
pace). docs/serving.md says what each mode asks.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.record import merge_rows

from . import wrk
from .bodies import bid_bodies, describe, predict_bodies
from .driver import Driver
from .models import bid_config, copy_of, make
from .open_loop import AFTER_SECONDS, open_loop
from .peers import PEERS, peer
from .processes import Meter, Server, loop_milliseconds, ours

PACKAGES = ("uvicorn", "uvloop", "httptools", "msgspec", "onnxruntime", "numpy")
CONNECTIONS = (1, 4, 16, 64)
OPEN_CONNECTIONS = 64
OPEN_RATES = {
    ("deepfm", "/predict"): (5000, 10_000, 15_000),
    ("deepfm", "/bid"): (5000, 10_000),
    ("autoint", "/predict"): (2500, 5000),
}
FLOOR_RATE = 10_000
OVERLOAD_CONNECTIONS = 512
QUIET_CPUS = 0.2
SHOWN_OF_ROUNDS = ("requests_per_second", "p50_ms", "p99_ms", "other_cpus", "loop_ms")
PORT = 8700
Row = dict[str, Any]


@dataclass
class Bench:
    """What all modes share. The last core drives, the first one serves."""

    folder: Path
    seconds: float
    rounds: int
    rows: list[Row]
    server_core: int
    driver_core: int
    port: int

    def bodies(self, path: str) -> list[bytes]:
        return bid_bodies(self.folder) if path == "/bid" else predict_bodies(self.folder)

    def serve(self, model: str, *options: str | Path) -> Server:
        bundle = make(self.folder, model)
        bid = ("--bid", bid_config(self.folder))
        self.port += 1
        return ours(bundle, *bid, *(options or ("--watch-seconds", "0")), core=self.server_core, port=self.port)

    def closed(self, server: Server, path: str, connections: int, seconds: float) -> Row:
        bodies = self.bodies(path)
        if wrk.find():
            return {
                "driver": "wrk",
                **wrk.closed_loop(server.port, path, bodies, connections=connections, seconds=seconds, core=self.driver_core),
            }
        return {"driver": "ours", **Driver(server.port, path, bodies, connections=connections).closed_loop(seconds)}

    def measure(self, label: str, server: Server, run: Callable[[], Row], **facts: Any) -> Row:
        """Rounds of one measurement; the row is the round of median p99, with all rounds' rates and latencies beside it."""
        return self.report(label, [self.once(server, run) for _ in range(self.rounds)], **facts)

    def once(self, server: Server, run: Callable[[], Row]) -> Row:
        """One round, with what it cost."""
        loop_ms = loop_milliseconds(self.server_core)
        meter = Meter(server)
        row = run()
        num_answers = row["answered"] + (sum(row["refused"].values()) if isinstance(row["refused"], dict) else row["refused"])
        return {**row, **meter.read(num_answers), "loop_ms": loop_ms}

    def report(self, label: str, found: list[Row], **facts: Any) -> Row:
        """Prints and keeps the round of median p99."""
        best = sorted(found, key=lambda r: (r["p99_ms"] is None, r["p99_ms"]))[len(found) // 2]
        rounds = {f"{key}_of_rounds": [r[key] for r in found] for key in SHOWN_OF_ROUNDS}
        row = {"model": label, **facts, **best, **rounds}
        self.rows.append(row)
        _print(row)
        return row


def closed(bench: Bench) -> None:
    """Each connection sends the next request when it has the answer to the last."""
    for model, paths in (("deepfm", ("/predict", "/bid")), ("autoint", ("/predict",))):
        with bench.serve(model) as server:
            for path in paths:
                bench.closed(server, path, 16, min(bench.seconds, 2))
                for connections in CONNECTIONS:
                    bench.measure(
                        f"{model} {path}, closed loop, {connections} connections",
                        server,
                        partial(bench.closed, server, path, connections, bench.seconds),
                        connections=connections,
                        body=describe(bench.bodies(path)),
                    )


def open_(bench: Bench) -> None:
    """Poisson arrivals at fixed rates, latency from the scheduled arrival."""
    for model in ("deepfm", "autoint"):
        with bench.serve(model) as server:
            for path in ("/predict", "/bid"):
                bench.closed(server, path, 16, min(bench.seconds, 2))
                for rate in OPEN_RATES.get((model, path), ()):
                    bench.measure(
                        f"{model} {path}, open loop, {rate}/s",
                        server,
                        partial(_open, bench, server, path, rate),
                        connections=OPEN_CONNECTIONS,
                        body=describe(bench.bodies(path)),
                    )


def _open(bench: Bench, server: Server, path: str, rate: float, connections: int = OPEN_CONNECTIONS) -> Row:
    return open_loop(server.port, path, bench.bodies(path), connections=connections, rate=rate, seconds=bench.seconds)


def floor(bench: Bench) -> None:
    """The same requests to servers that do nothing, and to ours, turn and turn about: how much of a figure is ours."""
    servers = {"no-op protocol": _floor(bench, "protocol"), "no-op ASGI": _floor(bench, "asgi"), "trm serve": bench.serve("deepfm")}
    loads: dict[str, Callable[[Server], Row]] = {
        "closed loop, 16 connections": lambda server: bench.closed(server, "/predict", 16, bench.seconds),
        f"open loop, {FLOOR_RATE}/s": lambda server: _open(bench, server, "/predict", FLOOR_RATE),
    }
    with ExitStack() as stack:
        for server in servers.values():
            stack.enter_context(server)
            bench.closed(server, "/predict", 16, min(bench.seconds, 2))
        for load, run in loads.items():
            found: dict[str, list[Row]] = {name: [] for name in servers}
            for _ in range(bench.rounds):
                for name, server in servers.items():
                    found[name].append(bench.once(server, partial(run, server)))
            for name, rounds in found.items():
                bench.report(f"floor: {name}, {load}", rounds)


def _floor(bench: Bench, kind: str) -> Server:
    bench.port += 1
    command = [sys.executable, "-m", "benchmarks.serving.floor_server", kind, str(bench.port)]
    return Server(kind, command, core=bench.server_core, port=bench.port)


def overload(bench: Bench) -> None:
    """Twice as many requests as the server can answer, beside the most that it answers over as many connections.

    Turn and turn about, as the processor's pace changes: each round of overload is compared with the mean of the two beside it. The
    larger number of connections is more than the server takes at once.
    """
    with bench.serve("deepfm") as server:
        for connections in (OPEN_CONNECTIONS, OVERLOAD_CONNECTIONS):
            run = partial(bench.closed, server, "/predict", connections, bench.seconds)
            run()
            most, overloaded = [bench.once(server, run)], []
            for _ in range(bench.rounds):
                rate = 2 * max(row["requests_per_second"] for row in most)
                overloaded.append(bench.once(server, partial(_open, bench, server, "/predict", rate, connections)))
                most.append(bench.once(server, run))
            bench.report(f"deepfm /predict, most it answers, {connections} connections", most, connections=connections)
            row = bench.report(
                f"deepfm /predict, overload at 200 %, {connections} connections", overloaded, connections=connections
            )
            rates = [m["requests_per_second"] for m in most]
            shares = [2 * o["requests_per_second"] / (a + b) for a, b, o in zip(rates, rates[1:], overloaded)]
            row["goodput_of_most_of_rounds"] = [round(share, 3) for share in shares]
            row["goodput_of_most"] = round(median(shares), 3)
            print(f"  goodput: {row['goodput_of_most']:.1%} of the most, the median of {row['goodput_of_most_of_rounds']}")


def soak(bench: Bench) -> None:
    """70 % of what it can answer, with a new version every 5 s: errors, and memory at start and end."""
    bundle = make(bench.folder, "deepfm")
    versions = (bundle, copy_of(bundle))
    link = bench.folder / "current"
    _point(link, bundle)
    bench.port += 1
    options = ("--watch-seconds", "0.5")
    with ours(link, *options, core=bench.server_core, port=bench.port) as server:
        rate = 0.7 * max(bench.closed(server, "/predict", 64, min(bench.seconds, 5))["requests_per_second"], 1)
        seconds, rss_mib, moments, driver_loop_ms = 0, [], [], []

        def each_second() -> None:
            nonlocal seconds
            seconds += 1
            driver_loop_ms.append(loop_milliseconds(bench.driver_core, tries=1))
            if seconds % 5 == 0:
                _point(link, versions[seconds // 5 % 2])
                moments.append(time.monotonic())
                rss_mib.append(round(server.rss_bytes() / 2**20, 1))

        bodies = bench.bodies("/predict")
        row = bench.measure(
            "deepfm /predict, soak at 70 % with reloads",
            server,
            lambda: open_loop(
                server.port,
                "/predict",
                bodies,
                connections=OPEN_CONNECTIONS,
                rate=rate,
                seconds=bench.seconds,
                each_second=each_second,
                moments=moments,
            ),
            seconds=bench.seconds,
        )
        row["reloads"] = int(server.metric("trm_reloads_total"))
        row["failed_reloads"] = int(server.metric("trm_failed_reloads_total"))
        row["rss_mib_every_5_s"] = rss_mib
        row["driver_loop_ms_of_seconds"] = driver_loop_ms
        print(f"  ms in the {AFTER_SECONDS:g} s after a new version: {row.get('after_events')}, else: {row.get('else_events')}")
        print(f"  {row['reloads']} reloads, {row['failed_reloads']} refused; memory every 5 s: {rss_mib} MiB")


def _point(link: Path, target: Path) -> None:
    """Moves the link in one step."""
    fresh = link.with_name("next")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)


def beside(bench: Bench, venv: Path | None) -> None:
    """The same graph and transforms behind other servers, on the same core, turn and turn about; who is not asked is stopped."""
    bundle = make(bench.folder, "deepfm")
    servers: dict[str, Server] = {}
    with ExitStack() as stack:
        for name in ("trm serve", *PEERS):
            bench.port += 1
            try:
                server = (
                    bench.serve("deepfm")
                    if name == "trm serve"
                    else peer(name, venv, bundle, core=bench.server_core, port=bench.port)
                )
            except FileNotFoundError as error:
                print(f"{name}: not run: {error}")
                continue
            servers[name] = stack.enter_context(server)
            bench.closed(server, "/predict", 16, min(bench.seconds, 2))
            server.signal(signal.SIGSTOP)
            stack.callback(server.signal, signal.SIGCONT)
        for connections in (1, 16, 64):
            found: dict[str, list[Row]] = {name: [] for name in servers}
            for _ in range(bench.rounds):
                for name, server in servers.items():
                    server.signal(signal.SIGCONT)
                    found[name].append(bench.once(server, partial(bench.closed, server, "/predict", connections, bench.seconds)))
                    server.signal(signal.SIGSTOP)
            for name, rounds in found.items():
                bench.report(f"{name}, deepfm /predict, {connections} connections", rounds, connections=connections)


def _print(row: Row) -> None:
    noise = "" if row["other_cpus"] <= QUIET_CPUS else f"  NOT QUIET: {row['other_cpus']} other CPUs busy"
    print(
        f"{row['model']:<52} {row['requests_per_second']:>7,}/s  p50 {row['p50_ms']} p90 {row['p90_ms']} p99 {row['p99_ms']} "
        f"p99.9 {row['p99.9_ms']} ms  refused {row['refused']} failed {row['failed']}  "
        f"{row['server_cpu_us_per_request']} us CPU/request  {row['rss_mib']} MiB  loop {row['loop_ms']} ms{noise}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for the models, some 200 MB")
    parser.add_argument("mode", choices=["models", "closed", "open", "floor", "overload", "soak", "peers", "all"])
    parser.add_argument(
        "--seconds", type=float, default=0, help="of each measurement (default: 6; soak: 60; with --quick: 1; soak: 6)"
    )
    parser.add_argument("--rounds", type=int, default=0, help="of each measurement (default: 3; soak and --quick: 1)")
    parser.add_argument("--quick", action="store_true", help="short, and nothing is written")
    parser.add_argument("--peers", type=Path, help="environment made by benchmarks/peers/setup_serving.sh; default: no peers")
    parser.add_argument("--name", default="serving", help="of the result file")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("two cores are needed: one for the server, one for the driver")
    for model in ("deepfm", "autoint"):
        make(args.folder, model)
    os.sched_setaffinity(0, {cores[-1]})
    for mode in ("closed", "open", "floor", "overload", "soak", "peers") if args.mode == "all" else (args.mode,):
        is_soak = mode == "soak"
        seconds = args.seconds or (6 if is_soak else 1) if args.quick else args.seconds or (60 if is_soak else 6)
        rounds = args.rounds or (1 if args.quick or is_soak else 3)
        bench = Bench(args.folder, seconds, rounds, [], cores[0], cores[-1], PORT)
        modes: dict[str, Callable[[Bench], None]] = {
            "models": lambda bench: None,
            "closed": closed,
            "open": open_,
            "floor": floor,
            "overload": overload,
            "soak": soak,
            "peers": lambda bench: beside(bench, args.peers),
        }
        modes[mode](bench)
        if bench.rows and not args.quick:
            print(f"wrote {merge_rows(args.name, bench.rows, packages=PACKAGES)}")


if __name__ == "__main__":
    main()
