"""Features of kind covisitation while a cache is prepared: one pass over the whole log in the order of time.

Item-to-item similarities after Linden, Smith, York, "Amazon.com recommendations: item-to-item collaborative filtering", IEEE
Internet Computing 2003. Let c(a, b) be how often a user met item b while item a was one of the `window` different items that this
user met last (or the reverse), n(a) how often a was met, and n the number of events. Then

    cosine  c(a, b) / sqrt(n(a) n(b))        log   log(1 + c(a, b))
    lift    n c(a, b) / (n(a) n(b))          none  c(a, b)

and the feature of a row (user, item, time) is the sum (or largest, or mean) of its item's similarities to the items that its user
remembers, the item itself left out. Everything is counted over rows of strictly earlier times: rows of the same time do not see
each other. With `half_life` an event that is so old counts half, and a pair is as old as the middle of its two events. Rows without
user or item get 0 and count for nothing.

Rows of all splits are one log, in the order of train, valid, test; among rows of one time their order decides which items are
newest. What is left at the end of the log travels with the run, see covisitation_state.py.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from torchrec_models.pipelines.config import CovisitationConfig, RunConfig

from .covisitation_state import NORMALISE, CovisitationState, hash_column, kind_of_columns, times_of, unit_of
from .native import NoNativeCode, load_library
from .numeric import to_float
from .sources import Source, open_source
from .values import Place, one_array

_BYTES_PER_PAIR = 80  # 16 a slot, 0.6 full, and twice as many slots while the table grows
_POINTERS = ("user", "item", "time", "is_event")
_STATE = ("recent_item", "recent_time", "num_recent", "item_count")
_FOUND = ("sum", "largest", "num_compared")


class _Log(ctypes.Structure):
    """`Log` of covisitation.c."""

    _fields_ = [
        ("num_rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("window", ctypes.c_int64),
        ("normalise", ctypes.c_int64),
        ("max_pairs", ctypes.c_int64),
        ("max_age", ctypes.c_double),
        ("half_life", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _STATE),
        ("num_items", ctypes.c_int64),
        ("total", ctypes.c_double),
        ("origin", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _FOUND),
        ("slots", ctypes.c_void_p),
        ("num_slots", ctypes.c_int64),
        ("num_pairs", ctypes.c_int64),
    ]


@dataclass(frozen=True)
class Visits:
    """The rows of a log.

    Attributes:
        user, item: [N] uint64 hashes; what they are where missing is of no account.
        missing: [N] bool, rows without user or item.
        time: [N] int64 or float64.
        is_event: [N] bool.
        kinds: of users and of items, see `kind_of_columns`.
        time_is_number: False for dates and times, in microseconds.
        num_rows: of each source.
    """

    user: np.ndarray
    item: np.ndarray
    missing: np.ndarray
    time: np.ndarray
    is_event: np.ndarray
    kinds: tuple[str, str]
    time_is_number: bool
    num_rows: dict[str, int]


@dataclass(frozen=True)
class Computed:
    """A feature of all rows of the log.

    Attributes:
        values: [N] float32.
        state: at the end of the log.
    """

    values: np.ndarray
    state: CovisitationState


def read_visits(feature: CovisitationConfig, sources: Mapping[str, Source]) -> Visits:
    """The columns of a feature, of all sources one after the other. 33 bytes per row.

    Raises:
        ValueError: naming file, column and row, for a missing time or event, and for what `times_of` refuses.
    """
    of_user, of_item = (
        kind_of_columns([source.arrow_schema.field(name).type for source in sources.values()])
        for name in (feature.user, feature.item)
    )
    parts: list[tuple[np.ndarray, ...]] = []
    num_rows = dict.fromkeys(sources, 0)
    numbers_only = set()
    for split, source in sources.items():
        for batch in source.batches():
            where, first_row = batch.path, batch.first_row

            def at(name: str, where: str = where, first_row: int = first_row) -> Place:
                return Place(where, name, first_row)

            columns = {name: one_array(batch.batch.column(name)) for name in feature.columns}
            user, no_user = hash_column(columns[feature.user], of_user, at(feature.user))
            item, no_item = hash_column(columns[feature.item], of_item, at(feature.item))
            time, is_number = times_of(columns[feature.time], at(feature.time))
            numbers_only.add(is_number)
            if len(numbers_only) > 1:
                raise at(feature.time).column_error("numbers here, and dates or times in files before; write them in one way")
            events = np.ones(len(time), bool)
            if feature.events:
                raw = to_float(columns[feature.events], at(feature.events))
                if np.isnan(raw).any():
                    raise at(feature.events).error(
                        int(np.isnan(raw).argmax()), "the value is missing; what is above 0 counts as seen"
                    )
                events = raw > 0
            parts.append((user, item, no_user | no_item, time, events))
            num_rows[split] += len(time)
    user, item, missing, time, is_event = (np.concatenate(column) for column in zip(*parts))
    return Visits(user, item, missing, time, is_event, (of_user, of_item), numbers_only == {True}, num_rows)


def covisitation(feature: CovisitationConfig, visits: Visits, *, memory_budget_bytes: int) -> Computed:
    """The feature of every row, and the state at the end.

    Memory beside the visits: about 60 bytes per row, 12 per user and remembered item, and `memory_budget_bytes` for pairs at most.

    Raises:
        ValueError: more pairs than fit, or no C compiler.
    """
    library = _library()
    order = np.argsort(visits.time, kind="stable")
    users, user = np.unique(visits.user, return_inverse=True)
    items, item = np.unique(visits.item, return_inverse=True)
    origin = visits.time[order[0]]
    time = (visits.time[order] - origin).astype(np.float64) / unit_of(time_is_number=visits.time_is_number)
    arrays = {
        "user": np.where(visits.missing, -1, user)[order].astype(np.int32),
        "item": np.where(visits.missing, -1, item)[order].astype(np.int32),
        "time": time,
        "is_event": visits.is_event[order].astype(np.uint8),
        "recent_item": np.zeros((len(users), feature.window), np.int32),
        "recent_time": np.zeros((len(users), feature.window), np.float64),
        "num_recent": np.zeros(len(users), np.int32),
        "item_count": np.zeros(len(items), np.float64),
        "sum": np.zeros(len(order), np.float32),
        "largest": np.zeros(len(order), np.float32),
        "num_compared": np.zeros(len(order), np.int32),
    }
    log = _Log(
        num_rows=len(order),
        window=feature.window,
        normalise=NORMALISE.index(feature.normalise),
        max_pairs=memory_budget_bytes // _BYTES_PER_PAIR,
        max_age=feature.max_age or np.inf,
        half_life=feature.half_life or np.inf,
        num_items=len(items),
        **{name: array.ctypes.data for name, array in arrays.items()},
    )
    try:
        failed = library.covisitation_run(ctypes.byref(log))
        if failed:
            raise ValueError(
                f"more than {log.num_pairs:,} different pairs of items were seen together, which is what fits into "
                f"data.memory_budget_mib ({memory_budget_bytes // 2**20}); raise it, or take a smaller window or max_age"
            )
        keys, counts = np.empty(log.num_pairs, np.uint64), np.empty(log.num_pairs, np.float64)
        library.covisitation_pairs(ctypes.byref(log), keys.ctypes.data, counts.ctypes.data)
    finally:
        library.covisitation_free(ctypes.byref(log))
    now = 2.0 ** ((time[-1] - log.origin) / log.half_life) if feature.half_life else 1.0
    by_key = np.argsort(keys)
    state = CovisitationState(
        settings=_settings(feature, visits),
        users=users,
        items=items,
        recent_item=arrays["recent_item"],
        recent_time=arrays["recent_time"],
        num_recent=arrays["num_recent"],
        item_count=arrays["item_count"] / now,
        pair_key=keys[by_key],
        pair_count=counts[by_key] / now,
        total=log.total / now,
        origin=origin.item(),
        end=visits.time[order[-1]].item(),
    )
    values = np.empty(len(order), np.float32)
    values[order] = combined(arrays, feature.combine)
    return Computed(values, state)


def combined(found: Mapping[str, np.ndarray], how: str) -> np.ndarray:
    """[N] float32 of `sum`, `largest` and `num_compared`."""
    if how == "mean":
        return (found["sum"] / np.maximum(found["num_compared"], 1)).astype(np.float32)
    return found["sum" if how == "sum" else "largest"]


def _settings(feature: CovisitationConfig, visits: Visits) -> dict[str, Any]:
    named = feature.model_dump(include={"user", "item", "time", "window", "max_age", "half_life", "normalise", "combine"})
    return named | {"kinds": list(visits.kinds), "time_is_number": visits.time_is_number}


def _library() -> ctypes.CDLL:
    try:
        library = load_library(Path.home() / ".cache" / "torchrec-models", "covisitation")
    except NoNativeCode as reason:
        raise ValueError(f"features of kind covisitation are counted by C code, and {reason}; install a C compiler") from None
    for name, arguments, result in (
        ("covisitation_run", [ctypes.c_void_p], ctypes.c_int),
        ("covisitation_pairs", [ctypes.c_void_p] * 3, None),
        ("covisitation_free", [ctypes.c_void_p], None),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


def with_covisitation(
    config: RunConfig, sources: dict[str, Source], folder: Path
) -> tuple[dict[str, Source], dict[str, CovisitationState]]:
    """The sources with the computed columns, and each feature's state at the end of the log.

    Args:
        folder: for the values, from which batches read theirs.

    Raises:
        ValueError: see `read_visits` and `covisitation`; the feature is named.
    """
    states: dict[str, CovisitationState] = {}
    for name, feature in config.features.items():
        if not isinstance(feature, CovisitationConfig):
            continue
        try:
            columns = list(dict.fromkeys(feature.columns))
            log = {split: open_source(config, getattr(config.data, split), columns=columns) for split in sources}
            visits = read_visits(feature, log)
            found = covisitation(feature, visits, memory_budget_bytes=config.data.memory_budget_mib * 2**20)
        except ValueError as error:
            raise ValueError(f"feature {name!r}: {error}") from None
        states[name] = found.state
        folder.mkdir(parents=True, exist_ok=True)
        first = 0
        for split, num_rows in visits.num_rows.items():
            np.save(_path(folder, name, split), found.values[first : first + num_rows])
            first += num_rows
    return opened_covisitation(config, sources, folder), states


def opened_covisitation(config: RunConfig, sources: dict[str, Source], folder: Path) -> dict[str, Source]:
    """The sources with the columns that `with_covisitation` has put into the folder."""
    names = [name for name, feature in config.features.items() if isinstance(feature, CovisitationConfig)]
    return {
        split: replace(source, computed={name: np.load(_path(folder, name, split), mmap_mode="r") for name in names})
        for split, source in sources.items()
    }


def _path(folder: Path, feature: str, split: str) -> Path:
    return folder / f"{quote(feature, safe=' ')}-{split}.npy"
