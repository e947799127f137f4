"""Our half of benchmarks.large_tables: the trainer's own loader, pipeline and optimizers, one step at a time.

A step begins with the loader picking its rows (the reading thread's work counts: it runs on the same cores) and ends with
updated weights. The trainer keeps a split of this size in memory, and so does the loader here.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from torchrec_models.batch import Batch
from torchrec_models.pipelines.config import DenseOptimizerConfig, SparseOptimizerConfig, TrainConfig
from torchrec_models.pipelines.data.loader import Loader
from torchrec_models.pipelines.distributed import processes
from torchrec_models.pipelines.train import Trainer

from .ours_rows import run_config, schema_of, write_cache
from .step_server import claim_stdout, serve
from .workloads import zipf_rows

MAX_STEPS = 1_000_000


def endless(loader: Loader) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-tables", type=int, default=26)
    parser.add_argument("--rows-per-table", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--num-batches", type=int, default=32)
    parser.add_argument("--zipf", type=float, default=1.05, help="exponent of the id distribution")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64, 64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    answers = claim_stdout()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    coded = zipf_rows(
        num_tables=args.num_tables,
        rows_per_table=args.rows_per_table,
        num_rows=args.num_batches * args.batch_size,
        exponent=args.zipf,
        seed=args.seed,
    )
    schema = schema_of(coded, dim=args.dim, init_std=1e-4)
    train = TrainConfig(
        batch_size=args.batch_size,
        seed=args.seed,
        last_batch="drop",
        steps=MAX_STEPS,
        dense=DenseOptimizerConfig(optimizer="adam", lr=1e-3),
        sparse=SparseOptimizerConfig(optimizer="rowwise_adagrad"),
        clip_norm=10.0,
    )
    with tempfile.TemporaryDirectory() as folder, processes() as procs:
        cache = write_cache(Path(folder) / "cache", schema, coded)
        config = run_config(schema, deepfm={"hidden_units": args.hidden}, train=train, folder=Path(folder))
        trainer = Trainer(config, cache, procs, show=False)
        trainer.built.task.train()
        batches = endless(trainer.loader)
        steps = itertools.count()

        def step() -> float:
            trainer.optimizer.set_step(next(steps))
            return trainer.pipeline.progress(batches)[0].mean().item()

        embedding, net = trainer.built.plain.model.embedding, trainer.built.plain.model.net
        serve(
            step,
            about={
                "library": "torchrec-models",
                "versions": {name: version(name) for name in ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy")},
                "threads": args.threads,
                "rows_per_step": args.batch_size,
                "num_parameters": sum(t.num_rows * t.dim for t in embedding.tables) + sum(p.numel() for p in net.parameters()),
                "optimizer": "row-wise Adagrad fused into backward, Adam for the dense part",
            },
            answers=answers,
        )


if __name__ == "__main__":
    main()
