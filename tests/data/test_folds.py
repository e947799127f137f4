"""Folds: the same for every order of files, groups whole, classes even; held against scikit-learn's splitters and brute force."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.config.splits import split_problems
from torchrec_models.pipelines.data.folds import num_folds, pieces_of
from torchrec_models.pipelines.data.loader import Loader
from torchrec_models.pipelines.data.prepare import open_prepared, prepare
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.data.sources import SourceBatch
from torchrec_models.pipelines.data.splits import Splitter
from torchrec_models.pipelines.data.synthetic import click_log
from torchrec_models.pipelines.train import train


def parsed(**split: Any) -> Any:
    return TypeAdapter(C.SplitConfig).validate_python(split)


def batches(table: pa.Table, rows: int) -> list[SourceBatch]:
    parts = table.to_batches(max_chunksize=rows)
    firsts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    return [SourceBatch(part, "file", first, first) for part, first in zip(parts, firsts)]


def assign(table: pa.Table, *, batch_rows: int = 700, **split: Any) -> np.ndarray:
    splitter = Splitter(parsed(**split))
    if splitter.plan:
        for batch in batches(table, batch_rows):
            splitter.plan.count(batch)
        splitter.plan.deal()
    return np.concatenate([splitter.assign(batch) for batch in batches(table, batch_rows)])


@pytest.fixture(scope="module")
def log() -> pa.Table:
    """20,000 rows of users, the heaviest of whom has 9 % of them; 3 % positive."""
    random = np.random.default_rng(0)
    share = 1 / (np.arange(2000) + 2)
    user = random.choice(2000, 20_000, p=share / share.sum())
    label = (random.random(20_000) < 0.06 * random.random(2000)[user]).astype(np.int8)
    return pa.table({"user": user, "label": label, "t": np.sort(random.integers(0, 1000, 20_000))})


def unevenness(fold: np.ndarray, label: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Largest deviation of a fold's rows, and of its positives, from an equal part; relative."""
    rows, positives = np.bincount(fold, minlength=k), np.bincount(fold, label, minlength=k)
    return float(np.abs(rows * k / rows.sum() - 1).max()), float(np.abs(positives * k / positives.sum() - 1).max())


def folds_of(splitter: Any, *columns: np.ndarray) -> np.ndarray:
    out = np.zeros(len(columns[0]), np.int64)
    for k, (_, valid) in enumerate(splitter.split(*columns)):
        out[valid] = k
    return out


def test_as_even_as_scikit_learn(log: pa.Table) -> None:
    user, label = log["user"].to_numpy(), log["label"].to_numpy()
    x = np.zeros(len(user))
    grouped, stratified = assign(log, by="fold", group="user"), assign(log, by="fold", stratify="label")
    both = assign(log, by="fold", group="user", stratify="label")
    for fold in (grouped, both):
        assert all(len(set(fold[user == u].tolist())) == 1 for u in np.unique(user)), "a user on two sides"
    theirs = unevenness(folds_of(GroupKFold(5), x, label, user), label)
    assert unevenness(grouped, label)[0] <= max(theirs[0], 0.001)
    # StratifiedKFold: exact up to one row; ours deals buckets of about five rows
    assert max(unevenness(folds_of(StratifiedKFold(5), x, label), label)) < 0.01
    assert max(unevenness(stratified, label)) < 0.01
    theirs = unevenness(folds_of(StratifiedGroupKFold(5), x, label, user), label)
    assert max(unevenness(both, label)) <= max(*theirs, 0.01)
    plain = unevenness(assign(log, by="fold"), label)
    assert plain[0] < 0.05
    assert plain[1] > max(unevenness(stratified, label)), "stratifying does nothing"


@pytest.mark.parametrize("split", [{"group": "user"}, {"group": "user", "stratify": "label"}], ids=str)
def test_order_of_rows_and_batches_does_not_matter_to_groups(log: pa.Table, split: dict) -> None:
    whole = assign(log, by="fold", **split)
    assert np.array_equal(assign(log, by="fold", batch_rows=13_001, **split), whole)
    order = np.random.default_rng(1).permutation(len(log))
    assert np.array_equal(assign(log.take(pa.array(order)), by="fold", **split), whole[order])
    as_text = log.set_column(0, "user", log["user"].cast(pa.float64()))
    assert np.array_equal(assign(as_text, by="fold", **split), whole)
    assert (assign(log, by="fold", seed=1, **split) == whole).mean() < 0.4


def test_many_classes_and_missing_ones_are_even_too() -> None:
    random = np.random.default_rng(2)
    values = random.choice(["a", "b", None], 30_000, p=[0.9, 0.07, 0.03])
    fold = assign(pa.table({"c": pa.array(values)}), by="fold", num_folds=4, stratify="c")
    for value in ("a", "b", None):
        counts = np.bincount(fold[values == value], minlength=4)
        assert counts.max() / counts.min() < 1.02
    with pytest.raises(ValueError, match="more than 64 values"):
        assign(pa.table({"c": np.arange(100)}), by="fold", stratify="c")


TIMES = {"by": "time_fold", "column": "t", "valid_from": [400, 600, 800], "train_before": [350, 550, 790]}


