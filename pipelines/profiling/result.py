"""What a profile measured, as a table for people and as JSON for programs."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .verdict import Part, Verdict


@dataclass(frozen=True)
class Rate:
    """Full batches per second: the median of the rounds, and each of them."""

    per_second: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, rounds: list[float]) -> "Rate":
        return cls(statistics.median(rounds), tuple(rounds))


@dataclass(frozen=True)
class Profile:
    """What `profile_run` measured.

    Attributes:
        loader: the loader alone.
        cached, varied, both: training on one cached batch over and over; on several in turn; with the loader.
        resident: as `cached`, the batch lying on the GPU already; None without a GPU.
        reached, reached_of_varied: `both` as a share of `cached` and of `varied`, medians over rounds: turns of one round see the
            same machine.
        wait_share: of the time with the loader on, waiting for the next batch.
        step_parts: part -> share of a step on the cached batch.
        gpu: see `GpuSamples.as_dict`; empty on a CPU.
        timeline: for https://ui.perfetto.dev.
    """

    model: str
    device: str
    num_processes: int
    num_threads: int
    batch_size: int
    loader: Rate
    cached: Rate
    varied: Rate
    both: Rate
    resident: Rate | None
    reached: float
    reached_of_varied: float
    wait_share: float
    step_parts: Mapping[Part, float]
    gpu: Mapping[str, float | str]
    timeline: Path
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "timeline": str(self.timeline)}

    def render(self) -> str:
        """A table, and the verdict in words."""
        rates = {"loader alone": self.loader, "training on a cached batch": self.cached}
        rates |= {"training on several in turn": self.varied, "training with the loader": self.both}
        if self.resident:
            rates["training on a batch on the GPU"] = self.resident
        workers = f"{self.num_processes} process(es) of {self.num_threads} thread(s)"
        lines = [
            f"{self.model} on {self.device}, {workers}, batch {self.batch_size:,}",
            "",
            f"{'':32} {'batches/s':>10} {'rows/s':>12} {'ms each':>9}   rounds",
        ]
        for name, rate in rates.items():
            speed, rounds = rate.per_second, f"{min(rate.rounds):,.1f} to {max(rate.rounds):,.1f}"
            lines.append(f"{name:32} {speed:>10,.1f} {speed * self.batch_size:>12,.0f} {1000 / speed:>9.3f}   {rounds}")
        lines += [
            "",
            f"with the loader: {self.reached:.1%} of the cached speed; {self.wait_share:.1%} of the time waits for batches",
        ]
        step_ms = 1000 / self.cached.per_second
        parts = sorted(self.step_parts.items(), key=lambda item: -item[1])
        lines.append("of a step: " + ", ".join(f"{part} {share:.1%} ({share * step_ms:.2f} ms)" for part, share in parts))
        if self.gpu:
            lines.append("GPU: " + ", ".join(f"{k} {v if isinstance(v, str) else f'{v:,.4g}'}" for k, v in self.gpu.items()))
        lines += ["", self.verdict.text, f"to change it: {self.verdict.advice}", "", f"timeline (ui.perfetto.dev): {self.timeline}"]
        return "\n".join(lines)
