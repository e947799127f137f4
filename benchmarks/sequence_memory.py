"""Peak memory of one training step of the sequence nets by length of the history, at batch 1024.

    python -m benchmarks.sequence_memory            # every workload; minutes on a laptop
    python -m benchmarks.sequence_memory --models feseq --lengths 150 500

Three numbers each, of a whole step (lookup, net, loss, backward, Adam) on histories that are all full:

- `saved_bytes`: storages that autograd keeps between forward and backward (`saved_tensors_hooks`, each storage once, parameters
  too; what a checkpoint holds as its input passes by these hooks, and is in the peak only).
- `peak_bytes`: most bytes of live tensors at any time: parameters, gradients, optimizer, inputs, activations, temporaries and what
  is recomputed (torch's `MemTracker`). What a kernel allocates inside itself is in no such count.
- `cuda_bytes`: `max_memory_allocated` at the full batch, where there is a GPU.

On CPUs a step of two small batches is counted and the line through them is drawn to batch 1024; a third batch checks that it is a
line. Tables here have 1,000 rows, so a model's real tables, gradients and optimizer state come on top.

`naive` is the published form: scores of attention kept as float32 (torch's unfused attention), nothing recomputed. The authors'
code also keeps a mask per head, [B H, T, T] bool, which is not counted here. Dropout is 0: CPUs have no fused attention with
dropout (with it the CPU keeps [B, H, T, T]; GPUs have one, which keeps a seed).

What attention keeps besides query, key, value and its output: on CPUs (`flash_attention` for CPU) and on GPUs in float32
(`efficient_attention`) or bfloat16 (`flash_attention`) one float per query and head. FESeq's and HSTU's causal masks need no tensor
in any of them; BST's mask [B, 1, 1, T] is read with stride 0.
"""

import argparse
import gc
import json
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.record import RESULTS, write_result
from torchrec_models.batch import Batch
from torchrec_models.model import TrainTask, build
from torchrec_models.pipelines.data.rows import BatchBuilder, Rows, list_valued, single_valued
from torchrec_models.schema import Feature, Schema, Table, Task

BATCH, T4_BYTES = 1024, 14e9
LENGTHS = (100, 150, 500, 1000)
SMALL_TOKENS = 3000  # of the first small batch: enough that activations, not the optimizer's temporaries, make the peak
HEAD = {"name": "dnn", "hidden_units": [1024, 512, 256], "activation": "leaky_relu"}
UNDROPPED = {"interaction_dropout": 0.0, "attention_dropout": 0.0}


def make_schema(max_len: int, *, num_sequences: int, num_context: int, dim: int, decoupled: bool = False) -> Schema:
    """Parallel sequences with their candidates, time intervals, other fields; all of width `dim`."""
    features, tables = [], []
    for i in range(num_sequences):
        for role in ("", "_attention")[: 1 + decoupled]:
            table = f"item{i}{role}"
            features.append(Feature(name=table, kind="categorical", table=table))
            features.append(Feature(name=f"{table}_history", kind="sequence", table=table, max_len=max_len))
            tables.append(table)
    if not decoupled:
        features.append(Feature(name="interval_history", kind="sequence", table="interval", max_len=max_len))
        tables.append("interval")
    for i in range(num_context):
        features.append(Feature(name=f"context{i}", kind="categorical", table=f"context{i}"))
        tables.append(f"context{i}")
    return Schema(
        features=tuple(features), tables=tuple(Table(name=t, num_rows=1000, dim=dim) for t in tables), tasks=(Task(name="click"),)
    )


def feseq(num_sequences: int, num_context: int, **options: Any) -> dict[str, Any]:
    history = {"sequences": [f"item{i}_history" for i in range(num_sequences)], "intervals": ["interval_history"]}
    encoder = {**UNDROPPED, **options.pop("encoder", {})}
    return {
        "name": "feseq",
        "schema": {"num_sequences": num_sequences, "num_context": num_context, "dim": 16},
        "options": {"histories": [history], "encoder": encoder, "head": HEAD, **options},
    }


def dare(dim: int, **options: Any) -> dict[str, Any]:
    history = {
        "sequences": ["item0_history", "item1_history"],
        "attention": ["item0_attention_history", "item1_attention_history"],
    }
    return {
        "name": "dare",
        "schema": {"num_sequences": 2, "num_context": 2, "dim": dim, "decoupled": True},
        "options": {"histories": [history], **options},
    }


# FESeq with 3 sequences and 4 other fields is a user's model; 14 and 9 is the published Ele.me setting
WORKLOADS: dict[str, dict[str, Any]] = {
    "feseq_naive": {**feseq(3, 4, encoder={"recompute": False}), "naive": True},
    "feseq_kept": feseq(3, 4, encoder={"recompute": False}),
    "feseq": feseq(3, 4),
    "feseq_rows_per_pass_128": feseq(3, 4, rows_per_pass=128),
    "feseq_eleme_naive": {**feseq(14, 9, encoder={"recompute": False}), "naive": True},
    "feseq_eleme": feseq(14, 9),
    "feseq_eleme_rows_per_pass_128": feseq(14, 9, rows_per_pass=128),
    "dare_16": dare(16),
    "dare_128": dare(128),
    "dare_128_rows_per_pass_128": dare(128, rows_per_pass=128),
}


def make_batch(schema: Schema, num_rows: int) -> Batch:
    """Random ids; every history is full."""
    torch.manual_seed(0)
    lists = []
    for feature in list_valued(schema):
        ids = torch.randint(1000, (num_rows * feature.max_len,), dtype=torch.int32)
        lists.append((ids, torch.arange(num_rows + 1) * feature.max_len))
    ids = torch.randint(1000, (num_rows, len(single_valued(schema))), dtype=torch.int32)
    labels = torch.randint(2, (num_rows, 1)).float()
    rows = Rows(torch.empty(num_rows, 0), ids, tuple(lists), labels, torch.ones(num_rows, 1))
    return BatchBuilder(schema)(rows, torch.arange(num_rows))


