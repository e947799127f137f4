"""FuxiCTR's DeepFM on Frappe with the BARS recipe. Run with the interpreter of the peer environment (setup_fuxictr.sh):

    PEER_VENV/bin/python -m benchmarks.peers.fuxictr_deepfm --data FRAPPE_DIR --mode full --seed 2021
    PEER_VENV/bin/python -m benchmarks.peers.fuxictr_deepfm --data FRAPPE_DIR --mode steps   (by benchmarks.frappe_deepfm)
"""

import argparse
import itertools
import json
import logging
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from fuxictr.pytorch.dataloaders.parquet_dataloader import ParquetDataLoader
from fuxictr.pytorch.torch_utils import seed_everything

from ..step_server import claim_stdout, serve
from ..workloads import batch_rows, frappe
from .fuxictr_model import DeepFM, feature_map, fuxictr_columns, memory_batches

BATCH_SIZE = 4096
MAX_EPOCHS = 100


def build(cardinalities: dict[str, int], *, seed: int, work_dir: Path) -> DeepFM:
    """The recipe behind the published row (BARS, frappe_x1): Adam 1e-3, embedding L2 0.05, 400 x 3, batch norm, dropout 0.2."""
    seed_everything(seed)
    features = feature_map(cardinalities, embedding_dim=10, dataset_id="frappe", folder=work_dir)
    (work_dir / "frappe").mkdir(exist_ok=True)
    return DeepFM(
        features,
        embedding_dim=10,
        hidden_units=[400, 400, 400],
        net_dropout=0.2,
        batch_norm=True,
        embedding_regularizer=0.05,
        learning_rate=1e-3,
        work_dir=work_dir,
    )


def loaders(model: DeepFM, *, data: Path, work_dir: Path, kind: str, num_workers: int) -> dict[str, Any]:
    """FuxiCTR's own loaders over the coded splits: `npz` (a torch DataLoader) or `parquet` (Ray Data)."""
    out = {}
    for split in ("train", "valid", "test"):
        columns = fuxictr_columns(frappe(data, split=split))
        path = work_dir / f"{split}.{kind}"
        if kind == "npz":
            np.savez(path, allow_pickle=False, **columns)
        else:
            pq.write_table(pa.table(columns), path)
        loader = NpzDataLoader if kind == "npz" else ParquetDataLoader
        out[split] = loader(
            model.feature_map, str(path), split=split, batch_size=BATCH_SIZE, shuffle=split == "train", num_workers=num_workers
        )
    return out


def train_fully(*, data: Path, seed: int, kind: str, num_workers: int, work_dir: Path) -> dict[str, Any]:
    """Trains until two evaluations in a row bring nothing, loads the best epoch, tests once."""
    train = frappe(data, split="train")
    model = build(train.cardinalities, seed=seed, work_dir=work_dir)
    inputs = loaders(model, data=data, work_dir=work_dir, kind=kind, num_workers=num_workers)
    start = time.perf_counter()
    model.fit(inputs["train"], epochs=MAX_EPOCHS, validation_data=inputs["valid"])
    fit_seconds = time.perf_counter() - start
    metrics = model.evaluate(inputs["test"])
    epoch_seconds = statistics.median(model.epoch_seconds)
    return {
        "seed": seed,
        "loader": kind,
        "num_workers": num_workers,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "test_auc": float(metrics["AUC"]),
        "test_logloss": float(metrics["logloss"]),
        "epochs": len(model.epoch_seconds),
        "fit_seconds": fit_seconds,
        "epoch_seconds_median": epoch_seconds,
        "samples_per_second": train.num_rows / epoch_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet, valid.parquet, test.parquet")
    parser.add_argument("--mode", choices=["full", "steps"], required=True)
    parser.add_argument("--seed", type=int, default=2021)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loader", choices=["npz", "parquet"], default="npz", help="full mode only")
    parser.add_argument("--num-workers", type=int, default=0, help="full mode only")
    args = parser.parse_args()
    answers = claim_stdout()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    about = {
        "library": "FuxiCTR",
        "versions": {name: version(name) for name in ("fuxictr", "torch", "numpy")},
        "threads": args.threads,
    }
    with tempfile.TemporaryDirectory() as work_dir:
        if args.mode == "full":
            result = train_fully(
                data=args.data, seed=args.seed, kind=args.loader, num_workers=args.num_workers, work_dir=Path(work_dir)
            )
            print(json.dumps({**about, **result}), file=answers)
            return
        rows = frappe(args.data, split="train")
        model = build(rows.cardinalities, seed=args.seed, work_dir=Path(work_dir))
        model.train()
        batches = itertools.cycle(memory_batches(rows, batch_rows(rows.num_rows, batch_size=BATCH_SIZE, seed=args.seed)))
        num_parameters = sum(p.numel() for p in model.parameters())
        serve(
            lambda: model.train_step(next(batches)).item(),
            about={**about, "rows_per_step": BATCH_SIZE, "num_parameters": num_parameters},
            answers=answers,
        )


if __name__ == "__main__":
    main()
