"""A run's evaluation against scikit-learn and loops, on what `predict` answers for the same rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click_run import make_config
from scored_run import NUM_TEST_ROWS, answers, log_rows, train_run, write_files
from sklearn.metrics import average_precision_score, log_loss, mean_absolute_error, mean_squared_error, roc_auc_score

from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.evaluation.run import evaluate_run
from torchrec_models.pipelines.predict import predict

TWO_TASKS = {"label": {}, "spend": {"kind": "regression", "null": "mask"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clicks")
    write_files(folder)
    train_run(folder, data__group="user", data__slices=["device"], data__weight="weight", evaluate__bootstrap=20)
    train_run(folder, "two", labels=TWO_TASKS, data__test=[], evaluate__bootstrap=0)
    return folder


def read(run: Path, split: str) -> dict[str, Any]:
    return json.loads((run / "evaluation" / split / "metrics.json").read_text())


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    text = evaluate_run(folder / "run", progress=False)
    found = read(folder / "run", "test")
    auc = found["tasks"]["label"]["metrics"]["auc"]["value"]
    assert f"{auc:.5f}" in text and "always" in text and "metrics.json" in text
    return found


@pytest.fixture(scope="module")
def columns(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Label, prediction, weight, user and device of the test rows."""
    out = tmp_path_factory.mktemp("out") / "p.parquet"
    predict(folder / "run", [str(folder / "test.parquet")], out, progress=False)
    rows = pq.read_table(folder / "test.parquet")
    named = {"y": "label", "w": "weight", "user": "user", "device": "device"}
    read = {name: rows[column].to_numpy() for name, column in named.items()}
    return read | {"p": pq.read_table(out)["label"].to_numpy().astype(np.float64)}


def test_which_checkpoint_and_split_is_told(found: dict[str, Any]) -> None:
    assert {k: found[k] for k in ("split", "checkpoint", "step")} == {"split": "test", "checkpoint": "step-00000006", "step": 6}
    assert found["tasks"]["label"]["num_rows"] == NUM_TEST_ROWS


def test_metrics_are_those_of_scikit_learn(found: dict[str, Any], columns: dict[str, np.ndarray], folder: Path) -> None:
    y, p, w = columns["y"], columns["p"], columns["w"]
    rate = np.average(y, weights=w)
    loss = log_loss(y, p, sample_weight=w)
    losses = -np.log(np.where(y == 1, p, 1 - p))
    wll = sum(np.average(losses[y == label], weights=w[y == label]) for label in (0, 1)) / 2
    precision = average_precision_score(y, p, sample_weight=w)
    want = {
        "auc": roc_auc_score(y, p, sample_weight=w),
        "log_loss": loss,
        "average_precision": precision,
        "normalized_entropy": loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)),
        "wll": wll,
        "contest_score": precision / 2 + 1 / (1 + wll) / 2,
        "calibration_ratio": (w * p).sum() / (w * y).sum(),
    }
    metrics = found["tasks"]["label"]["metrics"]
    assert {name: metrics[name]["value"] for name in want} == pytest.approx(want, abs=1e-6)
    assert all(m["low"] <= m["value"] <= m["high"] and m["low"] < m["high"] for m in (metrics[name] for name in want))
    train = pq.read_table(folder / "train.parquet")
    base_rate = np.average(train["label"].to_numpy(), weights=train["weight"].to_numpy())
    base = found["tasks"]["label"]["base"]
    assert base["log_loss"] == pytest.approx(log_loss(y, np.full(len(y), base_rate), sample_weight=w), abs=1e-6)
    assert base["auc"] == base["gauc"] == 0.5


