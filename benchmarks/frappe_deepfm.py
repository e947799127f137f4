"""DeepFM on Frappe, our trainer beside FuxiCTR's: the same rows, batches, threads and recipe, alternating in one sitting.

    benchmarks/peers/setup_fuxictr.sh PEER_VENV
    python -m benchmarks.frappe_deepfm --peer-python PEER_VENV/bin/python --data ../shared/data/frappe_x1

Both sides hold their batches in memory; a step is zero_grad, forward, loss with whole-table L2, backward, clip, dense Adam.
"""

import argparse
import sys
from pathlib import Path

from .duel import Worker, alternate, print_summary, summary
from .record import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True, help="interpreter of the peer environment")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet, valid.parquet, test.parquet")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="per round and side")
    parser.add_argument("--warmup-steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2021)
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="ours")
    parser.add_argument("--result", default="frappe_deepfm_speed", help="name of the file under benchmarks/results")
    args = parser.parse_args()
    shared = ["--data", str(args.data), "--threads", str(args.threads), "--seed", str(args.seed)]
    ours_command = [sys.executable, "-m", "benchmarks.ours_frappe", *shared, "--precision", args.precision]
    ours_command += ["--compile"] if args.compile else []
    peer_command = [args.peer_python, "-m", "benchmarks.peers.fuxictr_deepfm", "--mode", "steps", *shared]
    with Worker("ours", ours_command) as ours, Worker("FuxiCTR", peer_command) as theirs:
        pairs = alternate(ours, theirs, rounds=args.rounds, steps=args.steps, warmup_steps=args.warmup_steps)
        result = summary(ours, theirs, pairs)
    print_summary("DeepFM on Frappe, training step", result)
    print(write_result(args.result, result, packages=("torch", "torchrec", "fbgemm-gpu-cpu", "numpy")))


if __name__ == "__main__":
    main()
