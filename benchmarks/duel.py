"""The driver's half of the duel: two workers, one at a time, turn and turn about, so that a slow minute hits both."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, NamedTuple

from .record import ROOT


class Worker:
    """A subprocess that answers `run N` (see step_server.py). Use as a context manager.

    Args:
        name: for messages.
        command: its command line; started in the repository's root.

    Raises:
        RuntimeError: if it ends before it has answered.
    """

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise RuntimeError(f"worker {self.name!r} ended with status {status}; see its last words on standard error")
        return json.loads(line)

    def run(self, num_steps: int) -> dict[str, Any]:
        """`num_steps` training steps: {"steps", "seconds", "loss"}, and `other_cpus`, the processors busy with anything else."""
        assert self.process.stdin is not None
        busy, own = busy_seconds(), process_seconds(self.process.pid)
        self.process.stdin.write(f"run {num_steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        others = (busy_seconds() - busy) - (process_seconds(self.process.pid) - own)
        return {**answer, "other_cpus": round(max(others, 0.0) / answer["seconds"], 2)}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def busy_seconds() -> float:
    """Processor seconds spent on work since boot, over all cores (/proc/stat: user nice system idle iowait irq softirq)."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:8]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """Processor seconds of a process and all its threads (/proc/PID/stat: utime and stime follow the name in brackets)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Pair(NamedTuple):
    """One round of each side, samples per second."""

    ours: float
    theirs: float
    other_cpus: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def alternate(ours: Worker, theirs: Worker, *, rounds: int, steps: int, warmup_steps: int) -> list[Pair]:
    """`rounds` pairs of `steps` steps each, after a warm-up that does not count. Prints each pair as it comes."""
    for worker in (ours, theirs):
        worker.run(warmup_steps)
    pairs = []
    print(f"{'round':>5}  {'ours':>12}  {'theirs':>12}  samples/s   ratio  other CPUs busy", file=sys.stderr)
    for number in range(1, rounds + 1):
        speed, others = {}, 0.0
        for worker in (ours, theirs):
            answer = worker.run(steps)
            speed[worker] = answer["steps"] * worker.about["rows_per_step"] / answer["seconds"]
            others = max(others, answer["other_cpus"])
        pair = Pair(ours=speed[ours], theirs=speed[theirs], other_cpus=others)
        pairs.append(pair)
        line = f"{number:>5}  {pair.ours:>12,.0f}  {pair.theirs:>12,.0f}             {pair.ratio:>5.2f}  {others:.2f}"
        print(line, file=sys.stderr)
    return pairs


def summary(ours: Worker, theirs: Worker, pairs: list[Pair]) -> dict[str, Any]:
    """What goes into the result file: both sides' own words, every pair, medians, the ratio pair by pair."""
    ratios = [pair.ratio for pair in pairs]
    return {
        "ours": ours.about,
        "theirs": theirs.about,
        "pairs": [{**pair._asdict(), "ratio": pair.ratio} for pair in pairs],
        "ours_samples_per_second_median": median(pair.ours for pair in pairs),
        "theirs_samples_per_second_median": median(pair.theirs for pair in pairs),
        "ratio_median": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "other_cpus_max": max(pair.other_cpus for pair in pairs),
    }


QUIET_CPUS = 0.2


def print_summary(title: str, result: dict[str, Any]) -> None:
    print(
        f"{title}: ours {result['ours_samples_per_second_median']:,.0f} samples/s, "
        f"theirs {result['theirs_samples_per_second_median']:,.0f}; ratio {result['ratio_median']:.2f} "
        f"(pairs {result['ratio_min']:.2f} to {result['ratio_max']:.2f}), other CPUs busy up to {result['other_cpus_max']:.2f}"
    )
    if result["other_cpus_max"] > QUIET_CPUS:
        print(f"NOT QUIET: other processes took more than {QUIET_CPUS} of a CPU; measure again before quoting these figures")