def test_groups_are_users(found: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    y, p, w = columns["y"], columns["p"], columns["w"]
    total = weight = 0.0
    for user in np.unique(columns["user"]):
        mine = columns["user"] == user
        if 0 < y[mine].sum() < mine.sum():
            total += w[mine].sum() * roc_auc_score(y[mine], p[mine], sample_weight=w[mine])
            weight += w[mine].sum()
    metrics = found["tasks"]["label"]["metrics"]
    assert metrics["gauc"]["value"] == pytest.approx(total / weight, abs=1e-6)
    assert metrics["gauc_coverage"] == pytest.approx(weight / w.sum(), abs=1e-6)
    assert 0 < weight < w.sum(), "users of one class only must be among them"


def test_slices_have_metrics_of_their_own(found: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    y, p, w = columns["y"], columns["p"], columns["w"]
    rows = found["tasks"]["label"]["slices"]["device"]
    assert {row["value"] for row in rows} == {"phone", "tablet", "desktop", "(missing)"}
    for row in rows:
        mine = np.array([(device or "(missing)") == row["value"] for device in columns["device"]])
        assert row["num_rows"] == mine.sum()
        assert row["label_mean"] == pytest.approx(np.average(y[mine], weights=w[mine]), abs=1e-6)
        assert row["prediction_mean"] == pytest.approx(np.average(p[mine], weights=w[mine]), abs=1e-6)
        auc = roc_auc_score(y[mine], p[mine], sample_weight=w[mine])
        assert row["metrics"]["auc"]["value"] == pytest.approx(auc, abs=1e-6)


def test_the_report_lies_beside_the_numbers(found: dict[str, Any], folder: Path) -> None:
    out = folder / "run" / "evaluation" / "test"
    assert sorted(p.name for p in out.iterdir()) == ["metrics.json", "report.html"]
    html = (out / "report.html").read_text()
    auc = found["tasks"]["label"]["metrics"]["auc"]["value"]
    assert "deepfm on test" in html and f"{auc:.5f}" in html and "desktop" in html


def test_every_task_is_judged_by_its_kind_on_the_rows_that_have_its_label(folder: Path) -> None:
    text = evaluate_run(folder / "two", split="valid", progress=False)
    rows = pq.read_table(folder / "valid.parquet")
    p_NT = answers(folder / "two", rows)
    tasks = read(folder / "two", "valid")["tasks"]
    assert list(tasks) == ["label", "spend"] and "RMSE" in text and "AUC" in text
    assert tasks["label"]["metrics"]["auc"] == pytest.approx(roc_auc_score(rows["label"].to_numpy(), p_NT[:, 0]), abs=1e-6)
    spend = rows["spend"].to_numpy()
    known = ~np.isnan(spend)
    assert 0 < known.sum() < len(spend)
    want = {
        "rmse": mean_squared_error(spend[known], p_NT[known, 1]) ** 0.5,
        "mae": mean_absolute_error(spend[known], p_NT[known, 1]),
    }
    assert tasks["spend"]["kind"] == "regression" and tasks["spend"]["metrics"] == pytest.approx(want, rel=1e-6)
    mean = np.nanmean(pq.read_table(folder / "train.parquet")["spend"].to_numpy())
    assert tasks["spend"]["base"]["mae"] == pytest.approx(np.abs(spend[known] - mean).mean(), rel=1e-6)


def test_a_split_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"it has: train, valid\. Name one of these with --split; or give files in data\.test"):
        evaluate_run(folder / "two", progress=False)
    assert not (folder / "two" / "evaluation" / "test").exists()


def test_a_checkpoint_named_from_where_it_lies_finds_its_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "two" / "checkpoints")
    evaluate_run(Path("step-00000006"), split="train", progress=False)
    assert read(folder / "two", "train")["tasks"]["label"]["num_rows"] == 400


def test_a_cache_with_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    """As many users as before, so the tables have the same shapes, but each id is another user's."""
    write_files(tmp_path)
    run = train_run(tmp_path)
    train = log_rows(400, seed=7)
    other_users = pc.subtract(39, train["user"])
    pq.write_table(train.set_column(train.column_names.index("user"), "user", other_users), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"was prepared with other settings or from other files"):
        evaluate_run(run, progress=False)
    given = {"data__test": str(tmp_path / "test.parquet"), "data__cache": str(tmp_path / "cache-run"), "train__steps": 6}
    prepare(make_config(tmp_path, "run", **given), progress=False, force=True)
    with pytest.raises(ValueError, match=r"was prepared anew since .*step-00000006 was trained, and its ids mean other values now"):
        evaluate_run(run, progress=False)
