"""The published table of a data set by `trm reproduce`, kept as a result file with machine, versions and commit.

    python -m benchmarks.zoo frappe --result frappe_x1
    python -m benchmarks.zoo frappe --result frappe_x1_fused --seeds 2021 --fused train.sparse.lr=0.05

Finished runs are not made again; see `trm reproduce --help` for the options.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from torchrec_models.pipelines.reproduce import Row, render, reproduce

from .record import merge_rows

PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy", "pyarrow")


def summary(row: Row) -> dict[str, Any]:
    """One net: per seed, mean, spread, and the published values."""
    return {
        "model": row.net,
        "seeds": row.seeds,
        "auc": row.auc,
        "auc_mean": statistics.mean(row.auc),
        "auc_std": statistics.stdev(row.auc) if len(row.auc) > 1 else None,
        "log_loss": row.log_loss,
        "log_loss_mean": statistics.mean(row.log_loss),
        "difference": row.difference,
        "published": row.published,
        "parameters": row.parameters,
        "epochs": row.epochs,
        "minutes": [round(m, 2) for m in row.minutes],
        "rows_per_second": round(row.rows_per_second),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="folder of configs with a published.yaml")
    parser.add_argument("--result", required=True, help="benchmarks/results/RESULT.json; a row per net")
    parser.add_argument("--nets", nargs="+", default=[])
    parser.add_argument("--seeds", nargs="+", type=int, default=[])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fused", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--note", default="", help="what a reader must know of these rows")
    args = parser.parse_args()
    table, rows, _ = reproduce(
        args.name, nets=args.nets, seeds=args.seeds, data=args.data, fused=args.fused, out=args.out, jobs=args.jobs
    )
    print(render(table, rows))
    about = {"tolerance": table.tolerance, "note": args.note}
    print(merge_rows(args.result, [{**summary(row), **about} for row in rows], packages=PACKAGES))


if __name__ == "__main__":
    main()
