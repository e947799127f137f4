"""`trm profile`: the loader alone, training on one cached batch, and training with the loader, turn and turn about."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch.profiler import record_function

from torchrec_models.batch import Batch
from torchrec_models.pipelines.config import RunConfig
from torchrec_models.pipelines.data.prepare import open_prepared
from torchrec_models.pipelines.distributed import processes
from torchrec_models.pipelines.monitor import LossCheck, TimedBatches
from torchrec_models.pipelines.train import NOTING, Trainer

from .gpu import GpuSamples, sampled
from .result import Profile, Rate
from .split import profiled
from .verdict import Part, Speeds, judge

TIMELINE = "timeline.json"
FEWEST_ROUNDS, MOST_ROUNDS, STEPS_OF_A_TURN = 4, 20, 24  # a machine changes its pace within seconds: rather many short turns
VARIED_BATCHES = 16
WARM_UP_STEPS = 20
SETTLE_STEPS = 8  # at the start of a turn: batches in the pipeline are of the turn before, and the loader has read ahead
PROFILED_STEPS = 20
TIMELINE_STEPS = 10


def profile_run(config: RunConfig, *, seconds: float = 5.0, out: Path | None = None) -> Profile:
    """Measure a prepared run. Writes a timeline; no checkpoint, and nothing into the run's folder.

    Args:
        seconds: for each of the kinds of turns, over all rounds, after a warm-up.
        out: folder for the timeline; default: <run>.profile beside the run's folder.

    Raises:
        ValueError: data not prepared or changed since; an option that this device lacks; no time to measure in.
        NonFiniteLoss: the loss became NaN or infinite.
    """
    if not seconds > 0:
        raise ValueError(f"--seconds must be above 0; given {seconds:g}")
    cache = open_prepared(config)
    run = Path(config.run)
    out = out or run.with_name(f"{run.name}.profile")
    with processes(timeout_seconds=2 * config.train.step_timeout_seconds) as procs, tempfile.TemporaryDirectory() as log:
        trainer = Trainer(config, cache, procs, show=False)
        if procs.is_first:
            out.mkdir(parents=True, exist_ok=True)
        return Turns(trainer, Path(log) if procs.is_first else None).profile(seconds, out)


class Turns:
    """A trainer, and what it is fed with in turn.

    Args:
        log: folder for metrics.csv and TensorBoard's events: logging is a part of a step.
    """

    def __init__(self, trainer: Trainer, log: Path | None) -> None:
        self._trainer, self._device = trainer, trainer.procs.device
        self._loading = TimedBatches(trainer.loader.epochs(itertools.count()))
        some = list(itertools.islice(self._loading, VARIED_BATCHES))
        one = some[0]
        self._ways: dict[str, Iterator[Batch]] = {
            "cached": itertools.repeat(one),
            "varied": itertools.cycle(some),
            "both": self._loading,
        }
        if self._device.type == "cuda":
            self._ways["resident"] = itertools.repeat(one.to(self._device))
        self._monitor = trainer.monitor(log, self._loading, show=False)
        self._check = LossCheck(self._device)

    def profile(self, seconds: float, out: Path) -> Profile:
        """See `profile_run`."""
        trainer, procs = self._trainer, self._trainer.procs
        trainer.built.task.train()
        on_gpu = self._device.type == "cuda"
        try:
            self._steps("both", WARM_UP_STEPS)
            with sampled(self._device) if on_gpu else nullcontext(GpuSamples()) as samples:
                rates, wait_share = self._rounds(seconds)
            parts = self._profiled("cached", PROFILED_STEPS, None)
            timeline = out / (TIMELINE if procs.is_first else f"timeline-{procs.rank}.json")
            self._profiled("both", TIMELINE_STEPS, timeline)
        finally:
            self._monitor.close()
        resident = Rate.of(rates["resident"]) if on_gpu else None
        reached, of_varied = (statistics.median(b / c for b, c in zip(rates["both"], rates[way])) for way in ("cached", "varied"))
        loader, cached = Rate.of(rates["loader"]), Rate.of(rates["cached"])
        speeds = Speeds(
            loader=loader.per_second,
            cached=cached.per_second,
            reached=reached,
            reached_of_varied=of_varied,
            shares=parts,
            resident=resident.per_second if resident else None,
        )
        return Profile(
            model=f"{trainer.config.model['name']} ({trainer.config.train.mode})",
            device=torch.cuda.get_device_name(self._device) if on_gpu else "the CPU",
            num_processes=procs.world_size,
            num_threads=torch.get_num_threads(),
            batch_size=trainer.config.train.batch_size,
            loader=loader,
            cached=cached,
            varied=Rate.of(rates["varied"]),
            both=Rate.of(rates["both"]),
            resident=resident,
            reached=reached,
            reached_of_varied=of_varied,
            wait_share=wait_share,
            step_parts=parts,
            gpu=samples.as_dict() if on_gpu else {},
            timeline=timeline,
            verdict=judge(speeds),
        )

    def _rounds(self, seconds: float) -> tuple[dict[str, list[float]], float]:
        """Full batches per second of every way in every round, and the share of time spent waiting for the loader."""
        rates: dict[str, list[float]] = {name: [] for name in ("loader", *self._ways)}
        num_rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, self._num_steps("cached", seconds) // STEPS_OF_A_TURN))
        num_steps = {name: self._num_steps(name, seconds / num_rounds) for name in self._ways}
        waited_seconds = both_seconds = 0.0
        for number in range(num_rounds):
            if number < FEWEST_ROUNDS:  # it begins anew each time, which a short turn would be full of
                rates["loader"].append(self._loader_alone(seconds / FEWEST_ROUNDS))
            # there and back: a machine that gets slower meanwhile is not the fault of whoever comes last
            for name in self._ways if number % 2 == 0 else reversed(self._ways):
                self._steps(name, SETTLE_STEPS)
                before = self._loading.waited_seconds
                turn_seconds, num_batches = self._steps(name, num_steps[name])
                rates[name].append(num_batches / turn_seconds)
                if name == "both":
                    waited_seconds += self._loading.waited_seconds - before
                    both_seconds += turn_seconds
        return rates, waited_seconds / both_seconds

    def _steps(self, way: str, num_steps: int) -> tuple[float, float]:
        """Train, as `trm train` does. Returns seconds, and how many full batches these steps were."""
        batches, monitor, before = self._ways[way], self._monitor, self._monitor.num_rows
        start = self._now()
        for _ in range(num_steps):
            factor = self._trainer.step(batches, monitor, self._check)
            with record_function(NOTING):
                monitor.log_if_due(factor)
        return self._now() - start, (monitor.num_rows - before) / self._trainer.config.train.batch_size

    def _num_steps(self, way: str, turn_seconds: float) -> int:
        """Steps that fill a turn: the same on every process, which would wait for one another otherwise."""
        self._steps(way, SETTLE_STEPS)
        seconds, _ = self._steps(way, SETTLE_STEPS)
        agreed = self._trainer.procs.broadcast(max(SETTLE_STEPS, round(turn_seconds * SETTLE_STEPS / seconds)))
        assert isinstance(agreed, int)
        return agreed

    def _loader_alone(self, turn_seconds: float) -> float:
        """Full batches of all processes per second, were each as fast as this one."""
        num_rows, start = 0, time.perf_counter()
        with closing(self._trainer.loader.epochs(itertools.count())) as batches:
            for batch in batches:
                num_rows += batch.num_rows
                if (seconds := time.perf_counter() - start) > turn_seconds:
                    break
        return num_rows * self._trainer.procs.world_size / self._trainer.config.train.batch_size / seconds

    def _profiled(self, way: str, num_steps: int, timeline: Path | None) -> dict[Part, float]:
        self._steps(way, SETTLE_STEPS)
        steps = partial(self._steps, way, num_steps)
        return profiled(steps, is_sharded=self._trainer.built.is_sharded, device=self._device, timeline=timeline)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
