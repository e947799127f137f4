"""How fast batches come, ours and others', turn and turn about on the same rows: benchmarks/results/loader.json.

    python -m benchmarks.loader /tmp/loader-data --peer-python PEER_VENV/bin/python

The rows: the CTR layout (5 categoricals, 76 numbers, a sequence of 500 ids in the mean, a label). Rows and the cache are made in
the folder if they are not there (a minute for 300,000 rows). A batch: dense [B, 76], ids and lengths of 5 + 1 keys, labels.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.duel import Worker
from benchmarks.record import write_result
from torchrec_models.pipelines.data.shards import Cache

from . import naive, ours
from .ctr import CATEGORICAL, LABEL, NUMERIC, SEQUENCE, make_rows, prepared

LIMIT = "memory copy"
WARM_BATCHES = 6  # more than any contender reads ahead
NOT_RUN = {
    "TorchEasyRec": "its parser needs pyfg and graphlearn, whose wheels are in no registry; the `pyfg` on PyPI is something else",
}

Turn = Callable[[int], float]  # number of batches -> seconds


def turn_of(epoch: ours.Epoch) -> Turn:
    """Fresh epochs, timed when as many batches were used as may have been read ahead."""

    def turn(num_batches: int) -> float:
        batches: Iterator[int] = itertools.chain.from_iterable(epoch() for _ in itertools.count())
        for _ in range(WARM_BATCHES):
            next(batches)
        start = time.perf_counter()
        for _ in range(num_batches):
            next(batches)
        return time.perf_counter() - start

    return turn


def write_tokens(cache: Cache, path: Path) -> Path:
    """The cache's rows as one Parquet file for the peers: coded ids, the sequence as a list."""
    if not path.exists():
        split = cache.split("train")
        rows = split.read(0, 0, split.shards[0].num_rows)
        dense = rows.dense.t().contiguous().numpy()
        columns = {name: pa.array(dense[i]) for i, name in enumerate(NUMERIC)}
        columns |= {name: pa.array(rows.ids[:, i].contiguous().numpy()) for i, name in enumerate(CATEGORICAL)}
        values, offsets = rows.lists[0]
        columns[SEQUENCE] = pa.ListArray.from_arrays(pa.array(offsets.numpy().astype("int32")), pa.array(values.numpy()))
        columns[LABEL] = pa.array(rows.labels[:, 0].numpy())
        pq.write_table(pa.table(columns), path, row_group_size=30_000)
    return path


def drop_page_cache(cache: Cache) -> None:
    """Asks the system to forget the cache's pages: of these files only, so no other process suffers."""
    for path, _ in cache.files():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cold_rows_per_second(cache: Cache, num_rounds: int) -> list[float]:
    """One epoch at batch 4096 each, from the disk."""
    epoch = ours.from_cache(cache, batch_size=4096, gather="auto", id_dtype=torch.int32)
    speeds = []
    for _ in range(num_rounds):
        drop_page_cache(cache)
        start = time.perf_counter()
        speeds.append(sum(epoch()) / (time.perf_counter() - start))
    return speeds


def contenders(cache: Cache, raw: Path, dataset: naive.RowDataset, batch_size: int) -> dict[str, Turn]:
    row_bytes = int(cache.num_bytes / cache.split("train").num_rows)

    def cached(gather: str, id_dtype: torch.dtype, *, streamed: bool = True) -> Turn:
        return turn_of(ours.from_cache(cache, batch_size=batch_size, gather=gather, id_dtype=id_dtype, streamed=streamed))

    return {
        LIMIT: turn_of(ours.memory_copy(row_bytes, batch_size=batch_size)),
        "ours, native gather, int32": cached("native", torch.int32),
        "ours, native gather, int64": cached("native", torch.int64),
        "ours, stock operators, int32": cached("stock", torch.int32),
        "ours, stock operators, int64": cached("stock", torch.int64),
        "ours, native, int32, kept in memory": cached("native", torch.int32, streamed=False),
        "ours, raw Parquet, no cache": turn_of(ours.from_parquet(raw, cache, batch_size=batch_size)),
        "naive Dataset of rows, DataLoader, 2 workers": turn_of(lambda: naive.batches(dataset, batch_size=batch_size)),
    }


SLOW = ("naive", "ours, raw", "huggingface", "fuxictr")


