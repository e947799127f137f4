"""Five objectives on the whole road: labels that are missing, one net for all, weights that follow a schedule or are learnt,
metrics per task, a bundle that answers all of them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click_run import differing, forget_after, last_state, metric_rows
from sklearn.metrics import roc_auc_score

from torchrec_models import Bundle
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.checkpoint import load_model
from torchrec_models.pipelines.data.objectives import best_possible, objective_log
from torchrec_models.pipelines.data.prepare import open_prepared, prepare
from torchrec_models.pipelines.evaluation.run import evaluate_run
from torchrec_models.pipelines.export.run import export_run
from torchrec_models.pipelines.predict import predict
from torchrec_models.pipelines.train import train

LABELS = ("click", "watch", "chat", "hide", "report")
NUM_TRAIN, NUM_TEST = 6000, 1500


def raw_config(folder: Path, run: str) -> dict[str, Any]:
    return {
        "run": str(folder / run),
        "data": {
            "train": str(folder / "train.parquet"),
            "valid": str(folder / "test.parquet"),
            "test": str(folder / "test.parquet"),
            "cache": str(folder / "cache"),
        },
        "features": {
            **{name: {"kind": "categorical", "dim": 8, "init_std": 0.1} for name in ("user", "item", "topic", "device")},
            "minutes": {"kind": "numeric", "steps": ["log1p", "standard"]},
        },
        "labels": {
            "click": {},
            "watch": {"kind": "regression", "null": "mask"},
            "chat": {},
            "hide": {},
            "report": {"null": "mask"},
        },
        "model": {
            "name": "mmoe",
            "num_experts": 2,
            "expert": {"name": "dcnv2", "num_layers": 1, "hidden_units": [32]},
            "expert_width": 32,
            "tower_units": [16],
        },
        "train": {
            "batch_size": 200,
            "dense": {"lr": 0.01},
            "sparse": {"lr": 0.2},
            "tensorboard": False,
            "checkpoint": {"every_steps": 10, "keep": 100},
        },
        "evaluate": {"bootstrap": 0},
    }


def make_config(folder: Path, run: str, *overrides: str) -> C.RunConfig:
    return C.parse(raw_config(folder, run), overrides=overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objectives")
    table = objective_log(NUM_TRAIN + NUM_TEST, num_users=40, num_items=30, seed=1).table
    pq.write_table(table.slice(0, NUM_TRAIN), folder / "train.parquet")
    pq.write_table(table.slice(NUM_TRAIN), folder / "test.parquet")
    prepare(make_config(folder, "unused"), progress=False)
    train(make_config(folder, "run", "train.epochs=3"), progress=False)
    return folder


def test_the_generated_log_is_what_it_says() -> None:
    log = objective_log(20_000, seed=3)
    columns = {name: log.table[name].to_numpy(zero_copy_only=False) for name in LABELS}
    clicked = columns["click"] == 1
    assert (np.isnan(columns["watch"]) == ~clicked).all()
    assert not columns["chat"][~clicked].any() and columns["chat"][clicked].any()
    assert np.isnan(columns["report"]).mean() == pytest.approx(0.5, abs=0.02)
    for name in ("click", "chat", "hide", "report"):
        known = ~np.isnan(columns[name])
        truth = log.truth[name].to_numpy()[known]
        assert columns[name][known].mean() == pytest.approx(truth.mean(), abs=4 * 0.5 / len(truth) ** 0.5)
    assert best_possible(log)["watch"] == pytest.approx(0.4, abs=0.02)
    assert best_possible(log)["click"] == pytest.approx(roc_auc_score(columns["click"], log.truth["click"].to_numpy()))
    assert objective_log(100, seed=3).table == objective_log(100, seed=3).table


def test_missing_labels_weigh_nothing_for_their_task_alone(folder: Path) -> None:
    weights = open_prepared(make_config(folder, "unused")).split("train").weights()
    table = pq.read_table(folder / "train.parquet")
    for i, name in enumerate(LABELS):
        known = table[name].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
        assert (weights[:, i] == known).all(), name


def test_every_task_is_learnt_and_evaluated(folder: Path, tmp_path: Path) -> None:
    text = evaluate_run(folder / "run", split="test", progress=False)
    found = json.loads((folder / "run" / "evaluation" / "test" / "metrics.json").read_text())["tasks"]
    assert list(found) == list(LABELS) and all(name in text for name in LABELS)
    table = pq.read_table(folder / "test.parquet")
    best = best_possible(objective_log(NUM_TRAIN + NUM_TEST, num_users=40, num_items=30, seed=1))
    for name in LABELS:
        metrics = found[name]["metrics"]
        if name == "watch":
            spread = float(np.nanstd(table[name].to_numpy(zero_copy_only=False)))
            assert _value(metrics["rmse"]) < 0.75 * spread
        else:
            assert _value(metrics["auc"]) > 0.5 + 0.5 * (best[name] - 0.5), name
    predict(folder / "run", [str(folder / "test.parquet")], tmp_path / "p.parquet", progress=False)
    said = pq.read_table(tmp_path / "p.parquet")
    for name in ("watch", "report"):  # judged on the rows that have the label
        label = table[name].to_numpy(zero_copy_only=False)
        y, p = label[~np.isnan(label)], said[name].to_numpy()[~np.isnan(label)]
        expected = np.sqrt(((y - p) ** 2).mean()) if name == "watch" else roc_auc_score(y, p)
        assert _value(found[name]["metrics"]["rmse" if name == "watch" else "auc"]) == pytest.approx(expected, abs=1e-5)


def _value(metric: Any) -> float:
    return metric["value"] if isinstance(metric, dict) else metric


def test_the_bundle_answers_every_task(folder: Path, tmp_path: Path) -> None:
    export_run(folder / "run", out=tmp_path / "bundle")
    bundle, rows = Bundle(tmp_path / "bundle"), pq.read_table(folder / "test.parquet")
    assert bundle.tasks == LABELS
    found = bundle.predict(rows)
    assert found.shape == (NUM_TEST, 5)
    predict(folder / "run", [str(folder / "test.parquet")], tmp_path / "p.parquet", progress=False)
    written = pq.read_table(tmp_path / "p.parquet")
    np.testing.assert_allclose(found, np.stack([written[name].to_numpy() for name in LABELS], axis=1), atol=1e-5, rtol=0)
    clicks = rows["click"].to_numpy()
    assert roc_auc_score(clicks, found[:, 0]) > 0.6


def test_metrics_csv_tells_the_tasks_apart(folder: Path) -> None:
    rows = metric_rows(folder / "run")
    for name in LABELS:
        assert float(rows[-1][f"loss_{name}"]) < float(rows[0][f"loss_{name}"]), name
        assert {float(row[f"weight_{name}"]) for row in rows} == {1.0}
    assert "valid_click_auc" in rows[-1] and "valid_watch_rmse" in rows[-1]


@pytest.mark.parametrize(
    ("run", "weighting"),
    [
        ("scheduled", {"schedules": {"chat": {"kind": "linear", "from_weight": 0.0, "to_step": 25}}}),
        ("uncertainty", {"kind": "uncertainty"}),
    ],
)
def test_weights_change_are_kept_in_checkpoints_and_resumed(folder: Path, run: str, weighting: dict, tmp_path: Path) -> None:
    overrides = [f"train.task_weighting={json.dumps(weighting)}", "train.ema=0.9", "train.dense.weight_decay=0.1"]
    config = make_config(folder, run, *overrides)
    train(config, progress=False)
    rows, whole = metric_rows(folder / run), last_state(folder / run, tmp_path / "whole.pt")
    forget_after(folder / run, 20)
    train(config, progress=False)
    assert differing(last_state(folder / run, tmp_path / "again.pt"), whole) == []
    assert metric_rows(folder / run) == rows
    load_model(folder / run)  # averaged weights, and a loss with state of its own
    if run == "scheduled":
        assert int(whole["model"]["loss.weighting.step"]) == 30
        assert float(rows[0]["weight_chat"]) < 0.05 and float(rows[-1]["weight_chat"]) == 1
    else:
        learnt = whole["model"]["loss.weighting.log_variance_T"]
        assert (learnt != 0).all() and "loss.weighting.log_variance_T" in whole["average"]
        weights = [float(rows[-1][f"weight_{name}"]) for name in LABELS]
        assert weights[1] != 0.5 and all(weight != 1 for weight in weights)


def test_learnt_weights_do_not_decay(folder: Path) -> None:
    from torchrec_models.losses import UncertaintyWeights
    from torchrec_models.pipelines.optim import TrainOptimizer
    from torchrec_models.schema import Task

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 2)
            self.loss = UncertaintyWeights([Task(name="a"), Task(name="b")])

    whole = Whole()
    config = make_config(folder, "unused", "train.dense={optimizer: adamw, lr: 0.1, weight_decay: 0.5}").train
    optimizer = TrainOptimizer(whole, config, num_steps=3)
    with torch.no_grad():
        whole.loss.log_variance_T.fill_(1.0)
    before = whole.net.weight.detach().clone()
    for parameter in whole.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (whole.loss.log_variance_T == 1).all()
    torch.testing.assert_close(whole.net.weight.detach(), 0.95 * before)
