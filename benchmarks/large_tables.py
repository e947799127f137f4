"""26 tables x 100,000 rows x 16, one id per table and row: our fused row-wise Adagrad beside FuxiCTR's dense Adam.

    benchmarks/peers/setup_fuxictr.sh PEER_VENV
    python -m benchmarks.large_tables --peer-python PEER_VENV/bin/python

The same rows and the same DeepFM sizes. Ours reads its shards through the loader and the pipeline in every step; theirs is
given tensors that lie in memory. The optimizers differ on purpose: this is what each library does with tables of this size.
"""

import argparse
import sys

from .duel import Worker, alternate, print_summary, summary
from .record import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="interpreter of the peer environment")
    parser.add_argument("--num-tables", type=int, default=26)
    parser.add_argument("--rows-per-table", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--num-batches", type=int, default=32, help="different batches, gone through in turn")
    parser.add_argument("--zipf", type=float, default=1.05, help="exponent of the id distribution")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 64, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="per round and side")
    parser.add_argument("--warmup-steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", default="large_tables", help="name of the file under benchmarks/results")
    args = parser.parse_args()
    shared = []
    for option in ("num_tables", "rows_per_table", "dim", "batch_size", "num_batches", "zipf", "threads", "seed"):
        shared += ["--" + option.replace("_", "-"), str(getattr(args, option))]
    shared += ["--hidden", *map(str, args.hidden)]
    ours_command = [sys.executable, "-m", "benchmarks.ours_tables", *shared]
    peer_command = [args.peer_python, "-m", "benchmarks.peers.fuxictr_tables", *shared]
    with Worker("ours", ours_command) as ours, Worker("FuxiCTR", peer_command) as theirs:
        pairs = alternate(ours, theirs, rounds=args.rounds, steps=args.steps, warmup_steps=args.warmup_steps)
        result = summary(ours, theirs, pairs)
    print_summary(f"{args.num_tables} tables x {args.rows_per_table:,} rows x {args.dim}", result)
    print(write_result(args.result, result, packages=("torch", "torchrec", "fbgemm-gpu-cpu", "numpy")))


if __name__ == "__main__":
    main()
