"""Training with the loader on, beside training on one cached batch: DeepFM on Frappe_x1, DARE + QNN-alpha on MovieLens-1M, and two
towers over two feature stores at two batch sizes.

    python -m benchmarks.data.ml1m_sequences ../shared/data/ml1m_loo FOLDER/ml1m_sequences
    python -m benchmarks.data.make_pairs FOLDER/bids
    python -m benchmarks.profiles FOLDER

Prepares each config into FOLDER and runs `trm profile` on it; merges the rows into benchmarks/results/profiles.json. Run it on a
quiet machine: the turns alternate, but a neighbour that takes a core for a while is in one of them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from .record import ROOT, merge_rows

PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy", "pyarrow")
SPLITS = ("train", "valid", "test")
CONFIGS = {
    "frappe_deepfm": "configs/frappe/deepfm.yaml",
    "ml1m_dare_qnn": "configs/ml1m/dare_qnn.yaml",
    "bids_two_tower_256": "configs/bids/two_tower.yaml",
    "bids_two_tower_4096": "configs/bids/two_tower.yaml",
}


def overrides_of(name: str, folder: Path) -> list[str]:
    """Where the rows are, and the batch size where a config is measured at several."""
    if name.startswith("bids"):
        stores = [f"data.stores.{store}.files={folder / 'bids' / f'{store}.parquet'}" for store in ("notices", "companies")]
        size = name.rpartition("_")[2]
        return [f"data.train={folder / 'bids' / 'pairs-*.parquet'}", *stores, f"train.batch_size={size}"]
    rows = ROOT.parent / "shared" / "data" / "frappe_x1" if name.startswith("frappe") else folder / "ml1m_sequences"
    return [f"data.{split}={rows / f'{split}.parquet'}" for split in SPLITS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for caches and timelines; with ml1m_sequences in it")
    parser.add_argument("--names", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each: loader, cached batch, both (default: 10)")
    args = parser.parse_args()
    for name in args.names:
        cache = args.folder / "cache" / name.removesuffix("_256").removesuffix("_4096")
        overrides = [*overrides_of(name, args.folder), f"data.cache={cache}", f"run={args.folder / 'runs' / name}"]
        _trm("prepare", CONFIGS[name], *overrides)
        found = json.loads(_trm("profile", CONFIGS[name], *overrides, "--seconds", str(args.seconds), "--json"))
        del found["timeline"]
        merge_rows("profiles", [{"config": CONFIGS[name], **found, "model": name}], packages=PACKAGES)
        print(f"{name}: {found['reached']:.1%} of the speed on a cached batch; {found['verdict']['text']}")


def _trm(*arguments: str) -> str:
    command = [sys.executable, "-m", "torchrec_models.pipelines.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
