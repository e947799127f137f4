"""Numeric columns into the dense matrix by plain C (dense.c), where their steps are plain arithmetic; to numpy's bits.

Runs in exported bundles too: numpy and pyarrow only.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import pyarrow as pa

from .native import native_library
from .numeric import Clip, Fill, IsMissing, MinMax, Standard, Step

_LEAST_ROWS = 64  # fewer are a request of a server, which never waits for a compiler
_FILL, _CLIP, _SCALE, _IS_MISSING = 0.0, 1.0, 2.0, 3.0


@cache
def _function() -> Callable[[int, int, int], None] | None:
    library = native_library("dense", "numbers are encoded by numpy")
    if library is None:
        return None
    function = library.dense_columns
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64), None
    return function


def encode_columns(columns: Mapping[int, tuple[pa.Array, Sequence[Step]]], out: np.ndarray) -> set[int]:
    """Writes columns of `out` [N, D] float32 as `numeric.apply_steps` would.

    Args:
        columns: by their position in `out`, the raw column [N] and its steps.

    Returns:
        The positions that are written. The others' types or steps are not for C, or a value is missing or not finite.
    """
    function = _function() if len(out) >= _LEAST_ROWS else None
    if function is None:
        return set()
    jobs: list[tuple[int, ...]] = []
    alive: list[np.ndarray] = []  # what the jobs point to
    positions: list[int] = []
    failed = np.zeros(len(columns), np.int32)
    for position, (column, steps) in columns.items():
        kind, coded = _kind(column.type), coded_steps(steps)
        if kind is None or coded is None:
            continue
        validity, values = column.buffers()
        bits = (validity.address, column.offset) if column.null_count and validity else (0, 0)
        address = values.address + column.offset * column.type.bit_width // 8
        target = out.ctypes.data + position * out.itemsize
        flag = failed.ctypes.data + len(positions) * failed.itemsize
        jobs.append((kind, address, *bits, coded.ctypes.data, len(coded), target, out.shape[1], flag))
        alive.append(coded)
        positions.append(position)
    table = np.array(jobs, np.int64)
    function(table.ctypes.data, len(jobs), len(out))
    return {position for position, bad in zip(positions, failed) if not bad}


def _kind(type: pa.DataType) -> int | None:
    kinds = (pa.types.is_float64, pa.types.is_float32, pa.types.is_int64, pa.types.is_int32)
    return next((i for i, is_kind in enumerate(kinds) if is_kind(type)), None)


def coded_steps(steps: Sequence[Step]) -> np.ndarray | None:
    """[n, 3] float64: kind, a, b of each step; None where one needs more than arithmetic, or numpy's bits are not certain."""
    rows: list[tuple[float, float, float]] = []
    for step in steps:
        if isinstance(step, Fill):
            rows.append((_FILL, step.value, 0.0))
        elif isinstance(step, IsMissing):
            rows.append((_IS_MISSING, 0.0, 0.0))
        elif isinstance(step, Clip) and all(
            kind != _SCALE for kind, *_ in rows
        ):  # after it there may be -0.0, equal to a bound 0.0
            low, high = (np.nan if bound is None else bound for bound in (step.low, step.high))
            rows.append((_CLIP, low, high))
        elif isinstance(step, MinMax):
            rows.append((_SCALE, step.low, (step.high - step.low) or 1.0))
        elif isinstance(step, Standard):
            rows.append((_SCALE, step.mean, step.std or 1.0))
        else:
            return None
    return np.array(rows, np.float64).reshape(-1, 3)
