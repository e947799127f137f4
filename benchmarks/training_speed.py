"""Rows per second of training each net of a table in docs/models.md, one after the other, on a machine that does nothing else.

    python -m benchmarks.training_speed frappe --data ../shared/data/frappe_x1 --steps 60
    python -m benchmarks.training_speed ml1m --steps 30

The real `trm train` of each config, both cores, loader and log included; the median over the steps after the first ten. Writes rows
of benchmarks/results/NAME_speed.json, which docs/models.md shows beside the accuracy.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from torchrec_models.pipelines.reproduce import data_overrides, find_folder, read_published

from .record import merge_rows
from .sequences import NAMES, config_path

WARM_STEPS = 10


def rows_per_second(config: Path, run: Path, *, steps: int, overrides: list[str]) -> float:
    settings = [str(config), f"run={run}", f"train.steps={steps}", "train.tensorboard=false", *overrides]
    for command in ("prepare", "train"):
        subprocess.run([sys.executable, "-m", "torchrec_models.pipelines.cli", command, *settings], check=True)
    with (run / "metrics.csv").open(newline="") as file:
        speeds = [float(row["samples_per_second"]) for row in csv.DictReader(file) if int(row["step"]) > WARM_STEPS]
    return statistics.median(speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="folder of configs with a published.yaml; or ml1m, the sequence encoders")
    parser.add_argument("--nets", nargs="+", default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    if args.name == "ml1m":
        configs = {net: config_path(net) for net in args.nets or NAMES}
    else:
        folder = find_folder(args.name)
        configs = {net: folder / f"{net}.yaml" for net in args.nets or read_published(folder).nets}
    for net, config in configs.items():
        with tempfile.TemporaryDirectory() as run:
            speed = rows_per_second(config, Path(run) / net, steps=args.steps, overrides=data_overrides(config, args.data))
        merge_rows(
            f"{args.name}_speed",
            [{"model": net, "rows_per_second": round(speed), "steps": args.steps}],
            packages=("torch", "torchrec", "fbgemm-gpu-cpu"),
        )


if __name__ == "__main__":
    main()
