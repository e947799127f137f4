"""FuxiCTR's DeepFM over large tables, trained as it trains them: nn.Embedding, dense gradients, dense Adam on every row.

    PEER_VENV/bin/python -m benchmarks.peers.fuxictr_tables   (by benchmarks.large_tables)

Batches lie in memory as tensors: no file is read in a step. The MLP's defaults are those of the model's class.
"""

import argparse
import itertools
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from fuxictr.pytorch.torch_utils import seed_everything

from ..step_server import claim_stdout, serve
from ..workloads import batch_rows, zipf_rows
from .fuxictr_model import DeepFM, feature_map, memory_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-tables", type=int, default=26)
    parser.add_argument("--rows-per-table", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--num-batches", type=int, default=32)
    parser.add_argument("--zipf", type=float, default=1.05, help="exponent of the id distribution")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64, 64])
    parser.add_argument("--embedding-l2", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    answers = claim_stdout()
    torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    rows = zipf_rows(
        num_tables=args.num_tables,
        rows_per_table=args.rows_per_table,
        num_rows=args.num_batches * args.batch_size,
        exponent=args.zipf,
        seed=args.seed,
    )
    with tempfile.TemporaryDirectory() as work_dir:
        features = feature_map(rows.cardinalities, embedding_dim=args.dim, dataset_id="tables", folder=Path(work_dir))
        model = DeepFM(
            features,
            embedding_dim=args.dim,
            hidden_units=args.hidden,
            net_dropout=0.0,
            batch_norm=False,
            embedding_regularizer=args.embedding_l2 or None,
            learning_rate=1e-3,
            work_dir=Path(work_dir),
        )
        model.train()
        batches = itertools.cycle(memory_batches(rows, batch_rows(rows.num_rows, batch_size=args.batch_size, seed=args.seed)))
        serve(
            lambda: model.train_step(next(batches)).item(),
            about={
                "library": "FuxiCTR",
                "versions": {name: version(name) for name in ("fuxictr", "torch", "numpy")},
                "threads": args.threads,
                "rows_per_step": args.batch_size,
                "num_parameters": sum(p.numel() for p in model.parameters()),
                "optimizer": "dense Adam over whole tables",
            },
            answers=answers,
        )


if __name__ == "__main__":
    main()
