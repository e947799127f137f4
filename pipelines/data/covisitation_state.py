"""What a covisitation feature knows at the end of the log that it was prepared from, and what follows for later rows.

<transforms>/covisitation/<feature>/state.json, *.npy
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .hashes import hash_numbers, hash_strings
from .values import Kind, Place, is_text, kind_of, numbers, of_feature, one_array, plain, strings

NORMALISE = ("cosine", "lift", "log", "none")  # as in covisitation.c
FOLDER = "covisitation"
_SEED = 0x434F_5649
_MICROSECONDS = 1e6


@dataclass(frozen=True, eq=False)
class CovisitationState:
    """Counts and memories at the end of a log of U users and I items, with the W items that each user saw last.

    Attributes:
        settings: the feature's options, `kinds` of users and items, and `time_is_number`.
        users, items: [U], [I] uint64 hashes, growing.
        recent_item: [U, W] int32 places in `items`, the newest last; recent_time: [U, W] float64 since `origin`; num_recent: [U].
        item_count: [I] float64, decayed to the end, as are `total` and pair_count.
        pair_key: [P] uint64, smaller item << 32 | larger item, growing; pair_count: [P] float64.
        origin, end: first and last time of the log, as in the column (microseconds for dates and times).
    """

    settings: dict[str, Any]
    users: np.ndarray
    items: np.ndarray
    recent_item: np.ndarray
    recent_time: np.ndarray
    num_recent: np.ndarray
    item_count: np.ndarray
    pair_key: np.ndarray
    pair_count: np.ndarray
    total: float
    origin: float
    end: float

    @property
    def columns(self) -> list[str]:
        """Raw columns that a row needs."""
        return [self.settings[name] for name in ("user", "item", "time")]

    @property
    def kinds(self) -> dict[str, Kind]:
        """Of these columns: what their values are told apart as, and for times numbers or (text of) dates."""
        user, item, time = self.columns
        of_time: Kind = "number" if self.settings["time_is_number"] else "string"
        return {user: self.settings["kinds"][0], item: self.settings["kinds"][1], time: of_time}

    @property
    def time_unit(self) -> float:
        return unit_of(time_is_number=self.settings["time_is_number"])

    def encode(self, batch: pa.Table | pa.RecordBatch, *, where: str, first_row: int) -> np.ndarray:
        """[N] float32, the feature of rows that come after the log.

        Raises:
            ValueError: naming file, column and row, for times that are missing, of another kind, or not after the log's end.
        """
        chosen = self.settings
        user_column, item_column, time_column = self.columns

        def at(name: str) -> Place:
            return Place(where, name, first_row)

        user, no_user = hash_column(one_array(batch.column(user_column)), chosen["kinds"][0], at(user_column))
        item, no_item = hash_column(one_array(batch.column(item_column)), chosen["kinds"][1], at(item_column))
        time, is_number = times_of(one_array(batch.column(time_column)), at(time_column))
        if is_number != chosen["time_is_number"]:
            raise at(time_column).column_error("numbers where the log had dates or times, or the reverse")
        early = time <= self.end
        if early.any():
            raise at(time_column).error(
                int(early.argmax()),
                f"the time is not after the last one that co-visitations were counted to ({self._shown_end()}): the counts would "
                "know rows that come later than this one; predict rows that the log (data.train, valid, test) does not reach",
            )
        row_of_user, user_known = _find(self.users, user)
        row_of_item, item_known = _find(self.items, item)
        items_NW, times_NW = self.recent_item[row_of_user], self.recent_time[row_of_user]
        now = (time - self.origin).astype(np.float64) / self.time_unit
        compared_NW = (
            np.arange(items_NW.shape[1]) < np.where(user_known & ~no_user & ~no_item, self.num_recent[row_of_user], 0)[:, None]
        )
        compared_NW &= ~(item_known[:, None] & (items_NW == row_of_item[:, None]))
        if chosen["max_age"] is not None:
            compared_NW &= now[:, None] - times_NW <= chosen["max_age"]
        decay = 1.0
        if chosen["half_life"] is not None:
            decay = 2.0 ** (-(time - self.end).astype(np.float64) / self.time_unit / chosen["half_life"])[:, None]
        found_NW = np.where(compared_NW & item_known[:, None], self._similarity(row_of_item[:, None], items_NW, decay), 0.0)
        how = chosen["combine"]
        if how == "max":
            return found_NW.max(axis=1).astype(np.float32)
        sums = found_NW.sum(axis=1)
        return (sums / np.maximum(compared_NW.sum(axis=1), 1) if how == "mean" else sums).astype(np.float32)

    def next_time(self) -> pa.Scalar:
        """A unit after the end of the log, as the column may have it."""
        if self.settings["time_is_number"]:
            return pa.scalar(self.end + 1)
        return pa.scalar(int(self.end + self.time_unit), pa.timestamp("us"))

    def _shown_end(self) -> str:
        return str(self.end if self.settings["time_is_number"] else np.datetime64(int(self.end), "us"))

    def _similarity(self, a: np.ndarray, b: np.ndarray, decay: Any) -> np.ndarray:
        key = (np.minimum(a, b).astype(np.uint64) << np.uint64(32)) | np.maximum(a, b).astype(np.uint64)
        place, known = _find(self.pair_key, key)
        pair = np.where(known, self.pair_count[place], 0.0) if len(self.pair_key) else np.zeros(key.shape)
        product = self.item_count[a] * self.item_count[b]
        match self.settings["normalise"]:
            case "cosine":
                return np.divide(pair, np.sqrt(product), out=np.zeros_like(pair), where=product > 0)
            case "lift":
                return np.divide(pair * self.total, product, out=np.zeros_like(pair), where=product > 0)
            case "log":
                return np.log1p(pair * decay)
            case _:
                return pair * decay

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        plain_values = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                np.save(folder / f"{field.name}.npy", value)
            else:
                plain_values[field.name] = value
        (folder / "state.json").write_text(json.dumps(plain_values, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "CovisitationState":
        values = json.loads((folder / "state.json").read_text())
        return cls(**values, **{path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))})


def save_states(states: Mapping[str, CovisitationState], transforms: Path) -> None:
    for name, state in states.items():
        state.save(transforms / FOLDER / quote(name, safe=" "))


def load_states(transforms: Path) -> dict[str, CovisitationState]:
    """Feature name -> state; empty where there is no such feature."""
    return {unquote(folder.name): CovisitationState.load(folder) for folder in sorted((transforms / FOLDER).glob("*"))}


def with_states(
    states: Mapping[str, CovisitationState], batch: pa.Table | pa.RecordBatch, *, where: str, first_row: int
) -> pa.Table | pa.RecordBatch:
    """Rows that come after the log, with the features' columns in place of any of the same names.

    Raises:
        ValueError: see `CovisitationState.encode`; the feature is named.
    """
    out = batch.drop_columns([name for name in states if name in batch.column_names])
    for name, state in states.items():
        try:
            out = out.append_column(name, pa.array(state.encode(batch, where=where, first_row=first_row)))
        except ValueError as error:
            raise of_feature(error, name) from None
    return out


def unit_of(*, time_is_number: bool) -> float:
    """How many units of `times_of` a unit of `max_age` and `half_life` has."""
    return 1.0 if time_is_number else _MICROSECONDS


def kind_of_columns(types: list[pa.DataType]) -> str:
    """Numbers where all are; else text."""
    return "number" if {kind_of(type) for type in types} <= {"number", None} else "string"


def hash_column(column: pa.Array, kind: str, place: Place) -> tuple[np.ndarray, np.ndarray]:
    """[N] uint64, and [N] which values are missing; 7, 7.0 and, among text, "7" are one value.

    Raises:
        ValueError: naming file, column and row, for text that is not a number where numbers are needed.
    """
    if kind == "number":
        values, missing = numbers(column, place)
        return hash_numbers(values, _SEED), missing
    text = strings(column, place)
    return hash_strings(text, _SEED), pc.is_null(text).to_numpy(zero_copy_only=False)


def times_of(column: pa.Array, place: Place) -> tuple[np.ndarray, bool]:
    """[N] int64 or float64 numbers, and True; or [N] int64 microseconds of dates and times, and False.

    Raises:
        ValueError: naming file, column and row, for missing values and text that is neither a number nor an ISO date or time.
    """
    column = plain(column)
    missing = pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)
    if missing.any():
        raise place.error(int(missing.argmax()), "the value is missing, and co-visitations are counted in the order of this column")
    if is_text(column.type):
        try:
            column = strings(column, place).cast(pa.timestamp("us"))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return numbers(column, place)[0], True
    if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("us", tz=getattr(column.type, "tz", None)), safe=False).cast(pa.int64()).to_numpy(), False
    if kind_of(column.type) != "number":
        raise place.column_error(
            f"the column has type {column.type}; numbers, dates and timestamps have an order that can be counted in"
        )
    return numbers(column, place)[0], True


def _find(known: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of wanted values in `known`, which grows, and which of them are there; place 0 otherwise."""
    if not len(known):
        return np.zeros(wanted.shape, np.int64), np.zeros(wanted.shape, bool)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    there = known[place] == wanted
    return np.where(there, place, 0), there
