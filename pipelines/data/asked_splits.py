"""Which splits a config asks for, and what to say of one without rows."""

from torchrec_models.pipelines.config import DataConfig, FoldSplit, TimeFoldSplit

from .splits import SPLITS


def is_piece(data: DataConfig, split: str) -> bool:
    """Of folds; some of these may be empty."""
    return isinstance(data.split, FoldSplit | TimeFoldSplit) and split not in SPLITS


def is_asked_for(data: DataConfig, split: str) -> bool:
    if isinstance(data.split, FoldSplit | TimeFoldSplit):
        return split != "test" or bool(data.test)
    if split == "train" or data.split is None:
        return bool(getattr(data, split))
    if data.split.by == "time":
        return split == "valid" or data.split.test_from is not None
    return bool(getattr(data.split, split))


def no_rows(data: DataConfig, split: str, num_rows: dict[str, int]) -> str:
    if data.split is None or (split == "train" and not sum(num_rows.values())):
        return f"split {split!r}: the files of data.{split} hold no row: {data.described(split)}"
    got = ", ".join(f"{name}: {count}" for name, count in num_rows.items())
    setting = {"time": f"{split}_from", "column": f"{split} (a list of values)"}.get(data.split.by, split)
    return f"split {split!r} got no row of data.train (rows: {got}); check data.split.{setting}, by: {data.split.by}"
