"""A CTR competition from raw files to submission.csv, by the commands of a user: benchmarks/results/competition.json.

    python -m benchmarks.competition /tmp/competition --train-rows 10_700_000 --test-rows 15_300_000 --drop-rows

Steps: raw training rows are made (2 % of them to validate on), prepared, trained on for one epoch and evaluated; test rows are
made, and scored straight from raw files; the submission is judged by the answers that its maker kept. Each command is a process of
its own; its time, the CPU time and the peak of resident memory of it and the processes below it are recorded. A step that is done
is not done again: started again, the run goes on. Disk: 2 kB per raw row and 0.8 kB per prepared row; with --drop-rows raw rows
are deleted when they have been used.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from benchmarks.record import ROOT, write_result
from torchrec_models import metrics

CONFIG = ROOT / "configs" / "ctr" / "dcnv2.yaml"
ROWS_PER_FILE, VALID_SHARE = 990_000, 0.02
_SAMPLE_SECONDS = 0.2


def _resident_bytes(process: int) -> int:
    """Of a process and all below it; 0 where it has ended."""
    try:
        own = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
        below = [child for path in Path(f"/proc/{process}/task").glob("*/children") for child in path.read_text().split()]
    except (OSError, IndexError):
        return 0
    return own + sum(_resident_bytes(int(child)) for child in below)


def run(command: list[str], log: Path) -> dict:
    """A command to its end: seconds, CPU seconds, peak memory.

    Raises:
        RuntimeError: if it fails; the log says why.
    """
    busy_before, start = os.getloadavg()[0], time.perf_counter()
    used_before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("a") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        peak, ended = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(_SAMPLE_SECONDS):
                peak = max(peak, _resident_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        ended.set()
        watcher.join()
    if code:
        raise RuntimeError(f"{' '.join(command)} failed with {code}; see {log}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime - used_before.ru_utime - used_before.ru_stime, 1),
        "peak_rss_mib": round(peak / 2**20),
        "load_average_before_and_after": [round(busy_before, 2), round(os.getloadavg()[0], 2)],
    }


class Competition:
    """The steps, in order; what is done is kept in `steps.json`."""

    def __init__(
        self, folder: Path, *, train_rows: int, valid_rows: int, test_rows: int, drop_rows: bool, overrides: list[str]
    ) -> None:
        self.folder, self.raw, self.run_folder = folder, folder / "raw", folder / "run"
        self.train_rows, self.valid_rows = train_rows - valid_rows, valid_rows
        self.test_rows, self.drop_rows = test_rows, drop_rows
        self.submission = folder / "submission.csv"
        self.overrides = [
            f"data.train={self.raw}/train-*.parquet",
            f"data.valid={self.raw}/valid-*.parquet",
            f"data.cache={folder}/cache",
            f"run={self.run_folder}",
            *overrides,
        ]
        self.done = folder / "steps.json"
        self.steps: dict[str, dict] = json.loads(self.done.read_text()) if self.done.exists() else {}

    def commands(self) -> Iterator[tuple[str, int, list[str]]]:
        """Name, rows that pass through, and command of each step."""
        trm = [sys.executable, "-m", "torchrec_models.pipelines.cli"]
        make = [sys.executable, "-m", "benchmarks.data.make_ctr", str(self.raw), f"--rows-per-file={ROWS_PER_FILE}", "--workers=2"]
        labelled = self.train_rows + self.valid_rows
        yield "make train", labelled, [*make, f"--rows={self.train_rows}", f"--valid-rows={self.valid_rows}"]
        yield "prepare", labelled, [*trm, "prepare", str(CONFIG), *self.overrides]
        yield "train", self.train_rows, [*trm, "train", str(CONFIG), *self.overrides]
        yield "evaluate", self.valid_rows, [*trm, "evaluate", str(self.run_folder), "--split", "valid"]
        yield "make test", self.test_rows, [*make, f"--test-rows={self.test_rows}"]
        inputs = [f"{self.raw}/test-*.parquet", "--row-id", "ID", "--out", str(self.submission)]
        yield "predict", self.test_rows, [*trm, "predict", str(self.run_folder), *inputs]

    def step(self, name: str, num_rows: int, command: list[str]) -> None:
        found = self.steps.setdefault(name, {})
        if "seconds" in found:
            return
        found["started"] = found.get("started", 0) + 1
        self._keep()
        print(f"{name}: {num_rows:,} rows", file=sys.stderr)
        found |= run(command, self.folder / f"{name.replace(' ', '_')}.log")
        found |= {"rows": num_rows, "rows_per_second": round(num_rows / found["seconds"])}
        if name == "prepare":
            found["cache_bytes"] = sum(path.stat().st_size for path in (self.folder / "cache").rglob("*") if path.is_file())
        self._keep()
        print(f"{name}: {json.dumps(found)}", file=sys.stderr)
        used = {"prepare": ("train", "valid"), "predict": ("test",)}.get(name, ())
        for path in [p for split in used for p in self.raw.glob(f"{split}-*.parquet")] if self.drop_rows else []:
            path.unlink()

    def judge(self) -> dict:
        """AUC of the submission, and of who knows the rows' true probabilities."""
        given = pa.csv.open_csv(self.submission)
        assert given.schema.names == ["ID", "clicked"], given.schema.names
        ids, scores = zip(*((batch.column(0), batch.column(1).to_numpy()) for batch in given))
        truth = pq.read_table(self.raw / "test_truth")
        if not pa.chunked_array(ids).equals(truth["ID"]):
            raise RuntimeError("the submission's rows are not those of the test files, in their order")
        labels = torch.from_numpy(truth["clicked"].to_numpy().astype(np.float32))
        auc = metrics.auc(labels, torch.from_numpy(np.concatenate(scores)))
        return {
            "rows": len(labels),
            "label_rate": float(labels.mean()),
            "auc": auc,
            "bayes_auc": metrics.auc(labels, torch.from_numpy(truth["probability"].to_numpy())),
            "constant_auc": 0.5,
            "submission_bytes": self.submission.stat().st_size,
        }

    def _keep(self) -> None:
        partial = self.done.with_suffix(".tmp")
        partial.write_text(json.dumps(self.steps, indent=1))
        partial.rename(self.done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train-rows", type=int, default=10_700_000, help="labelled rows, those to validate on counted in")
    parser.add_argument("--valid-rows", type=int, help=f"of them, to validate on (default: {VALID_SHARE:.0%})")
    parser.add_argument("--test-rows", type=int, default=15_300_000)
    parser.add_argument("--drop-rows", action="store_true", help="delete raw rows when they have been used")
    parser.add_argument("--name", default="competition", help="of the result file")
    parser.add_argument("--note", default="", help="what to know of the machine at that hour")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    competition = Competition(
        args.folder.resolve(),
        train_rows=args.train_rows,
        valid_rows=round(VALID_SHARE * args.train_rows) if args.valid_rows is None else args.valid_rows,
        test_rows=args.test_rows,
        drop_rows=args.drop_rows,
        overrides=args.overrides,
    )
    for name, num_rows, command in competition.commands():
        competition.step(name, num_rows, command)
    result = {"note": args.note, "steps": competition.steps, "submission": competition.judge()}
    print(json.dumps(result["submission"], indent=1))
    print(f"wrote {write_result(args.name, result, packages=('torch', 'torchrec', 'pyarrow', 'numpy'))}")


if __name__ == "__main__":
    main()
