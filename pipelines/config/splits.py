"""What a config says about how rows are split: once, or into folds of which each run validates on one."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from .errors import short
from .section import Section

Moment = str | int | float


class RandomSplit(Section):
    """Rows drawn at random, by a hash of their position and the seed."""

    by: Literal["random"]
    valid: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)
    seed: int = 0


class HashSplit(Section):
    """Rows by a hash of a column: all rows of one value (one user, one session) land in one split."""

    by: Literal["hash"]
    column: str
    valid: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)
    seed: int = 0


class TimeSplit(Section):
    """Rows before `valid_from` train, rows from `test_from` on test. Values as in the column (numbers, or ISO dates)."""

    by: Literal["time"]
    column: str
    valid_from: Moment
    test_from: Moment | None = None


class ColumnSplit(Section):
    """Rows by the value of a column."""

    by: Literal["column"]
    column: str
    train: list[str | int] = Field(["train"])
    valid: list[str | int] = Field(["valid"])
    test: list[str | int] = Field(["test"])


class FoldSplit(Section):
    """Rows in `num_folds` folds; a run validates on fold number `fold` and trains on the others. One cache serves all folds."""

    by: Literal["fold"]
    num_folds: int = Field(5, ge=2, le=100)
    fold: int = Field(0, ge=0)
    group: str = Field("", description="column whose equal values share a fold; default: each row for itself, by its position")
    stratify: str = Field("", description="column with few values, each of which every fold gets an equal share of")
    seed: int = 0


class TimeFoldSplit(Section):
    """Fold k validates on rows from `valid_from[k]` to the next, and trains on those before `train_before[k]`.

    With `group`, a share of the groups is held out: no fold trains on their rows, and all validate on theirs alone.
    """

    by: Literal["time_fold"]
    column: str
    valid_from: list[Moment] = Field(min_length=1, max_length=20)
    train_before: list[Moment] = Field([], max_length=20, description="one for each fold, to leave a gap; default: valid_from")
    fold: int = Field(0, ge=0)
    group: str = ""
    group_share: float = Field(0.2, gt=0, lt=1, description="of the groups, held out")
    seed: int = 0


SplitConfig = Annotated[
    RandomSplit | HashSplit | TimeSplit | ColumnSplit | FoldSplit | TimeFoldSplit,
    Field(discriminator="by"),
]


def split_columns(split: SplitConfig | None) -> list[str]:
    """The raw columns that a split reads."""
    if split is None or isinstance(split, RandomSplit):
        return []
    if isinstance(split, FoldSplit):
        return list(dict.fromkeys(c for c in (split.group, split.stratify) if c))
    if isinstance(split, TimeFoldSplit):
        return list(dict.fromkeys(c for c in (split.column, split.group) if c))
    return [split.column]


def split_problems(split: SplitConfig) -> Iterator[str]:
    """What is wrong with a split in itself."""
    if isinstance(split, RandomSplit | HashSplit) and split.valid + split.test >= 1:
        yield f"data.split: valid {split.valid} and test {split.test} leave nothing to train on"
    if isinstance(split, TimeSplit) and split.test_from is not None:
        yield from _later(split.valid_from, split.test_from, "data.split.test_from", "valid_from")
    if isinstance(split, ColumnSplit):
        for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
            both = [v for v in getattr(split, one) if v in getattr(split, other)]
            if both:
                yield f"data.split.{other}: {', '.join(map(short, both))} also stands in {one}; a row can be in one split only"
    if isinstance(split, FoldSplit) and split.fold >= split.num_folds:
        yield f"data.split.fold: given {split.fold}; must be below num_folds, {split.num_folds} (folds count from 0)"
    if isinstance(split, FoldSplit) and split.group and split.group == split.stratify:
        yield f"data.split.stratify: {split.group!r} is also the group; rows of one value cannot both stay together and spread"
    if isinstance(split, TimeFoldSplit):
        yield from _time_fold_problems(split)


def _time_fold_problems(split: TimeFoldSplit) -> Iterator[str]:
    starts, ends = split.valid_from, split.train_before
    if split.fold >= len(starts):
        yield f"data.split.fold: given {split.fold}; must be below the number of valid_from, {len(starts)} (folds count from 0)"
    for before, after in pairwise(starts):
        yield from _later(before, after, "data.split.valid_from", "the one before")
    if ends and len(ends) != len(starts):
        yield f"data.split.train_before: given {len(ends)}; one for each of valid_from, {len(starts)}, or none"
    for end, start in zip(ends, starts):
        if isinstance(end, str) != isinstance(start, str) or not end <= start:  # type: ignore[operator]
            yield f"data.split.train_before: given {short(end)}; must not be later than valid_from of its fold, {short(start)}"
    for before, after in pairwise(ends):
        yield from _later(before, after, "data.split.train_before", "the one before")
    if not split.group and "group_share" in split.model_fields_set:
        yield "data.split.group_share: has no effect without data.split.group; leave it out"


def _later(first: Moment, second: Moment, path: str, name: str) -> Iterator[str]:
    if isinstance(first, str) != isinstance(second, str):
        yield f"{path}: given {short(second)}; must be of the same kind as {name}, {short(first)}"
    elif not first < second:  # type: ignore[operator]
        yield f"{path}: given {short(second)}; must be later than {name}, {short(first)}"