@contextmanager
def counting_saved(found: dict[int, int]) -> Iterator[None]:
    """Fills `found` with the bytes of each storage that is saved for backward, by its address; all are alive till backward."""

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operators return, until they are freed.

    (`torch.distributed._tools.mem_tracker` does it by module, and stumbles over TorchRec's JaggedTensor.)
    """

    def __init__(self, *existing: Tensor) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.total = self.peak = 0
        self._see(existing)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._see(t for t in tree_leaves(out) if isinstance(t, Tensor))
        return out

    def _see(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if id(storage) not in self.live:
                self.live[id(storage)] = storage.nbytes()
                self.total += storage.nbytes()
                weakref.finalize(storage, self._forget, id(storage))
        self.peak = max(self.peak, self.total)

    def _forget(self, key: int) -> None:
        self.total -= self.live.pop(key)


def step(task: TrainTask, optimizer: torch.optim.Optimizer, batch: Batch) -> int:
    """One step; returns the bytes that were saved for backward."""
    saved: dict[int, int] = {}
    with counting_saved(saved):
        loss = task(batch)[0]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return sum(saved.values())


def count(workload: dict[str, Any], length: int, num_rows: int) -> tuple[int, int]:
    """(saved, peak) bytes of a step on the CPU; the optimizer's state is there already."""
    schema = make_schema(length, **workload["schema"])
    task = build(schema, workload["name"], workload["options"], whole_tables=True)
    optimizer = torch.optim.Adam(task.parameters())
    batch = make_batch(schema, num_rows)
    with sdpa_kernel(SDPBackend.MATH) if workload.get("naive") else nullcontext():
        step(task, optimizer, make_batch(schema, 2))
        state = [t for of_one in optimizer.state.values() for t in of_one.values()]
        inputs = (batch.sparse.values(), batch.sequence.values(), batch.labels)
        live = LiveBytes(*task.parameters(), *task.buffers(), *state, *inputs)
        with live:
            saved = step(task, optimizer, batch)
    gc.collect()
    return saved, live.peak


def extrapolated(workload: dict[str, Any], length: int) -> dict[str, Any]:
    """Bytes at `BATCH`, from two small batches; `off` is how far a third one lies from their line.

    With `rows_per_pass` the passes shrink with the batch: as many of them as `BATCH` has.
    """
    passes = BATCH // workload["options"].get("rows_per_pass", BATCH)
    base = max(2, SMALL_TOKENS // length // (1 if passes == 1 else 2)) * passes
    results = []
    for num_rows in (base, base * 3 // 2, base * 2):
        options = {**workload["options"], **({"rows_per_pass": num_rows // passes} if passes > 1 else {})}
        results.append((num_rows, *count({**workload, "options": options}, length, num_rows)))
    (rows0, *first), (rows1, *second), (rows2, *third) = results
    out: dict[str, Any] = {}
    for name, a, b, c in zip(("saved_bytes", "peak_bytes"), first, second, third):
        slope = (b - a) / (rows1 - rows0)
        out[name] = round(a + slope * (BATCH - rows0))
        out[f"{name}_off"] = round(abs(a + slope * (rows2 - rows0) - c) / c, 5)
    return out


def on_cuda(workload: dict[str, Any], length: int) -> dict[str, Any]:
    """Measured at `BATCH`; None where it does not fit."""
    device = torch.device("cuda")
    schema = make_schema(length, **workload["schema"])
    task = build(schema, workload["name"], workload["options"], device=device, whole_tables=True)
    optimizer = torch.optim.Adam(task.parameters())
    batch = make_batch(schema, BATCH).to(device)
    try:
        with sdpa_kernel(SDPBackend.MATH) if workload.get("naive") else nullcontext():
            step(task, optimizer, batch)
            torch.cuda.reset_peak_memory_stats()
            step(task, optimizer, batch)
        return {"cuda_bytes": torch.cuda.max_memory_allocated()}
    except torch.cuda.OutOfMemoryError:
        return {"cuda_bytes": None}
    finally:
        del task, optimizer, batch
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(WORKLOADS), choices=WORKLOADS, metavar="MODEL")
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    rows = []
    print(f"{'model':32}{'length':>7}{'saved GB':>10}{'peak GB':>10}{'off':>9}{'CUDA GB':>10}  fits 14 GB")
    for model in args.models:
        for length in args.lengths:
            row = {"model": model, "length": length, **extrapolated(WORKLOADS[model], length)}
            if torch.cuda.is_available():
                row |= on_cuda(WORKLOADS[model], length)
            rows.append(row)
            cuda = row.get("cuda_bytes")
            off = max(row["saved_bytes_off"], row["peak_bytes_off"])
            print(
                f"{model:32}{length:7}{row['saved_bytes'] / 1e9:10.2f}{row['peak_bytes'] / 1e9:10.2f}{off:9.2%}"
                f"{'-' if cuda is None else f'{cuda / 1e9:.2f}':>10}  {'yes' if row['peak_bytes'] < T4_BYTES else 'no'}",
                flush=True,
            )
    if not args.no_write:
        found = {(row["model"], row["length"]) for row in rows}
        path = RESULTS / "sequence_memory.json"
        before = json.loads(path.read_text())["rows"] if path.exists() else []
        rows = [row for row in before if (row["model"], row["length"]) not in found] + rows
        print(write_result("sequence_memory", {"batch_size": BATCH, "rows": rows}, packages=("torch", "torchrec")))


if __name__ == "__main__":
    main()
