"""What a part of the training rows costs: Frappe_x1, all rows against core-sets and random rows of equal number.

The recipe of configs/frappe/deepfm.yaml (dense Adam, L2 on whole tables, early stopping on the validation AUC) with a smaller
net and at most `--epochs` epochs. Each kind of selection is made once per seed; each run has its own seed.

    python -m benchmarks.selection --folder /tmp/selection [--seeds 1 2] [--keeps 0.3 0.1]
    python -m benchmarks.selection --folder /tmp/equal --keeps 0.3 --kinds random el2n_random --equal-steps

Writes benchmarks/results/selection_frappe.json, or selection_frappe_equal_steps.json, where runs on a part of the rows take as many
steps as `--epochs` over all rows (which are then not run).
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from torchrec_models.pipelines import checkpoint, checkpoint_folder
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.data.prepare import open_prepared, prepare
from torchrec_models.pipelines.distributed import build_task, processes
from torchrec_models.pipelines.scoring import evaluation_mode, validation_metrics
from torchrec_models.pipelines.select_rows import select
from torchrec_models.pipelines.train import train

from .record import ROOT, write_result

KINDS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "el2n": {"method": "el2n"},
    "el2n_random": {"method": "el2n_random"},
    "el2n_random, unweighted": {"method": "el2n_random", "weighted": False},
}
SHOWN = ("auc", "gauc", "log_loss", "calibration_ratio")


def config_of(folder: Path, run: str, options: argparse.Namespace, *overrides: str, epochs: int = 0) -> C.RunConfig:
    data = ROOT.parent / "shared" / "data" / "frappe_x1"
    paths = [f"data.{split}={data / split}.parquet" for split in ("train", "valid", "test")]
    folders = [f"data.cache={folder / 'cache'}", f"run={folder / run}"]
    net = f"model.hidden_units={options.hidden_units}".replace(" ", "")
    short = [net, f"train.epochs={epochs or options.epochs}", "train.tensorboard=false"]
    return C.load(ROOT / "configs/frappe/deepfm.yaml", [*paths, *folders, *short, *overrides])


def trained(config: C.RunConfig) -> dict[str, Any]:
    """Test metrics of the best checkpoint, and what it took."""
    result = train(config, progress=False)
    cache = open_prepared(config)
    with processes() as procs:
        built = build_task(config, cache.schema, procs)
        checkpoint.load_weights(checkpoint_folder.choose(Path(config.run), which="best"), built.state_dict(), averaged=False)
        with evaluation_mode(built):
            found = validation_metrics(built, cache, "test", config, procs)
    shutil.rmtree(config.run)
    return {
        **{name: found[name] for name in SHOWN},
        "steps": result.progress.step,
        "best_step": result.progress.best_step,
        "seconds": round(result.seconds, 1),
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    means = {name: float(np.mean([run[name] for run in runs])) for name in (*SHOWN, "steps", "seconds")}
    return means | {"auc_std": float(np.std([run["auc"] for run in runs], ddof=1)) if len(runs) > 1 else None, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for cache, selections and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.3, 0.1])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--hidden-units", type=int, nargs="+", default=[64, 64])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--equal-steps", action="store_true")
    options = parser.parse_args()
    prepare(config_of(options.folder, "none", options), progress=False)
    found: dict[str, list[dict[str, Any]]] = {}
    scoring_seconds = []
    for seed in options.seeds:
        of_seed = f"train.seed={seed}"
        if not options.equal_steps:
            found.setdefault("all rows", []).append(trained(config_of(options.folder, "run", options, of_seed)))
        scored = options.folder / f"scored-{seed}"
        for keep in options.keeps:
            epochs = round(options.epochs / keep) if options.equal_steps else options.epochs
            for kind in options.kinds:
                how = KINDS[kind]
                out = options.folder / f"{kind}-{keep:g}-{seed}".replace(", ", "-")
                start = time.perf_counter()
                config = config_of(options.folder, "run", options, of_seed)
                reuse = scored if scored.exists() and how["method"] != "random" else None
                select(config, out, keep=keep, seed=seed, scores_of=reuse, progress=False, **how)
                if reuse is None and how["method"] != "random":
                    scoring_seconds.append(time.perf_counter() - start)
                    shutil.copytree(out, scored)
                of_selection = f"train.sampling.selection={out}"
                run = trained(config_of(options.folder, "run", options, of_seed, of_selection, epochs=epochs))
                found.setdefault(f"{kind}, {keep:g}", []).append(run)
                print(f"seed {seed} {kind}, {keep:g}: {run}", flush=True)
    result = {
        "data": "frappe_x1",
        "net": f"deepfm, hidden_units {options.hidden_units}",
        "epochs": options.epochs,
        "seeds": options.seeds,
        "scoring": {"runs": 3, "epochs": 1, "seconds": round(float(np.mean(scoring_seconds)), 1)},
        "rows": {kind: summary(runs) for kind, runs in found.items()},
    }
    name = "selection_frappe_equal_steps" if options.equal_steps else "selection_frappe"
    print(write_result(name, result, packages=("torch", "torchrec", "numpy")))


if __name__ == "__main__":
    main()
