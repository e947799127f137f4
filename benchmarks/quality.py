"""Accuracy of a config over seeds, on its test split: prepare, train and evaluate through the command line, as a user would.

    python -m benchmarks.quality configs/frappe/deepfm.yaml --seeds 2021 1 2 --result frappe_quality --published .98395
    python -m benchmarks.quality configs/ml1m/two_tower_history.yaml --seeds 0 --result ml1m_retrieval --metrics recall@10 ndcg@10
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .record import merge_rows

PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy", "pyarrow")


def one_seed(config: Path, seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Test metrics of one run, with its steps and its training time in seconds."""
    run = folder / f"seed-{seed}"
    trm = [sys.executable, "-m", "torchrec_models.pipelines.cli"]
    start = time.perf_counter()
    subprocess.run([*trm, "train", str(config), f"run={run}", f"train.seed={seed}", *overrides], check=True)
    seconds = time.perf_counter() - start
    subprocess.run([*trm, "evaluate", str(run)], check=True)
    found = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())
    (task,) = found["tasks"].values()
    values = {name: value["value"] if isinstance(value, dict) else value for name, value in task["metrics"].items()}
    return {"seed": seed, "best_step": found["step"], "train_seconds": round(seconds, 1), **values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--metrics", nargs="+", default=["auc", "gauc", "log_loss"])
    parser.add_argument("--result", required=True, help="benchmarks/results/RESULT.json; a row per model")
    parser.add_argument("--name", default="", help="the row's name; default: the config's")
    parser.add_argument("--published", type=float, help="published value of the first metric, kept in the row")
    args = parser.parse_args()
    subprocess.run([sys.executable, "-m", "torchrec_models.pipelines.cli", "prepare", str(args.config)], check=True)
    with tempfile.TemporaryDirectory() as folder:
        seeds = [one_seed(args.config, seed, Path(folder), args.overrides) for seed in args.seeds]
    row: dict[str, Any] = {"model": args.name or f"{args.config.parent.name}/{args.config.stem}", "seeds": seeds}
    for metric in args.metrics:
        values = [seed[metric] for seed in seeds]
        row[metric] = statistics.mean(values)
        if len(values) > 1:
            row[f"{metric}_std"] = statistics.stdev(values)
        print(f"{metric}: {row[metric]:.5f}" + (f" +- {row[f'{metric}_std']:.5f}" if len(values) > 1 else ""))
    if args.published is not None:
        row["published"] = args.published
    print(merge_rows(args.result, [row], packages=PACKAGES))


if __name__ == "__main__":
    main()
