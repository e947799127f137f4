"""Short training runs whose predictions several tests look at (`from scored_run import ...`); the log is that of click_run."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from click_run import make_config

from torchrec_models.pipelines.checkpoint import load_model
from torchrec_models.pipelines.data.loader import to_batch
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.synthetic import click_log
from torchrec_models.pipelines.data.transforms import Transforms
from torchrec_models.pipelines.train import train

NUM_TEST_ROWS = 203


def log_rows(num_rows: int, *, seed: int) -> pa.Table:
    """A click log with a text key per row ("k0000", ...), a weight, and an amount spent (null in some rows)."""
    table = click_log(num_rows, num_users=40, num_items=30, seed=seed).table
    table = table.append_column("key", pa.array([f"k{i:04d}" for i in range(num_rows)]))
    return table.append_column("weight", table["price"]).append_column("spend", table["age"])


def write_files(folder: Path) -> None:
    """train.parquet (400 rows), valid.parquet (100), test.parquet (203)."""
    for name, num_rows, seed in (("train", 400, 7), ("valid", 100, 8), ("test", NUM_TEST_ROWS, 9)):
        pq.write_table(log_rows(num_rows, seed=seed), folder / f"{name}.parquet")


def train_run(folder: Path, run: str = "run", **changes: Any) -> Path:
    """Prepare and train 6 steps on the files in `folder`; the run's folder. `changes` as in click_run.make_config."""
    given = {"data__test": str(folder / "test.parquet"), "data__cache": str(folder / f"cache-{run}"), "train__steps": 6, **changes}
    config = make_config(folder, run, **given)
    prepare(config, progress=False)
    train(config, progress=False)
    return Path(config.run)


@torch.no_grad()
def answers(run: Path, rows: pa.Table, *, which: str = "best") -> np.ndarray:
    """[N, T] what the run's model says of raw rows: one process, no sharding, one batch."""
    loaded = load_model(run, which=which)
    transforms = Transforms.load(loaded.transforms)
    logits_BT = loaded.model(to_batch(loaded.schema, transforms.encode(rows, where="rows", first_row=0)))
    binary = torch.tensor([t.kind == "binary" for t in loaded.schema.tasks])
    return torch.where(binary, logits_BT.sigmoid(), logits_BT).numpy()
