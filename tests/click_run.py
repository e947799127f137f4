"""A small click log on the whole road: written as Parquet, prepared for real, trained (`from click_run import ...`)."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.checkpoint_folder import list_checkpoints
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.synthetic import click_log

NUM_TRAIN_ROWS, NUM_VALID_ROWS = 630, 120
TIMING = ("steps_per_second", "samples_per_second", "data_wait_share")


def write_click_log(folder: Path) -> None:
    """train.parquet (630 rows: 10 batches of 60 and one of 30) and valid.parquet (120 rows)."""
    table = click_log(NUM_TRAIN_ROWS + NUM_VALID_ROWS, num_users=40, num_items=30, seed=7).table
    weight = table["price"]
    table = table.append_column("weight", weight)
    pq.write_table(table.slice(0, NUM_TRAIN_ROWS), folder / "train.parquet")
    pq.write_table(table.slice(NUM_TRAIN_ROWS), folder / "valid.parquet")


def raw_config(folder: Path, run: str) -> dict[str, Any]:
    """A DeepFM whose every part has state: dropout, batch norm, averaged weights, warm-up; 22 steps in 2 epochs."""
    return {
        "run": str(folder / run),
        "data": {"train": str(folder / "train.parquet"), "valid": str(folder / "valid.parquet"), "cache": str(folder / "cache")},
        "features": {
            "user": {"kind": "categorical", "dim": 8, "init_std": 0.1},
            "item": {"kind": "categorical", "dim": 8, "init_std": 0.1},
            "device": {"kind": "categorical", "dim": 8, "init_std": 0.1},
            "tags": {"kind": "categorical", "dim": 8, "max_len": 4, "pooling": "mean", "init_std": 0.1},
            "price": {"kind": "numeric", "steps": ["log1p"]},
        },
        "labels": {"label": {}},
        "model": {"name": "deepfm", "hidden_units": [16, 16], "dropout": 0.2, "batch_norm": True},
        "train": {
            "batch_size": 60,
            "epochs": 2,
            "dense": {"lr": 0.01},
            "sparse": {"lr": 0.05},
            "ema": 0.9,
            "schedule": {"kind": "cosine", "warmup_steps": 5},
            "tensorboard": False,
            "checkpoint": {"every_steps": 3, "keep": 100},
        },
    }


def make_config(folder: Path, run: str, **changes: Any) -> C.RunConfig:
    """`changes` are overrides such as train__batch_size=60, or model={...}."""
    raw = raw_config(folder, run)
    if changes.get("train__mode") == "unfused":
        del raw["train"]["sparse"]
    return C.parse(raw, overrides=[f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()])


def prepared(folder: Path) -> Path:
    """The folder, with the log written and prepared in it."""
    write_click_log(folder)
    prepare(make_config(folder, "unused"), progress=False)
    return folder


def last_state(run: Path, scratch: Path) -> dict[str, Any]:
    """Everything tensor-like of a run's last checkpoint: model, optimizers, averaged weights."""
    dcp_to_torch_save(list_checkpoints(run)[-1], scratch)
    return torch.load(scratch, weights_only=True)


def differing(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted paths at which two nested states are not bit-identical."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [line for key in sorted({*a, *b}, key=str) for line in differing(a.get(key), b.get(key), f"{path}.{key}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    return [] if a == b and type(a) is type(b) else [path]


def metric_rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without what depends on the clock."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(file)]


def forget_after(run: Path, step: int) -> None:
    """As if the run had been killed after the checkpoint of `step`."""
    for folder in list_checkpoints(run):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