def num_batches_of(name: str, batch_size: int) -> int:
    """A turn takes a second or so: enough rows for the fast, fewer for the slow."""
    rows = 30_000 if name.startswith(SLOW) else 250_000
    return max(rows // batch_size, 4)


def of_peer(worker: Worker, num_batches: int) -> float:
    return worker.run(num_batches)["seconds"]


def measure(turns: dict[str, Turn], *, batch_size: int, num_rounds: int) -> list[dict]:
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(num_rounds):
        for name, turn in turns.items():
            num_batches = num_batches_of(name, batch_size)
            speeds[name].append(num_batches * batch_size / turn(num_batches))
            print(f"round {number + 1}  batch {batch_size:>5}  {name:<48} {speeds[name][-1]:>12,.0f} rows/s", file=sys.stderr)
    return [
        {
            "contender": name,
            "batch_size": batch_size,
            "rows_per_second_median": round(median(of_name)),
            "rows_per_second": [round(s) for s in of_name],
            "batches_per_second_median": round(median(of_name) / batch_size, 1),
            "share_of_memory_copy_median": round(median(s / limit for s, limit in zip(of_name, speeds[LIMIT])), 4),
            "times_naive_median": round(median(s / other for s, other in zip(of_name, naive_speeds)), 2),
        }
        for naive_speeds in [next(s for name, s in speeds.items() if name.startswith("naive"))]
        for name, of_name in speeds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the rows and the cache; 3 GB")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--mean-length", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 4096])
    parser.add_argument(
        "--peer-python", type=Path, help="of the environment made by benchmarks/peers/setup_fuxictr.sh; default: no peers"
    )
    parser.add_argument("--name", default="loader", help="of the result file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    raw = make_rows(args.folder, num_rows=args.rows, mean_length=args.mean_length)
    cache = prepared(raw)
    tokens = write_tokens(cache, raw.parent / "tokens.parquet")
    dataset = naive.RowDataset(raw)
    busy_before = os.getloadavg()[0]
    rows: list[dict] = []
    versions: dict[str, str] = {}
    not_run = dict(NOT_RUN)
    for batch_size in args.batch_sizes:
        turns = contenders(cache, raw, dataset, batch_size)
        with ExitStack() as stack:
            if args.peer_python:
                for peer in ("huggingface", "fuxictr"):
                    command = [str(args.peer_python), "-m", "benchmarks.peers.loaders", peer, str(tokens.resolve())]
                    worker = stack.enter_context(Worker(peer, [*command, "--batch-size", str(batch_size)]))
                    turns[peer] = partial(of_peer, worker)
                    versions |= worker.about["versions"]
            rows += measure(turns, batch_size=batch_size, num_rounds=args.rounds)
    if not args.peer_python:
        not_run |= dict.fromkeys(("huggingface", "fuxictr"), "no --peer-python was given")
    cold = cold_rows_per_second(cache, args.rounds)
    result = {
        "rows": args.rows,
        "mean_length": args.mean_length,
        "bytes_per_row": round(cache.num_bytes / args.rows),
        "load_average_before_and_after": [round(busy_before, 2), round(os.getloadavg()[0], 2)],
        "peer_versions": versions,
        "not_run": not_run,
        "cold_page_cache_rows_per_second": {"batch_size": 4096, "median": round(median(cold)), "all": [round(s) for s in cold]},
        "results": rows,
    }
    path = write_result(args.name, result, packages=("torch", "torchrec", "fbgemm-gpu-cpu", "pyarrow", "numpy"))
    print(f"\n{'batch':>6}  {'contender':<48} {'rows/s':>11} {'it/s':>8} {'of memcpy':>9} {'x naive':>8}")
    for r in sorted(rows, key=lambda r: (r["batch_size"], -r["rows_per_second_median"])):
        print(
            f"{r['batch_size']:>6}  {r['contender']:<48} {r['rows_per_second_median']:>11,} "
            f"{r['batches_per_second_median']:>8,.0f} {r['share_of_memory_copy_median']:>9.1%} {r['times_naive_median']:>8.1f}"
        )
    print(f"  4096  from the disk, page cache dropped: {median(cold):,.0f} rows/s\nwrote {path}")


if __name__ == "__main__":
    main()