@pytest.mark.parametrize("group", ["", "user"])
def test_time_folds_by_brute_force(log: pa.Table, group: str) -> None:
    split = {**TIMES, **({"group": group, "group_share": 0.3} if group else {})}
    piece, t, user = assign(log, **split), log["t"].to_numpy(), log["user"].to_numpy()
    for fold, (start, end, before) in enumerate([(400, 600, 350), (600, 800, 550), (800, 10**9, 790)]):
        train, valid = (np.isin(piece, pieces) for pieces in pieces_of(parsed(**split), fold))
        if not group:
            assert np.array_equal(train, t < before)
            assert np.array_equal(valid, (t >= start) & (t < end))
            continue
        outside = np.isin(user, user[valid])
        assert not (set(user[train]) & set(user[valid])), "a held-out user was trained on"
        assert np.array_equal(valid, outside & (t >= start) & (t < end))
        assert t[train].max() < before
        assert not np.any(train & outside)
        assert 0.15 < len(set(user[valid])) / len(set(user[(t >= start) & (t < end)])) < 0.45
    assert Splitter(parsed(**split)).fitted == sorted({p for k in range(3) for p in pieces_of(parsed(**split), k)[0]})


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"by": "fold", "num_folds": 3, "fold": 3}, "fold: given 3; must be below num_folds, 3"),
        ({"by": "fold", "group": "u", "stratify": "u"}, "is also the group"),
        ({**TIMES, "fold": 3}, "must be below the number of valid_from, 3"),
        ({**TIMES, "train_before": [1]}, "given 1; one for each of valid_from, 3, or none"),
        ({**TIMES, "train_before": [350, 550, 801]}, "given 801; must not be later than valid_from of its fold, 800"),
        ({**TIMES, "valid_from": [400, 400, 800]}, "valid_from: given 400; must be later than the one before, 400"),
        ({**TIMES, "valid_from": [400, "b", 800]}, "given 'b'; must be of the same kind as the one before, 400"),
        ({**TIMES, "group_share": 0.5}, "group_share: has no effect without data.split.group"),
    ],
)
def test_refused(split: dict, message: str) -> None:
    assert message in "\n".join(split_problems(parsed(**split)))


def config(folder: Path, run: str = "run", **split: Any) -> C.RunConfig:
    return C.parse(
        {
            "run": str(folder / run),
            "data": {
                "train": str(folder / "rows*.parquet"),
                "cache": str(folder / "cache"),
                "split": split,
                "slices": ["user", "time"],
                "rows_per_shard": 100,
            },
            "features": {"item": {"kind": "categorical", "dim": 4}},
            "labels": {"label": {}},
            "model": {"name": "deepfm", "hidden_units": [8]},
            "train": {"batch_size": 50, "tensorboard": False},
        }
    )


def test_one_cache_serves_all_folds(tmp_path: Path) -> None:
    table = click_log(700, num_users=60, num_items=20, seed=1).table
    for i in range(2):
        pq.write_table(table.slice(i * 350, 350), tmp_path / f"rows{i}.parquet")
    split = {"by": "fold", "num_folds": 3, "group": "user", "stratify": "label"}
    first = prepare(config(tmp_path, **split), progress=False)
    stamp = (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns
    assert list(Cache.open(tmp_path / "cache").splits) == ["fold_00", "fold_01", "fold_02"]
    rows_seen, users_seen = [], []
    for fold in range(3):
        cache = prepare(config(tmp_path, fold=fold, **split), progress=False)
        assert list(cache.splits) == ["train", "valid"]
        train_users, valid_users = (set(cache.split(s).column("user").to_pylist()) for s in ("train", "valid"))
        assert not train_users & valid_users
        assert cache.split("train").num_rows + cache.split("valid").num_rows == 700
        assert (
            sum(batch.num_rows for batch in Loader(cache, "train", batch_size=50, shuffle=True).epoch(0))
            == cache.split("train").num_rows
        )
        rows_seen += cache.split("valid").column("time").to_pylist()
        users_seen += list(valid_users)
    assert (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns == stamp, "prepared again"
    assert sorted(rows_seen) == sorted(table["time"].to_pylist())
    assert sorted(users_seen) == sorted(set(table["user"].to_pylist()))
    assert first.split("valid").num_rows == open_prepared(config(tmp_path, **split)).split("valid").num_rows


def test_a_run_does_not_go_on_with_another_fold(tmp_path: Path) -> None:
    pq.write_table(click_log(200, seed=1).table, tmp_path / "rows.parquet")
    split = {"by": "fold", "num_folds": 2, "stratify": "label"}
    prepare(config(tmp_path, **split), progress=False)
    train(config(tmp_path, **split), progress=False)
    with pytest.raises(ValueError, match=r"another config.*\n.*data\.split\.fold: was 0, now 1"):
        train(config(tmp_path, fold=1, **split), progress=False)
    assert "auc" in train(config(tmp_path, "run-1", fold=1, **split), progress=False).metrics


def test_folds_without_rows_are_refused(tmp_path: Path) -> None:
    pq.write_table(click_log(50, seed=1).table, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"fold 1 of data.split .by: time_fold. has no row to validate on"):
        prepare(config(tmp_path, by="time_fold", column="time", valid_from=[100, 10**6]), progress=False)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    made = prepare(config(tmp_path, by="time_fold", column="time", valid_from=[100, 300], train_before=[100, 250], fold=1))
    assert max(made.split("train").column("time").to_pylist()) < 250
    assert num_folds(parsed(by="time_fold", column="time", valid_from=[100, 300])) == 2
