"""Fitted steps on one numeric column, float64 in and out; NaN stands for a missing value until a fill.

Runs in exported bundles too: numpy and pyarrow only.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from .plain_values import Undecided, plain_number
from .values import Place, is_list, numbers


@dataclass(frozen=True)
class Fill:
    """Missing values become `value`."""

    value: float

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x), self.value, x)

    def apply_value(self, x: float) -> float:
        return x if x == x else float(self.value)


@dataclass(frozen=True)
class IsMissing:
    """1 where the value is missing, 0 where it is there: a mask, as a feature beside the filled one."""

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.isnan(x).astype(np.float64)

    def apply_value(self, x: float) -> float:
        return 0.0 if x == x else 1.0


@dataclass(frozen=True)
class Clip:
    """Values below `low` become `low`, above `high` become `high`; None is no bound."""

    low: float | None
    high: float | None

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.clip(x, self.low, self.high)

    def apply_value(self, x: float) -> float:
        if self.low is not None and x < self.low:
            x = float(self.low)
        return float(self.high) if self.high is not None and x > self.high else x


@dataclass(frozen=True)
class Log1p:
    """ln(1 + x), for x > -1."""

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.log1p(x)

    def apply_value(self, x: float) -> float:
        if x <= -1:
            raise Undecided
        return float(np.log1p(x))  # math.log1p may differ from numpy's in the last bit


@dataclass(frozen=True)
class MinMax:
    """(x - low) / (high - low): the training rows lie in [0, 1], others may fall outside. A constant column becomes 0."""

    low: float
    high: float

    def apply(self, x: np.ndarray) -> np.ndarray:
        return (x - self.low) / ((self.high - self.low) or 1.0)

    def apply_value(self, x: float) -> float:
        return (x - self.low) / ((self.high - self.low) or 1.0)


@dataclass(frozen=True)
class Standard:
    """(x - mean) / std, with the population's standard deviation. A constant column becomes 0."""

    mean: float
    std: float

    def apply(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / (self.std or 1.0)

    def apply_value(self, x: float) -> float:
        return (x - self.mean) / (self.std or 1.0)


@dataclass(frozen=True)
class Quantile:
    """Position among the training quantiles, in [0, 1]; values outside the training range go to 0 or 1.

    Linear between quantiles; a value that spans several quantiles (ties) goes to the middle of its span, but the lowest value
    to 0 and the highest to 1, as in scikit-learn's QuantileTransformer.
    """

    quantiles: tuple[float, ...]

    def apply(self, x: np.ndarray) -> np.ndarray:
        knots = self._knots_and_levels[0]
        return np.where(x <= knots[0], 0.0, np.where(x >= knots[-1], 1.0, self._middle(x)))

    def apply_value(self, x: float) -> float:
        knots = self.quantiles
        return 0.0 if x <= knots[0] else 1.0 if x >= knots[-1] else float(self._middle(x))

    def _middle(self, x: np.ndarray | float) -> np.ndarray | float:
        knots, levels, falling_knots, falling_levels = self._knots_and_levels
        upward = np.interp(x, knots, levels)
        downward = -np.interp(-x, falling_knots, falling_levels)
        return 0.5 * (upward + downward)

    @cached_property
    def _knots_and_levels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        knots = np.asarray(self.quantiles, np.float64)
        levels = np.linspace(0.0, 1.0, len(knots))
        return knots, levels, -knots[::-1], -levels[::-1]


Step = Fill | IsMissing | Clip | Log1p | MinMax | Standard | Quantile
_STEPS: dict[str, type] = {
    "fill": Fill,
    "is_missing": IsMissing,
    "clip": Clip,
    "log1p": Log1p,
    "min_max": MinMax,
    "standard": Standard,
    "quantile": Quantile,
}
MISSING_NUMBER = "the number is missing (null or NaN); add a {fill: ...} step, for example {fill: 0}"


def step_to_dict(step: Step) -> dict[str, Any]:
    name = next(n for n, kind in _STEPS.items() if isinstance(step, kind))
    return {"step": name, **asdict(step)}


def step_from_dict(raw: dict[str, Any]) -> Step:
    state = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k != "step"}
    return _STEPS[raw["step"]](**state)


def to_float(column: pa.Array, place: Place) -> np.ndarray:
    """A raw column as [N] float64, NaN where missing.

    Raises:
        ValueError: for lists, dates and text that is not a number.
    """
    if is_list(column.type):
        raise place.column_error(f"the column holds lists ({column.type}), and the feature is numeric: one number per row")
    values, missing = numbers(column, place)
    return np.where(missing, np.nan, values.astype(np.float64))


_SMALLEST_INFINITE = 2.0**128 - 2.0**103  # what rounds to infinity in 32 bits


def apply_steps_to_value(steps: Sequence[Step], value: Any) -> float:
    """What `to_float` and `apply_steps` give for a column of this one plain value, before the rounding to float32.

    Raises:
        Undecided: where they would refuse the value, and for values of unusual types.
    """
    number = plain_number(value)
    x = np.nan if number is None else float(number)
    for step in steps:
        x = step.apply_value(x)
    if -_SMALLEST_INFINITE < x < _SMALLEST_INFINITE:
        return x
    raise Undecided


def apply_step(step: Step, x: np.ndarray, place: Place) -> np.ndarray:
    """One step; log1p refuses values it has no result for.

    Raises:
        ValueError: with file, column and row.
    """
    if isinstance(step, Log1p):
        bad = x <= -1
        if bad.any():
            index = int(bad.argmax())
            raise place.error(index, f"log1p has no value at {x[index]:g}; put {{clip: [0, null]}} before log1p")
    return step.apply(x)


def apply_steps(steps: Sequence[Step], x: np.ndarray, place: Place) -> np.ndarray:
    """All steps, then float32.

    Raises:
        ValueError: where the result is missing or infinite, with file, column and row.
    """
    raw = x
    for step in steps:
        x = apply_step(step, x, place)
    with np.errstate(over="ignore"):
        out = x.astype(np.float32)
    bad = ~np.isfinite(out)
    if bad.any():
        index = int(bad.argmax())
        if np.isnan(raw[index]):
            raise place.error(index, MISSING_NUMBER)
        raise place.error(index, f"{raw[index]:g} does not become a finite 32-bit number; add a {{clip: [low, high]}} step")
    return out
