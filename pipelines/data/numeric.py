"""Fitted steps on one numeric column, float64 in and out; NaN stands for a missing value until a fill.

Runs in exported bundles too: numpy and pyarrow only.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .values import Place, is_list, numbers


@dataclass(frozen=True)
class Fill:
    """Missing values become `value`."""

    value: float

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x), self.value, x)


@dataclass(frozen=True)
class Clip:
    """Values below `low` become `low`, above `high` become `high`; None is no bound."""

    low: float | None
    high: float | None

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.clip(x, self.low, self.high)


@dataclass(frozen=True)
class Log1p:
    """ln(1 + x), for x > -1."""

    def apply(self, x: np.ndarray) -> np.ndarray:
        return np.log1p(x)


@dataclass(frozen=True)
class MinMax:
    """(x - low) / (high - low): the training rows lie in [0, 1], others may fall outside. A constant column becomes 0."""

    low: float
    high: float

    def apply(self, x: np.ndarray) -> np.ndarray:
        return (x - self.low) / ((self.high - self.low) or 1.0)


@dataclass(frozen=True)
class Standard:
    """(x - mean) / std, with the population's standard deviation. A constant column becomes 0."""

    mean: float
    std: float

    def apply(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) / (self.std or 1.0)


@dataclass(frozen=True)
class Quantile:
    """Position among the training quantiles, in [0, 1]; values outside the training range go to 0 or 1.

    Linear between quantiles; a value that spans several quantiles (ties) goes to the middle of its span, but the lowest value
    to 0 and the highest to 1, as in scikit-learn's QuantileTransformer.
    """

    quantiles: tuple[float, ...]

    def apply(self, x: np.ndarray) -> np.ndarray:
        knots = np.asarray(self.quantiles)
        levels = np.linspace(0.0, 1.0, len(knots))
        upward = np.interp(x, knots, levels)
        downward = -np.interp(-x, -knots[::-1], -levels[::-1])
        middle = 0.5 * (upward + downward)
        return np.where(x <= knots[0], 0.0, np.where(x >= knots[-1], 1.0, middle))


Step = Fill | Clip | Log1p | MinMax | Standard | Quantile
_STEPS: dict[str, type] = {
    "fill": Fill,
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
