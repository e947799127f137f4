"""One training step of an MLP, ours against plain modules: forward, loss, backward, Adam; batch 4096, 100-400-400-400-1,
batch norm, ReLU, dropout 0.2. The step of the published Frappe settings without its embeddings.

The ways take turns, one step each, so that a slow second hits all of them; ratios are taken round by round. `products` runs
the step's matrix products alone, at the speed this machine gives them: the limit for anything that keeps their number.

    python -m benchmarks.mlp_step --rounds 60 [--compile] [--threads 2]

Writes benchmarks/results/mlp_step.json.
"""

import argparse
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchrec_models.layers.dropout import dropout
from torchrec_models.layers.mlp import MLP

from .record import write_result

BATCH_SIZE = 4096
IN_WIDTH = 100
HIDDEN_UNITS = (400, 400, 400)
WIDTHS = (IN_WIDTH, *HIDDEN_UNITS, 1)
GFLOP_PER_STEP = 3 * 2 * BATCH_SIZE * sum(i * o for i, o in pairwise(WIDTHS)) / 1e9
DROPOUT = 0.2
WARMUP_ROUNDS = 5

Step = Callable[[], object]


class ByteDropout(nn.Module):
    def forward(self, x_BC: Tensor) -> Tensor:
        return dropout(x_BC, DROPOUT, training=self.training)


def plain(*, drop: Callable[[], nn.Module] | None, norm: bool = True) -> nn.Sequential:
    """The MLP as one writes it down from torch's modules."""
    layers: list[nn.Module] = []
    width = IN_WIDTH
    for units in HIDDEN_UNITS:
        layers += [nn.Linear(width, units), *([nn.BatchNorm1d(units)] if norm else []), nn.ReLU(), *([drop()] if drop else [])]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 1))


def ours() -> MLP:
    return MLP(IN_WIDTH, HIDDEN_UNITS, batch_norm=True, dropout=DROPOUT, out_width=1)


def training(net: nn.Module, *, precision: torch.dtype = torch.float32) -> Step:
    """One training step; the input needs a gradient, as embeddings do."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    x_BC = torch.randn(BATCH_SIZE, IN_WIDTH, requires_grad=True)
    labels_B1 = torch.randint(2, (BATCH_SIZE, 1)).float()
    cast: Callable[[], AbstractContextManager[Any]]
    cast = nullcontext if precision == torch.float32 else lambda: torch.autocast("cpu", precision)

    def step() -> None:
        optimizer.zero_grad()
        x_BC.grad = None
        with cast():
            logits_B1 = net(x_BC)
        functional.binary_cross_entropy_with_logits(logits_B1.float(), labels_B1).backward()
        optimizer.step()

    return step


def products(precision: torch.dtype) -> Step:
    """The step's matrix products and nothing else: of every Linear the output, the input gradient, the weight gradient."""
    activations = [torch.randn(BATCH_SIZE, width, dtype=precision) for width in WIDTHS]
    weights = [torch.randn(o, i, dtype=precision) for i, o in pairwise(WIDTHS)]

    def step() -> None:
        for x_BI, y_BO, weight_OI in zip(activations, activations[1:], weights):
            torch.mm(x_BI, weight_OI.t())
            torch.mm(y_BO, weight_OI)
            torch.mm(y_BO.t(), x_BI)

    return step


def with_onednn(step: Step) -> Step:
    """float32 products by oneDNN in place of MKL; "medium" lets oneDNN round to bfloat16 where the processor has AMX."""

    def wrapped() -> None:
        torch.set_float32_matmul_precision("medium")
        step()
        torch.set_float32_matmul_precision("highest")

    return wrapped


def ways(*, compiled: bool) -> dict[str, Step]:
    """Name -> step. The first is what all others are compared with."""
    bf16 = torch.bfloat16
    steps = {
        "plain": training(plain(drop=lambda: nn.Dropout(DROPOUT))),
        "plain, byte masks": training(plain(drop=ByteDropout)),
        "ours": training(ours()),
        "ours, oneDNN": with_onednn(training(ours())),
        "plain without dropout": training(plain(drop=None)),
        "plain without dropout and norm": training(plain(drop=None, norm=False)),
        "products": products(torch.float32),
        "plain, bfloat16": training(plain(drop=lambda: nn.Dropout(DROPOUT)), precision=bf16),
        "ours, bfloat16": training(ours(), precision=bf16),
        "products, bfloat16": products(bf16),
    }
    if compiled:
        steps["plain, compiled"] = training(torch.compile(plain(drop=lambda: nn.Dropout(DROPOUT))))  # type: ignore[arg-type]
        steps["ours, compiled"] = training(torch.compile(ours()))  # type: ignore[arg-type]
    return steps


def copy_gib_per_second() -> float:
    """Memory read plus written by `copy_` on one activation: what a pass over it costs at least."""
    x, y = torch.randn(2, BATCH_SIZE, HIDDEN_UNITS[0])
    seconds = median(timed(lambda: y.copy_(x)) for _ in range(50))
    return 2 * x.nbytes / seconds / 2**30


def timed(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def race(steps: dict[str, Step], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of every step of every way; the warm-up rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARMUP_ROUNDS + rounds):
        for name, step in steps.items():
            elapsed = timed(step)
            if number >= WARMUP_ROUNDS:
                seconds[name].append(elapsed)
    return seconds


def compare(seconds: dict[str, list[float]], *, first: str) -> dict[str, dict[str, Any]]:
    """Medians, and how many times as fast as `first`, round by round. Prints the table."""
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'':32} {'median ms':>10} {'best ms':>8}   times as fast as {first!r} (quartiles)")
    for name, times in seconds.items():
        ratios = [base / own for base, own in zip(seconds[first], times)]
        low, _, high = quantiles(ratios, n=4)
        row = {"ms_median": median(times) * 1e3, "ms_min": min(times) * 1e3, "speedup_median": median(ratios)}
        rows[name] = {**row, "speedup_quartiles": [low, high]}
        print(f"{name:32} {row['ms_median']:10.1f} {row['ms_min']:8.1f} {row['speedup_median']:8.2f} ({low:.2f} to {high:.2f})")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also both under torch.compile; needs a C++ compiler and a minute")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    load_before = os.getloadavg()[0]
    seconds = race(ways(compiled=args.compile), rounds=args.rounds)
    rows = compare(seconds, first="plain")
    shares = {
        name: median(limit / own for limit, own in zip(seconds[products_alone], seconds[name]))
        for name, products_alone in (("ours", "products"), ("ours, bfloat16", "products, bfloat16"))
    }
    print("matrix products, share of the step: " + "; ".join(f"{name}: {share:.0%}" for name, share in shares.items()))
    result = {
        "threads": args.threads,
        "rounds": args.rounds,
        "batch_size": BATCH_SIZE,
        "load_average_before": load_before,
        "gflop_per_step": GFLOP_PER_STEP,
        "products_gflop_per_second": {name: GFLOP_PER_STEP / median(seconds[name]) for name in ("products", "products, bfloat16")},
        "copy_gib_per_second": copy_gib_per_second(),
        "share_of_products": shares,
        "ways": rows,
    }
    print(f"written: {write_result('mlp_step', result, packages=('torch',)).name}")


if __name__ == "__main__":
    main()
