"""Learn the steps of one numeric feature in as few passes as they need."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..config.data import ClipStep, FillStep, QuantileStep
from .numeric import (
    MISSING_NUMBER,
    Clip,
    Fill,
    IsMissing,
    Log1p,
    MinMax,
    Quantile,
    Standard,
    Step,
    apply_step,
    step_from_dict,
    step_to_dict,
)
from .statistics import Moments, RowSample
from .values import Place

StepConfig = FillStep | ClipStep | QuantileStep | str


def _learned(step: StepConfig) -> bool:
    return isinstance(step, QuantileStep) or step in ("min_max", "standard") or _learned_fill(step)


def _learned_fill(step: StepConfig) -> bool:
    return isinstance(step, FillStep) and isinstance(step.fill, str)


def _sampled(step: StepConfig) -> bool:
    return isinstance(step, QuantileStep) or (isinstance(step, FillStep) and step.fill == "median")


def _unlearned(step: StepConfig) -> Step:
    if isinstance(step, FillStep):
        return Fill(float(step.fill))
    if isinstance(step, ClipStep):
        return Clip(*step.clip)
    if step == "is_missing":
        return IsMissing()
    assert step == "log1p", step
    return Log1p()


class Learnable(NamedTuple):
    """For the statistic of a step (its position): present values, and how many were missing."""

    step: int
    values: np.ndarray
    num_missing: int


class NumericFit:
    """Steps are learned in order: `standard` after `log1p` sees logarithms.

    One pass learns one of min_max, standard and quantile. A learned fill needs no pass of its own: the rows it fills all get the
    same value, so that value, sent through the steps in between, enters the later statistic with its count at the pass's end.
    Missing values before a fill are left out of statistics.

    Args:
        sample_rows: rows from which medians and quantiles are computed, at most.

    Raises:
        ValueError: for a second fill, and a mask beside a fill.
    """

    def __init__(self, name: str, steps: Sequence[StepConfig], *, sample_rows: int) -> None:
        self._name = name
        self._fitted: list[Step] = []
        self._remaining = list(steps)
        self._sample_rows = sample_rows
        fills = [step for step in steps if isinstance(step, FillStep) or step == "is_missing"]
        self._fills = bool(fills)
        if len(fills) > 1:
            first, second = ("fill" if isinstance(step, FillStep) else str(step) for step in fills[:2])
            what = "the second fill" if first == second == "fill" else f"{second} after {first}"
            apart = "" if first == second else "; a mask is a feature of its own, with the same column and steps: [is_missing]"
            raise ValueError(f"features.{name}.steps: {what} has no effect, nothing is missing after the first; keep one{apart}")
        ends = [i for i, s in enumerate(steps) if _learned(s) and not _learned_fill(s)]
        self.num_passes = len(ends) + any(_learned_fill(s) for s in steps[ends[-1] if ends else 0 :])
        self._plan()

    @staticmethod
    def num_samples(steps: Sequence[StepConfig]) -> int:
        """How many row samples are held at once."""
        return min(sum(map(_sampled, steps)), 2)

    def _plan(self) -> None:
        """Statistics of the coming pass, by the position of their step, up to the first learned step that is no fill."""
        self._statistics: dict[int, Moments | RowSample] = {}
        self._num_missing = 0
        for i, step in enumerate(self._remaining):
            if _learned(step):
                self._statistics[i] = RowSample(self._sample_rows) if _sampled(step) else Moments()
                if not _learned_fill(step):
                    break

    def update(self, x: np.ndarray, place: Place) -> None:
        """`add` of `learnable`."""
        self.add(self.learnable(x, place))

    def learnable(self, x: np.ndarray, place: Place) -> list[Learnable]:
        """What the statistics of this pass learn from training values [N], NaN where missing. Any thread may do this.

        Raises:
            ValueError: for infinite values, and for missing ones without a fill (file, column and row).
        """
        for done in self._fitted:
            x = apply_step(done, x, place)
        missing = np.isnan(x)
        if missing.any() and not self._fills:
            raise place.error(int(missing.argmax()), MISSING_NUMBER)
        out = []
        for i, step in enumerate(self._remaining[: max(self._statistics, default=-1) + 1]):
            if i not in self._statistics:
                x = apply_step(_unlearned(step), x, place)
                continue
            infinite = np.isinf(x)
            if infinite.any():
                at = int(infinite.argmax())
                raise place.error(at, f"{x[at]:g} cannot be learned from; add a {{clip: [low, high]}} step before {_shown(step)}")
            missing = np.isnan(x)
            out.append(Learnable(i, x[~missing], int(missing.sum()) if _learned_fill(step) else 0))
        return out

    def start_part(self, number: int) -> None:
        """What `add` gets from now on belongs to this part of the rows."""
        for statistic in self._statistics.values():
            statistic.start_part(number)

    def state(self) -> Iterator[tuple[dict[str, Any], pa.Table]]:
        """What this pass has learned so far: a key that JSON can hold, and a table, for each statistic."""
        for i, statistic in self._statistics.items():
            yield {"step": i, "num_missing": self._num_missing if i == min(self._statistics) else 0}, statistic.state()

    def merge(self, key: dict[str, Any], table: pa.Table) -> None:
        """Learn what another has learned from its parts of the rows."""
        self._num_missing += key["num_missing"]
        self._statistics[key["step"]].merge(table)

    def fitted_steps(self) -> list[dict[str, Any]]:
        """Those that the passes so far have fixed, as JSON."""
        return [step_to_dict(step) for step in self._fitted]

    def take_steps(self, steps: Sequence[dict[str, Any]]) -> None:
        """End the pass with steps that another has fixed."""
        self._remaining = self._remaining[len(steps) - len(self._fitted) :]
        self._fitted = [step_from_dict(step) for step in steps]
        self._plan()

    def add(self, learnable: Sequence[Learnable]) -> None:
        """Learn what `learnable` gave, in the order of the rows."""
        for each in learnable:
            self._num_missing += each.num_missing
            self._statistics[each.step].update(each.values)

    def end_pass(self) -> None:
        """Fix the steps that the pass was for."""
        if not self._statistics:
            return
        last = max(self._statistics)
        filled: float | None = None
        for i, step in enumerate(self._remaining[: last + 1]):
            statistics = self._statistics.get(i)
            done = _unlearned(step) if statistics is None else self._finished(step, statistics, filled)
            self._fitted.append(done)
            if _learned_fill(step):
                assert isinstance(done, Fill)
                filled = done.value
            elif filled is not None:
                filled = float(done.apply(np.array([filled]))[0])
        self._remaining = self._remaining[last + 1 :]
        self._plan()

    def _finished(self, step: StepConfig, statistics: Moments | RowSample, filled: float | None) -> Step:
        repeated = None if filled is None else (filled, self._num_missing)
        seen = statistics.count if isinstance(statistics, Moments) else statistics.seen
        if not seen:
            raise ValueError(
                f"features.{self._name}.steps: every training value is missing, so {_shown(step)} cannot be learned; "
                "look at the column, or leave the feature out"
            )
        if isinstance(statistics, RowSample):
            if isinstance(step, QuantileStep):
                return Quantile(tuple(statistics.quantiles(np.linspace(0, 1, step.quantile), repeated=repeated).tolist()))
            return Fill(float(statistics.quantiles(np.array([0.5]))[0]))
        if isinstance(step, FillStep):
            return Fill(statistics.mean)
        if repeated:
            statistics.repeat(*repeated)
        return MinMax(statistics.low, statistics.high) if step == "min_max" else Standard(statistics.mean, statistics.std)

    def finish(self) -> tuple[Step, ...]:
        assert not self._statistics, f"{self._name}: a pass is missing"
        return (*self._fitted, *map(_unlearned, self._remaining))


def _shown(step: StepConfig) -> str:
    if isinstance(step, FillStep):
        return f"fill: {step.fill}"
    return f"quantile: {step.quantile}" if isinstance(step, QuantileStep) else str(step)
