"""How fast raw Parquet becomes a cache, and in how much memory: benchmarks/results/prepare.json.

    python -m benchmarks.prepare /tmp/prepare-data --rows 300000 1000000 3000000

The rows: the CTR layout of make_ctr.py (5 categoricals, 76 numbers, a comma-separated text of 500 ids in the mean, a label). Each
measurement is a process of its own, so that its peak of resident memory is its own; decoding alone, one thread, is the limit.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.data import make_ctr
from benchmarks.record import write_result

from .loader import ctr

ROWS_PER_FILE = 300_000
ID_SETTINGS: dict[str, dict] = {
    "vocabulary": {"by": "vocabulary"},  # of all columns; two passes
    "identity": {
        "by": "identity",
        "num_rows": make_ctr.NUM_SEQUENCE_IDS + 1,
    },  # of the sequence, whose ids are rows of a table already
}


def make_rows(folder: Path, *, num_rows: int, linked: bool) -> list[Path]:
    """Files of 300,000 rows, made if they are not there; more rows are more files, or the same one again (`linked`)."""
    if linked:
        first = ctr.make_rows(folder, num_rows=ROWS_PER_FILE, mean_length=500)
        out = folder / f"raw-{num_rows}-linked"
        out.mkdir(exist_ok=True)
        paths = [out / f"train-{i:05d}.parquet" for i in range(-(-num_rows // ROWS_PER_FILE))]
        for path in paths:
            if not path.exists():
                path.hardlink_to(first.resolve())
        return paths
    out = folder / f"raw-{num_rows}-files"
    if not (out / "truth.json").exists():
        make_ctr.make(out, rows=num_rows, mean_length=500, rows_per_file=ROWS_PER_FILE, workers=len(os.sched_getaffinity(0)))
    return sorted(out.glob("train-*.parquet"))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare_rows(files: list[Path], cache: Path, ids: str, workers: int, max_len: int) -> dict:
    """One `trm prepare`; the packages are imported before the clock starts."""
    from torchrec_models.pipelines.config import parse
    from torchrec_models.pipelines.data.prepare import prepare

    raw = ctr.run_config(files[0], cache).model_dump(mode="json", exclude_defaults=True)
    raw["data"]["train"] = [str(path) for path in files]
    raw["features"][ctr.SEQUENCE] |= {"ids": ID_SETTINGS[ids], "max_len": max_len, "keep": "last"}
    config = parse(raw)
    before_mib = _peak_mib()
    start, start_cpu = time.perf_counter(), time.process_time()
    made = prepare(config, progress=False, workers=workers)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    num_rows = made.splits["train"].num_rows
    return {
        "rows_per_second": round(num_rows / seconds),
        "cpu_us_per_row": round(cpu_seconds / num_rows * 1e6, 2),
        "peak_rss_mib": round(_peak_mib()),
        "imported_rss_mib": round(before_mib),
        "cache_bytes": made.num_bytes,
    }


def decode_rows(files: list[Path], cache: Path, ids: str, workers: int, max_len: int) -> dict:
    """Decoding the columns that are used, and nothing else."""
    import pyarrow.parquet as pq

    columns = [*ctr.CATEGORICAL, *ctr.NUMERIC, ctr.SEQUENCE, ctr.LABEL]
    start, num_rows = time.perf_counter(), 0
    for path in files:
        file = pq.ParquetFile(path, read_dictionary=list(ctr.CATEGORICAL), pre_buffer=False)
        num_rows += sum(b.num_rows for b in file.iter_batches(13_000, columns=columns, use_threads=False))
    return {"rows_per_second": round(num_rows / (time.perf_counter() - start)), "peak_rss_mib": round(_peak_mib())}


def _work(pipe, work, arguments: tuple) -> None:
    pipe.send(work(*arguments))


def in_process(work, *arguments) -> dict:
    """`work(*arguments)` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, work, arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__}{arguments[2:]} died") from None
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the rows and the caches: 5 kB per row")
    parser.add_argument("--rows", type=int, nargs="+", default=[300_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ids", nargs="+", choices=ID_SETTINGS, default=list(ID_SETTINGS), help="of the sequence")
    parser.add_argument("--max-len", type=int, default=ctr.MAX_LEN, help="ids kept of the sequence; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--linked", action="store_true", help="rows beyond 300,000 are the same ones again; none has to be drawn")
    parser.add_argument("--drop-rows", action="store_true", help="delete the raw files of a size when it has been measured")
    parser.add_argument("--name", default="prepare", help="of the result file")
    args = parser.parse_args()
    busy_before = os.getloadavg()[0]
    results = []
    for num_rows in args.rows:
        files = make_rows(args.folder, num_rows=num_rows, linked=args.linked)
        cache = args.folder / "cache"
        asked = [("decode alone", decode_rows, "", 1)]
        asked += [("prepare", prepare_rows, ids, workers) for ids in args.ids for workers in args.workers]
        found: dict[tuple, list[dict]] = {}
        for number in range(args.rounds):
            for what, work, ids, workers in asked:
                shutil.rmtree(cache, ignore_errors=True)
                one = in_process(work, files, cache, ids, workers, args.max_len)
                found.setdefault((what, ids, workers), []).append(one)
                print(f"round {number + 1}  {num_rows:>11,} rows  {what} {ids} {workers}  {json.dumps(one)}", file=sys.stderr)
        shutil.rmtree(cache, ignore_errors=True)
        for (what, ids, workers), rounds in found.items():
            speeds = [one["rows_per_second"] for one in rounds]
            results.append(
                {
                    "what": what,
                    "rows": num_rows,
                    "ids_of_the_sequence": ids,
                    "workers": workers,
                    "rows_per_second_median": round(median(speeds)),
                    "rows_per_second": speeds,
                    "peak_rss_mib": max(one["peak_rss_mib"] for one in rounds),
                    **{k: rounds[-1][k] for k in ("cpu_us_per_row", "imported_rss_mib", "cache_bytes") if k in rounds[-1]},
                }
            )
        if args.drop_rows:
            shutil.rmtree(files[0].parent)
    loads = [round(busy_before, 2), round(os.getloadavg()[0], 2)]
    result = {
        "load_average_before_and_after": loads,
        "memory_budget_mib": 512,
        "max_len": args.max_len,
        "rows_repeat": args.linked,
        "results": results,
    }
    print(f"wrote {write_result(args.name, result, packages=('torch', 'pyarrow', 'numpy'))}")


if __name__ == "__main__":
    main()
