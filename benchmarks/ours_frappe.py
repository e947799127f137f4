"""Our half of benchmarks.frappe_deepfm: DeepFM with the BARS recipe in unfused mode, batches in memory."""

import argparse
import itertools
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from torchrec.distributed.train_pipeline import TrainPipelineBase

from torchrec_models.pipelines.config import DenseOptimizerConfig, TrainConfig
from torchrec_models.pipelines.distributed import build_task, processes
from torchrec_models.pipelines.optim import TrainOptimizer

from .ours_rows import memory_batches, run_config, schema_of
from .step_server import claim_stdout, serve
from .workloads import batch_rows, frappe

BATCH_SIZE = 4096
MAX_STEPS = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet, valid.parquet, test.parquet")
    parser.add_argument("--seed", type=int, default=2021)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    answers = claim_stdout()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    coded = frappe(args.data, split="train")
    schema = schema_of(coded, dim=10, init_std=1e-4)
    train = TrainConfig(
        mode="unfused",
        batch_size=BATCH_SIZE,
        seed=args.seed,
        dense=DenseOptimizerConfig(optimizer="adam", lr=1e-3),
        embedding_l2=0.05,
        clip_norm=10.0,
        precision=args.precision,
        compile=args.compile,
    )
    deepfm = {"hidden_units": [400, 400, 400], "batch_norm": True, "dropout": 0.2}
    numbers = batch_rows(coded.num_rows, batch_size=BATCH_SIZE, seed=args.seed)
    batches = itertools.cycle(memory_batches(schema, coded, numbers))
    with tempfile.TemporaryDirectory() as folder, processes() as procs:
        built = build_task(run_config(schema, deepfm=deepfm, train=train, folder=Path(folder)), schema, procs)
        optimizer = TrainOptimizer(built.task, train, num_steps=MAX_STEPS, tables=built.embedding_parameters)
        pipeline = TrainPipelineBase(built.task, optimizer, procs.device)
        built.task.train()
        steps = itertools.count()

        def step() -> float:
            optimizer.set_step(next(steps))
            return pipeline.progress(batches)[0].mean().item()

        serve(
            step,
            about={
                "library": "torchrec-models",
                "versions": {name: version(name) for name in ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy")},
                "threads": args.threads,
                "rows_per_step": BATCH_SIZE,
                "num_parameters": sum(p.numel() for p in built.plain.parameters()),
                "precision": args.precision,
                "compile": args.compile,
            },
            answers=answers,
        )


if __name__ == "__main__":
    main()
