"""Sequence encoders under one protocol and one budget, on MovieLens-1M: accuracy, time, memory and parameters of each.

    python -m benchmarks.data.ml1m_sequences ../shared/data/ml1m_loo data/ml1m_sequences
    python -m benchmarks.sequences

Each config is prepared, trained and evaluated through the command line, as a user would, one after the other; data, batch size,
epochs and learning rates are the same in all of them. Seconds and rows per second are those of training alone (from metrics.csv,
without evaluation); peak memory is the training process's, and cpu_seconds what it used on all cores with start-up and validation.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torchrec_models.model import build
from torchrec_models.pipelines.config.run import RunConfig, load
from torchrec_models.pipelines.data.prepare import open_prepared

from .record import merge_rows

CONFIGS = Path("configs/ml1m")
NAMES = ("mean", "din", "sim", "sdim", "dare", "dare_qnn", "bst", "feseq", "hstu", "hstu_production", "gru")
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy", "pyarrow")
METRICS = ("auc", "gauc", "log_loss")
SHARED = ("labels", "train")


def config_path(name: str) -> Path:
    own = CONFIGS / f"{name}.yaml"
    return own if own.exists() else CONFIGS / f"sequence_{name}.yaml"


def check_same_budget(configs: dict[str, RunConfig]) -> None:
    """Raises ValueError if two configs differ in data, labels or training: their rows would not be comparable."""
    kept = {}
    for name, config in configs.items():
        plain = config.model_dump(mode="json")
        plain["data"].pop("cache")
        kept[name] = {part: plain[part] for part in ("data", *SHARED)}
    first, *others = kept
    for name in others:
        for part, value in kept[name].items():
            if value != kept[first][part]:
                raise ValueError(f"{name} and {first} differ in `{part}`: {value} and {kept[first][part]}")


def num_parameters(config: RunConfig) -> dict[str, int]:
    """By part: tables, encoder, auxiliary (used in training only), head."""
    schema = open_prepared(config).schema
    model = build(schema, config.model["name"], {k: v for k, v in config.model.items() if k != "name"}).model
    parts = {"tables": 0, "encoder": 0, "auxiliary": 0, "head": 0}
    for name, parameter in model.named_parameters():
        top, inner = name.split(".")[:2]
        part = {"encoders": "encoder", "auxiliary": "auxiliary"}.get(inner, "head") if top == "net" else "tables"
        parts[part] += parameter.numel()
    return parts


def train(path: Path, run: Path, overrides: list[str]) -> dict[str, Any]:
    """Trains in a process of its own."""
    command = [sys.executable, "-m", "torchrec_models.pipelines.cli", "train", str(path), f"run={run}", *overrides]
    _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
    if status:
        raise SystemExit(f"{path}: training failed with status {os.waitstatus_to_exitcode(status)}")
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    lengths = [step - before for step, before in zip(steps, [0, *steps])]
    seconds = sum(length / float(row["steps_per_second"]) for row, length in zip(rows, lengths) if length)
    num_rows = sum(
        float(row["samples_per_second"]) * length / float(row["steps_per_second"]) for row, length in zip(rows, lengths) if length
    )
    return {
        "steps": steps[-1],
        "train_seconds": round(seconds, 1),
        "rows_per_second": round(num_rows / seconds),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": round(usage.ru_maxrss / 1024),
    }


def measure(name: str, run: Path, overrides: list[str]) -> dict[str, Any]:
    path = config_path(name)
    config = load(path, overrides)
    trm = [sys.executable, "-m", "torchrec_models.pipelines.cli"]
    subprocess.run([*trm, "prepare", str(path), *overrides], check=True)
    row = {"model": name, "num_parameters": num_parameters(config), **train(path, run, overrides)}
    row["seconds_per_epoch"] = round(row["train_seconds"] / config.train.epochs, 1) if not config.train.steps else None
    subprocess.run([*trm, "evaluate", str(run)], check=True)
    found = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())
    (task,) = found["tasks"].values()
    values = {metric: value["value"] if isinstance(value, dict) else value for metric, value in task["metrics"].items()}
    return row | {"best_step": found["step"]} | {metric: values[metric] for metric in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for all configs, for example train.seed=1")
    parser.add_argument("--models", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--result", default="sequences_ml1m", help="benchmarks/results/RESULT.json; a row per model")
    args = parser.parse_args()
    check_same_budget({name: load(config_path(name), args.overrides) for name in args.models})
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, Path(folder) / "run", args.overrides)
        print(row, flush=True)
        path = merge_rows(args.result, [row], packages=PACKAGES)
    print(path)


if __name__ == "__main__":
    main()
