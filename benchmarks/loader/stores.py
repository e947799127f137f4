"""Two feature stores and a pair log: how fast batches come, beside pandas and beside a file in which everything is joined.

    python -m benchmarks.loader.stores FOLDER

3 files of a million pairs (ids as text) and two stores of 100,000 rows x (32 numbers, 8 categories) are made in the folder if they
are not there, and prepared. A batch: dense [B, 64], ids and lengths of 16 keys, labels. Contenders take turns. Then the time to the
next batch over an epoch, with a user of batches that needs none, and with one that takes 2 ms for each. Needs pandas (pip install
pandas), which nothing else here does. Writes benchmarks/results/feature_stores.json.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.data.make_pairs import SIDES, write_pairs
from benchmarks.record import write_result
from torchrec_models.pipelines.data import order
from torchrec_models.pipelines.data.loader import Loader
from torchrec_models.pipelines.data.shards import Cache

from . import ours
from .__main__ import drop_page_cache, turn_of

CONFIG = "configs/bids/dcnv2.yaml"
PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "numpy", "pyarrow", "pandas")
ROW_GROUP_ROWS = 100_000
TURN_ROWS = {"pandas": 60_000}
DEFAULT_TURN_ROWS = 1_000_000


def prepared(folder: Path) -> tuple[Cache, dict[str, Any]]:
    """The cache of all pairs as training rows, made anew by `trm prepare`; what that took."""
    overrides = [f"data.train={folder / 'pairs-*.parquet'}", "data.split=null", f"data.cache={folder / 'cache'}"]
    overrides += [f"data.stores.{name}.files={folder / f'{name}.parquet'}" for name in SIDES]
    command = [sys.executable, "-m", "torchrec_models.pipelines.cli", "prepare", CONFIG, "--force", *overrides]
    start = time.perf_counter()
    _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
    if status:
        raise SystemExit(f"trm prepare failed with status {os.waitstatus_to_exitcode(status)}")
    seconds = time.perf_counter() - start
    cache = Cache.open(folder / "cache")
    split = cache.split("train")
    return cache, {
        "num_pairs": split.num_rows,
        "seconds": seconds,
        "peak_memory_mib": usage.ru_maxrss / 2**10,
        "cache_bytes_per_pair": split.num_bytes / split.num_rows,
        "stores_mib": sum(entry.bytes for store in cache.stores for entry in store.files.values()) / 2**20,
    }


def pandas_loc(folder: Path, cache: Cache, *, batch_size: int) -> ours.Epoch:
    """What people write first: both stores as frames by id, `.loc` for the shuffled ids of each batch. Already encoded."""
    import pandas as pd

    frames, keys = {}, [f.name for f in cache.schema.categorical]
    for store in cache.stores:
        ids = pa.ipc.open_file(str(store.folder / "keys.arrow")).read_all()["key"].to_pylist()
        index = pd.Index(ids)
        frames[SIDES[store.name]] = (
            pd.DataFrame(store.store.dense[1:].numpy().copy(), index=index),
            pd.DataFrame(store.store.ids[1:].numpy().copy(), index=index),
        )
    pairs = pq.read_table(folder / "pairs-00.parquet").to_pandas()
    label = pairs["bid"].to_numpy(np.float32)
    columns = {key: pairs[key].to_numpy() for key in frames}

    def epoch() -> Iterator[int]:
        shuffled = np.random.default_rng(0).permutation(len(pairs))
        for start in range(0, len(pairs) - batch_size, batch_size):
            index = shuffled[start : start + batch_size]
            found = [(dense.loc[columns[key][index]], ids.loc[columns[key][index]]) for key, (dense, ids) in frames.items()]
            dense = torch.from_numpy(np.concatenate([d.to_numpy() for d, _ in found], axis=1))
            ids_BK = np.concatenate([i.to_numpy() for _, i in found], axis=1)
            yield _used(dense, ids_BK, keys, torch.from_numpy(label[index]))

    return epoch


def joined_file(folder: Path, cache: Cache, *, batch_size: int) -> ours.Epoch:
    """A Parquet file with every feature of every pair, encoded, as fixed-size lists; row group after row group, not shuffled."""
    path, keys = folder / "joined.parquet", [f.name for f in cache.schema.categorical]
    if not path.exists():
        split = cache.split("train")
        rows = split.read(0, 0, split.shards[0].num_rows)
        columns = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(part.contiguous().numpy().ravel()), part.shape[1])
            for name, part in (("dense", rows.dense), ("ids", rows.ids))
        }
        pq.write_table(pa.table(columns | {"label": rows.labels[:, 0].numpy()}), path, row_group_size=ROW_GROUP_ROWS)

    def epoch() -> Iterator[int]:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            flat = {name: table[name].combine_chunks().flatten().to_numpy() for name in ("dense", "ids")}
            dense, ids_BK = flat["dense"].reshape(table.num_rows, -1), flat["ids"].reshape(table.num_rows, -1)
            label = table["label"].to_numpy()
            for start in range(0, table.num_rows - batch_size + 1, batch_size):
                part = slice(start, start + batch_size)
                yield _used(torch.from_numpy(dense[part].copy()), ids_BK[part], keys, torch.from_numpy(label[part].copy()))

    return epoch


def _used(dense: torch.Tensor, ids_BK: np.ndarray, keys: list[str], label: torch.Tensor) -> int:
    num_rows = len(label)
    lengths = torch.ones(len(keys) * num_rows, dtype=torch.int32)
    sparse = KeyedJaggedTensor(keys, torch.from_numpy(ids_BK.T.copy()).flatten(), lengths=lengths, stride=num_rows)
    return num_rows if sparse.stride() == dense.shape[0] else 0


def speeds(folder: Path, cache: Cache, *, batch_size: int, num_rounds: int) -> list[dict[str, Any]]:
    def cached(gather: Any, dtype: torch.dtype, *, streamed: bool = False) -> ours.Epoch:
        return ours.from_cache(cache, batch_size=batch_size, gather=gather, id_dtype=dtype, streamed=streamed)

    epochs = {
        "ours, native gather, int32": cached("native", torch.int32),
        "ours, native gather, int64": cached("native", torch.int64),
        "ours, native, int32, streamed": cached("native", torch.int32, streamed=True),
        "ours, stock operators, int32": cached("stock", torch.int32),
        "joined Parquet file, not shuffled": joined_file(folder, cache, batch_size=batch_size),
        "pandas .loc per batch": pandas_loc(folder, cache, batch_size=batch_size),
    }
    turns = {name: turn_of(epoch) for name, epoch in epochs.items()}
    found: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(num_rounds):
        for name, turn in turns.items():
            num_batches = max(TURN_ROWS.get(name.split()[0], DEFAULT_TURN_ROWS) // batch_size, 8)
            found[name].append(1000 * turn(num_batches) / num_batches)
    rows = []
    for name, of_name in found.items():
        ms = median(of_name)
        row = {"contender": name, "batch_size": batch_size, "ms_per_batch": ms, "rounds_ms": of_name}
        rows.append(row | {"million_pairs_per_second": batch_size / ms / 1000})
        print(f"batch {batch_size:>5}  {name:36} {ms:8.3f} ms  {batch_size / ms / 1000:6.2f} M pairs/s")
    return rows


def waits(cache: Cache, *, batch_size: int, streamed: bool, work_seconds: float) -> dict[str, Any]:
    """Of two epochs: the first batch, from opening the cache on (from the disk, with checksums), the time to each of the others,
    and the longest of those at the border between the two."""
    whole_bytes = order.WHOLE_BYTES
    order.WHOLE_BYTES = 0 if streamed else whole_bytes
    drop_page_cache(cache)
    start = time.perf_counter()
    loader = Loader(Cache.open(cache.folder), "train", batch_size=batch_size, shuffle=True, id_dtype=torch.int32)
    batches = loader.epochs(range(2))
    next(batches)
    first_seconds, seconds = time.perf_counter() - start, []
    for _ in range(2 * loader.num_batches - 1):
        if work_seconds:
            time.sleep(work_seconds)
        start = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - start)
    order.WHOLE_BYTES = whole_bytes
    p50, p99, most = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.99, 1.0))
    way = {"batch_size": batch_size, "way": "streamed" if streamed else "kept in memory", "work_ms": 1000 * work_seconds}
    border = seconds[loader.num_batches - 3 : loader.num_batches + 3]
    first = {"first_batch_seconds": first_seconds, "most_at_epoch_border_ms": 1000 * max(border)}
    found = {"p50_ms": p50, "p99_ms": p99, "max_ms": most, "num_batches": len(seconds) + 1}
    print(f"{way}: {first}, then p50 {p50:.3f}, p99 {p99:.3f}, max {most:.2f} ms")
    return way | first | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=3_000_000)
    parser.add_argument("--rows", type=int, default=100_000, help="of each store")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not (args.folder / "pairs-02.parquet").exists():
        write_pairs(args.folder, num_rows=args.rows, num_pairs=args.pairs, num_chunks=3)
    cache, prepare = prepared(args.folder)
    print(prepare)
    result: dict[str, Any] = {"prepare": prepare, "speeds": [], "waits": []}
    for batch_size in (256, 4096):
        result["speeds"] += speeds(args.folder, cache, batch_size=batch_size, num_rounds=args.rounds)
        for streamed in (False, True):
            for work_seconds in (0.0, 0.002):
                result["waits"].append(waits(cache, batch_size=batch_size, streamed=streamed, work_seconds=work_seconds))
    write_result("feature_stores", result, packages=PACKAGES)


if __name__ == "__main__":
    main()
