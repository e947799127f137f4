"""The rows of the sequence benchmark, against loops over a generated log."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
NEGATIVES = {"train": 1, "valid": 2, "test": 3}
LENGTH, MAX_TRAIN_EVENTS = 4, 3


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """7 users who watched 3 .. 9 of 40 films, each film once; leave-last-out files, rows in no order. User -> films in time."""
    folder = tmp_path_factory.mktemp("log")
    random = np.random.default_rng(0)
    films = {100 + u: random.permutation(40)[: 3 + u].tolist() for u in range(7)}
    rows = {"train": [], "test": []}
    for user, watched in films.items():
        fixed = {"user": user, "gender": user % 2, "age": 1, "occupation": 2}
        for position, item in enumerate(watched):
            is_last = position == len(watched) - 1
            row = {**fixed, "item": item, "genre": item % 5, "position": 0 if is_last else position}
            rows["test" if is_last else "train"].append(row)
    for name, part in rows.items():
        pq.write_table(pa.Table.from_pylist([part[i] for i in random.permutation(len(part))]), folder / f"{name}.parquet")
    return folder, films


def make(source, out, seed=0):
    options = {"length": [LENGTH], "max-train-events": [MAX_TRAIN_EVENTS], "negatives": NEGATIVES.values(), "seed": [seed]}
    flags = [word for name, values in options.items() for word in (f"--{name}", *map(str, values))]
    command = [sys.executable, "-m", "benchmarks.data.ml1m_sequences", str(source), str(out), *flags]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_rows_by_loops(log, tmp_path):
    source, films = log
    said = make(source, tmp_path)
    for split, num_negatives in NEGATIVES.items():
        rows = pq.read_table(tmp_path / f"{split}.parquet").to_pylist()
        assert f"{split}: {len(rows)} rows" in said
        expected = []
        for user, watched in films.items():
            last = {"train": range(max(0, len(watched) - 2 - MAX_TRAIN_EVENTS), len(watched) - 2), "valid": [len(watched) - 2]}
            for position in last.get(split, [len(watched) - 1]):
                expected.append((user, watched[position], watched[max(0, position - LENGTH) : position]))
        groups = [rows[i : i + 1 + num_negatives] for i in range(0, len(rows), 1 + num_negatives)]
        assert [(g[0]["user"], g[0]["item"], g[0]["history"]) for g in groups] == expected
        for positive, *negatives in groups:
            assert positive["label"] == 1 and positive["weight"] == num_negatives == len(negatives)
            for row in negatives:
                assert row["label"] == 0 and row["weight"] == 1
                assert row["item"] not in films[row["user"]]
            for row in (positive, *negatives):
                assert row["genre"] == row["item"] % 5
                assert row["history"] == positive["history"] and row["history_genre"] == [item % 5 for item in row["history"]]


def test_the_same_seed_gives_the_same_rows(log, tmp_path):
    source, _ = log
    tables = []
    for i, seed in enumerate((0, 0, 1)):
        make(source, tmp_path / str(i), seed)
        tables.append(pq.read_table(tmp_path / str(i) / "test.parquet"))
    assert tables[0] == tables[1] and tables[0] != tables[2]
