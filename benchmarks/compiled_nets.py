"""What torch.compile gains for the dense part of every net: one training step (forward, loss, backward, Adam), without the tables.

Ten fields of 16 as Frappe has them, a history of 50 events where a net reads one, two labels where it needs two; each net with its
default options. Eager and compiled steps take turns, ratios are taken round by round; compilation is timed apart.

    python -m benchmarks.compiled_nets [--nets deepfm dcnv3 ...] [--rounds 8] [--threads 2]

Writes rows of benchmarks/results/compiled_nets.json; a net that cannot be compiled gets a row that says why.
"""

import argparse
import copy
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor

from torchrec_models.losses import RankingLoss
from torchrec_models.net import Inputs, InputSpec, Net
from torchrec_models.ranking import NETS
from torchrec_models.schema import Feature, Schema, Table, Task

from .mlp_step import Step, race
from .record import merge_rows

NUM_FIELDS = 10
DIM = 16
LENGTH = 50
OPTIONS: dict[str, dict[str, Any]] = {
    "dare": {"encoder": {"shared_tables": True}},
    "dbmtl": {"bottom": {"name": "dnn"}, "relations": {"buy": ["click"]}},
    "esmm": {"funnel": ["click", "buy"], "net": {"name": "dnn"}},
    "mmoe": {"expert": {"name": "dnn"}},
    "ple": {"expert": {"name": "dnn"}},
    "shared_bottom": {"bottom": {"name": "dnn"}},
}
TWO_LABELS = {"dbmtl", "esmm", "mmoe", "ple", "shared_bottom"}
WITH_HISTORY = {"bst", "dare", "din", "feseq", "hstu", "recurrent", "sdim", "sim"}


def schema_for(name: str) -> Schema:
    tasks = (Task(name="click"), Task(name="buy")) if name in TWO_LABELS else (Task(name="click"),)
    dim = len(tasks) if name == "lr" else DIM
    features = [Feature(name=f"f{i}", kind="categorical", table=f"f{i}") for i in range(NUM_FIELDS)]
    if name in WITH_HISTORY:
        features.append(Feature(name="history", kind="sequence", table="f0", max_len=LENGTH))
    tables = tuple(Table(name=f"f{i}", num_rows=2, dim=dim) for i in range(NUM_FIELDS))
    return Schema(features=tuple(features), tables=tables, tasks=tasks)


def make_inputs(spec: InputSpec, num_rows: int, *, first_order: bool) -> Inputs:
    """Vectors as wide as trained ones, full and half-full histories."""
    first_BF = 0.05 * torch.randn(num_rows, (len(spec.fields) + len(spec.sequences)) * first_order)
    sequences: dict[str, tuple[Tensor, Tensor]] = {}
    for s in spec.sequences:
        mask_BL = torch.arange(s.max_len) < torch.randint(s.max_len // 2, s.max_len + 1, (num_rows, 1))
        values_BLE = (0.05 * torch.randn(num_rows, s.max_len, s.width) * mask_BL[:, :, None]).requires_grad_()
        sequences[s.name] = (values_BLE, mask_BL)
    fields_BC = (0.05 * torch.randn(num_rows, spec.fields_width)).requires_grad_()
    return Inputs(torch.empty(num_rows, 0), fields_BC, first_BF.requires_grad_(), sequences)


def training(net: Net, tasks: tuple[Task, ...], inputs: Inputs, *, compiled: bool) -> Step:
    criterion = RankingLoss(tasks, net.auxiliary_losses())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    labels_BT = torch.randint(2, (inputs.fields_BC.shape[0], len(tasks))).float()
    weights_BT = torch.ones_like(labels_BT)
    if compiled:
        net.compile(dynamic=False)

    def step() -> None:
        optimizer.zero_grad()
        criterion(net(inputs), labels_BT, weights_BT)[0].backward()
        optimizer.step()

    return step


def measure(name: str, *, rounds: int, num_rows: int) -> dict[str, Any]:
    schema = schema_for(name)
    spec, cls = InputSpec.from_schema(schema), NETS[name]
    config = cls.Config(**OPTIONS.get(name, {}))
    net = cls(spec, config)
    inputs = make_inputs(spec, num_rows, first_order=cls.wants_first_order(config))
    row: dict[str, Any] = {"model": name, "num_rows": num_rows, "num_parameters": sum(p.numel() for p in net.parameters())}
    if not row["num_parameters"]:
        return {**row, "why_not": "nothing to train in its dense part"}
    compiled = training(copy.deepcopy(net), schema.tasks, inputs, compiled=True)
    start = time.perf_counter()
    try:
        compiled()
    except Exception as error:  # whatever a compiler raises is the answer
        return {**row, "why_not": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    row["compile_seconds"] = round(time.perf_counter() - start, 1)
    seconds = race({"eager": training(net, schema.tasks, inputs, compiled=False), "compiled": compiled}, rounds=rounds)
    torch.compiler.reset()
    ratios = sorted(a / b for a, b in zip(seconds["eager"], seconds["compiled"]))
    return {
        **row,
        "eager_ms": round(median(seconds["eager"]) * 1e3, 2),
        "compiled_ms": round(median(seconds["compiled"]) * 1e3, 2),
        "speedup": round(median(ratios), 2),
        "speedup_range": [round(ratios[0], 2), round(ratios[-1], 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for name in args.nets:
        row = measure(name, rounds=args.rounds, num_rows=args.rows)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        merge_rows("compiled_nets", [{**row, "threads": args.threads}], packages=("torch",))


if __name__ == "__main__":
    main()
