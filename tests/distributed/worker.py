"""What the distributed tests run in real processes: `torchrun worker.py SCENARIO FOLDER`. Results go to FOLDER as JSON."""

import csv
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from torchrec_models.pipelines import checkpoint, checkpoint_folder
from torchrec_models.pipelines.config import RunConfig, parse
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.data.synthetic import random_cache
from torchrec_models.pipelines.distributed import Processes, processes
from torchrec_models.pipelines.scoring import evaluation_mode, score
from torchrec_models.pipelines.train import Trainer
from torchrec_models.schema import Feature, Schema, Table, Task

SCHEMA = Schema(
    features=(
        Feature(name="user", kind="categorical", table="user"),
        Feature(name="tags", kind="categorical", table="tags", max_len=4, pooling="mean"),
        Feature(name="item", kind="categorical", table="item"),
        Feature(name="history", kind="sequence", table="item", max_len=5),
        Feature(name="price", kind="numeric"),
    ),
    tables=(
        Table(name="user", num_rows=53, dim=8, init_std=0.1),
        Table(name="tags", num_rows=7, dim=8, init_std=0.1),
        Table(name="item", num_rows=31, dim=8, init_std=0.1),
    ),
    tasks=(Task(name="click"),),
)


def make_cache(folder: Path) -> Cache:
    # 504: the last batch of an epoch has 24 rows, which 2 and 3 processes share evenly
    cache = random_cache(folder / "cache", SCHEMA, {"train": 504, "valid": 101}, rows_per_shard=200)
    (folder / "cache" / "transforms").mkdir()  # hand-made rows have none; checkpoints carry the folder along
    return cache


def make_config(folder: Path, run: str, **changes: Any) -> RunConfig:
    """`changes` are overrides such as train__batch_size=60."""
    raw: dict[str, Any] = {
        "run": str(folder / run),
        "data": {"train": "unused.parquet", "valid": "unused.parquet", "cache": str(folder / "cache")},
        "features": {
            "user": {"kind": "categorical", "dim": 8},
            "tags": {"kind": "categorical", "dim": 8, "max_len": 4, "pooling": "mean"},
            "item": {"kind": "categorical", "dim": 8},
            "history": {"kind": "sequence", "table": "item", "max_len": 5},
            "price": {"kind": "numeric"},
        },
        "labels": {"click": {}},
        "model": {"name": "deepfm", "hidden_units": [16]},
        "train": {
            "batch_size": 60,
            "epochs": 2,
            "evaluate_every_steps": 6,
            "tensorboard": False,
            "sparse": {"optimizer": "adagrad", "lr": 0.05},
            "schedule": {"kind": "cosine", "warmup_steps": 4},
            "checkpoint": {"keep": 100},
        },
    }
    if changes.get("train__mode") == "unfused":
        del raw["train"]["sparse"]
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    return parse(raw, overrides=overrides)


class Recorder(Trainer):
    """A trainer that notes the mean loss of every step over all processes."""

    def fit(self) -> None:
        self.losses: list[float] = []
        self.pipelined: list[str] = []
        step = self.pipeline.progress

        def progress(batches: Any) -> Any:
            output = step(batches)
            sums = torch.stack([(output[0] * output[3]).sum(), output[3].sum()])
            torch.distributed.all_reduce(sums)
            self.losses.append(float(sums[0] / sums[1]))
            if self.built.is_sharded:
                self.pipelined = sorted(m.forward.name for m in self.pipeline._pipelined_modules)
            return output

        self.pipeline.progress = progress
        super().fit()


def train(config: RunConfig, cache: Cache, procs: Processes, *, resume: bool = False) -> Recorder:
    Path(config.run).mkdir(parents=True, exist_ok=True)
    trainer = Recorder(config, cache, procs, show=False)
    found = checkpoint_folder.latest_usable(Path(config.run)) if resume else None
    if found:
        trainer.resume(found)
    trainer.fit()
    return trainer


def curves(folder: Path, procs: Processes) -> dict[str, Any]:
    """Loss curves of every sharding type on these processes, and which modules were pipelined."""
    cache = Cache.open(folder / "cache")
    results: dict[str, Any] = {}
    for mode in ("table_wise", "row_wise", "column_wise", "unfused"):
        changes = {"train__mode": "unfused"} if mode == "unfused" else {"sharding__types": [mode]}
        config = make_config(folder, f"{mode}-{procs.world_size}", **changes)
        trainer = train(config, cache, procs)
        plan = str(trainer.built.task.plan) if trainer.built.is_sharded else ""
        results[mode] = {
            "losses": trainer.losses,
            "pipelined": trainer.pipelined,
            "planned": plan.count(mode),
            "valid": trainer.progress.metrics,
        }
    return results


def resume(folder: Path, procs: Processes) -> dict[str, Any]:
    """Go on with runs that another number of processes began, under the sharding types named in `plans.json`."""
    cache = Cache.open(folder / "cache")
    results = {}
    for run, changes in json.loads((folder / "plans.json").read_text()).items():
        trainer = train(make_config(folder, run, **changes), cache, procs, resume=True)
        with (folder / run / "metrics.csv").open() as file:
            steps = [int(row["step"]) for row in csv.DictReader(file) if row.get("valid_auc")]
        results[run] = {"losses": trainer.losses, "valid": trainer.progress.metrics, "evaluated_at": steps}
    return results


def evaluate(folder: Path, procs: Processes) -> dict[str, Any]:
    """Score the validation rows with the runs named in `plans.json`."""
    from torchrec_models.pipelines.distributed import build_task

    cache = Cache.open(folder / "cache")
    results = {}
    for run in json.loads((folder / "plans.json").read_text()):
        config = make_config(folder, run)
        built = build_task(checkpoint_folder.read_config(checkpoint_folder.choose(folder / run)), cache.schema, procs)
        checkpoint.load_weights(checkpoint_folder.choose(folder / run), built.state_dict(), averaged=False)
        with evaluation_mode(built):
            results[run] = score(built, cache, "valid", config, procs).predictions[:, 0].tolist()
    return results


if __name__ == "__main__":
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    with processes(timeout_seconds=120) as group:
        found = {"curves": curves, "resume": resume, "evaluate": evaluate}[scenario](folder, group)
        if group.is_first:
            (folder / f"{scenario}-{group.world_size}.json").write_text(json.dumps(found))
