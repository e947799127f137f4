"""A click log in the layout of a CTR competition, at any size, drawn from a known model, so that the best possible AUC is known.

    python -m benchmarks.data.make_ctr data/ctr --rows 300000 --test-rows 100000
    python -m benchmarks.data.make_ctr data/ctr --rows 10700000 --test-rows 15300000 --rows-per-file 1000000 --workers 2

Writes train-*.parquet of 119 columns (5 categorical and 112 numeric ones, `seq`, `clicked`), test-*.parquet (`ID` instead of
`clicked`), test_truth/*.parquet (ID, clicked, probability) and truth.json. `seq` is text: ids with commas between them. Memory
holds one row group per worker. Equal arguments give equal rows, whatever the number of workers.

Truth: logit = bias + gender + age_group + inventory_id + hour + gender x inventory_id
             + sum over 20 numeric columns of w * tanh(x) + RECENT_WEIGHT * mean over the last 20 ids of the id's weight;
a missing value adds nothing; the bias is solved for so that LABEL_RATE of the rows are clicked.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CATEGORICALS = {"gender": 2, "age_group": 8, "inventory_id": 18, "day_of_week": 7, "hour": 24}
GROUPS = {"l_feat": 27, "feat_e": 10, "feat_d": 6, "feat_c": 8, "feat_b": 6, "feat_a": 18, "history_a": 7, "history_b": 30}
NUMERIC = tuple(f"{group}_{i + 1}" for group, count in GROUPS.items() for i in range(count))
USED_NUMERIC = NUMERIC[:76]  # what the benchmarks' models read
SKEWED = slice(75, 112)  # the history columns: long-tailed amounts, 0 and up
INFORMATIVE = (*range(0, 20, 2), *range(27, 47, 2))  # columns of NUMERIC with a weight
MISSING_SHARE = 0.02  # of gender, age_group, and every numeric column of the groups feat_*
NUM_SEQUENCE_IDS, ZIPF_EXPONENT, RECENT, RECENT_WEIGHT = 100_000, 1.1, 20, 1.5
LABEL_RATE = 0.018
ROW_GROUP_ROWS = 30_000
_LOGIT_BINS = np.linspace(-16, 8, 400_001)
_PILOT_ROWS = 200_000
_TEXT_ROWS = 500


class Truth(NamedTuple):
    """Weights of the model that clicks are drawn from; drawn from a seed of their own."""

    categorical: dict[str, np.ndarray]
    gender_inventory: np.ndarray
    numeric: np.ndarray
    sequence: np.ndarray

    @classmethod
    def draw(cls, seed: int) -> "Truth":
        random = np.random.default_rng([seed, 0])
        scale = {"gender": 0.2, "age_group": 0.4, "inventory_id": 0.6, "day_of_week": 0.0, "hour": 0.3}
        return cls(
            categorical={name: random.normal(0, scale[name], size) for name, size in CATEGORICALS.items()},
            gender_inventory=random.normal(0, 0.3, (2, 18)),
            numeric=random.normal(0, 0.25, len(INFORMATIVE)),
            sequence=random.normal(0, 1, NUM_SEQUENCE_IDS + 1),
        )


@cache
def _sequence_table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Id of each of 2^20 equal slices of probability (Zipf over ids 1, 2, ...); each id's text with its comma; their lengths."""
    cumulative = np.cumsum(1.0 / np.arange(1, NUM_SEQUENCE_IDS + 1) ** ZIPF_EXPONENT)
    slices = (np.arange(1 << 20) + 0.5) / (1 << 20) * cumulative[-1]
    text = np.char.add(np.arange(NUM_SEQUENCE_IDS + 1).astype(str), ",").astype("S8")
    return (np.searchsorted(cumulative, slices) + 1).astype(np.int32), text, np.char.str_len(text)


def _text(ids: np.ndarray, offsets: np.ndarray) -> pa.Array:
    """One string per row: its ids with commas between. In pieces that stay in the processor's cache."""
    pieces = [offsets[i : i + _TEXT_ROWS + 1] for i in range(0, len(offsets) - 1, _TEXT_ROWS)]
    return pa.concat_arrays([_text_of(ids[piece[0] : piece[-1]], piece - piece[0]) for piece in pieces])


def _text_of(ids: np.ndarray, offsets: np.ndarray) -> pa.Array:
    _, text, text_length = _sequence_table()
    padded, lengths = text[ids], text_length[ids]
    characters = padded.view(np.uint8)
    characters = characters[characters != 0]
    ends = np.concatenate([[0], np.cumsum(lengths)])[offsets]
    is_last_comma = ends[1:] - 1
    keep = np.ones(len(characters), bool)
    keep[is_last_comma] = False
    ends = (ends - np.arange(len(ends))).astype(np.int32)
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, pa.py_buffer(ends), pa.py_buffer(characters[keep])])


@dataclass(frozen=True)
class Chunk:
    """Rows of one row group."""

    table: pa.Table
    logit: np.ndarray  # without the bias
    uniform: np.ndarray  # a row is clicked where this is below its probability


def draw(truth: Truth, num_rows: int, seed: list[int], *, mean_length: int, with_text: bool = True) -> Chunk:
    """`num_rows` rows; every row has at least one id in `seq`."""
    random = np.random.default_rng(seed)
    codes = {name: random.integers(0, size, num_rows) for name, size in CATEGORICALS.items()}
    missing = {name: random.random(num_rows) < MISSING_SHARE for name in ("gender", "age_group")}
    dense = random.standard_normal((len(NUMERIC), num_rows))
    dense[SKEWED] = np.floor(np.exp(1.5 * dense[SKEWED]) * 10) / 10
    is_missing = np.zeros(dense.shape, bool)
    is_missing[27:75] = random.random((48, num_rows), dtype=np.float32) < MISSING_SHARE
    lengths = np.clip(random.gamma(4, mean_length / 4, num_rows).astype(np.int64), 1, 8 * mean_length)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    slices = random.integers(0, 1 << 20, offsets[-1], dtype=np.uint32)
    ids = _sequence_table()[0][slices]
    uniform = random.random(num_rows)

    logit = sum(np.where(missing.get(name, False), 0, truth.categorical[name][code]) for name, code in codes.items())
    logit = logit + np.where(missing["gender"], 0, truth.gender_inventory[codes["gender"], codes["inventory_id"]])
    for weight, column in zip(truth.numeric, INFORMATIVE):
        logit += np.where(is_missing[column], 0, weight * np.tanh(dense[column]))
    recent = np.maximum(offsets[:-1], offsets[1:] - RECENT)
    sums = np.concatenate([[0], np.cumsum(truth.sequence[ids])])
    logit += RECENT_WEIGHT * (sums[offsets[1:]] - sums[recent]) / (offsets[1:] - recent)

    if not with_text:
        return Chunk(pa.table({}), logit, uniform)
    columns: dict[str, pa.Array] = {}
    for name, size in CATEGORICALS.items():
        code = pa.array(codes[name].astype(np.int32), mask=missing.get(name))
        columns[name] = pa.DictionaryArray.from_arrays(code, pa.array([str(i + 1) for i in range(size)])).cast(pa.string())
    columns["seq"] = _text(ids, offsets)
    columns |= {name: pa.array(dense[i], mask=is_missing[i] if is_missing[i].any() else None) for i, name in enumerate(NUMERIC)}
    return Chunk(pa.table(columns), logit, uniform)


def solve_bias(truth: Truth, seed: int, *, mean_length: int) -> float:
    """The bias that gives LABEL_RATE, on rows of its own."""
    logit = draw(truth, _PILOT_ROWS, [seed, 1], mean_length=min(mean_length, 2 * RECENT), with_text=False).logit
    low, high = -20.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(_sigmoid(logit + middle)) < LABEL_RATE else (low, middle)
    return middle


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class File(NamedTuple):
    """One file to write: rows first_row .. first_row + num_rows - 1 of its split."""

    path: Path
    split: int  # 0 train, 1 test
    first_row: int
    num_rows: int
    seed: int
    mean_length: int
    bias: float


def write_file(file: File) -> np.ndarray:
    """Writes a file, and for test rows their truth. Returns [3, bins]: clicked, not clicked and expected clicks by logit."""
    truth = Truth.draw(file.seed)
    counts = np.zeros((3, len(_LOGIT_BINS) + 1))
    writers: dict[Path, pq.ParquetWriter] = {}
    try:
        for start in range(file.first_row, file.first_row + file.num_rows, ROW_GROUP_ROWS):
            size = min(ROW_GROUP_ROWS, file.first_row + file.num_rows - start)
            chunk = draw(truth, size, [file.seed, 2 + file.split, start], mean_length=file.mean_length)
            probability = _sigmoid(chunk.logit + file.bias)
            clicked = chunk.uniform < probability
            where = np.searchsorted(_LOGIT_BINS, chunk.logit + file.bias)
            for row, weights in zip(counts, (clicked, ~clicked, probability)):
                row += np.bincount(where, weights, minlength=len(row))
            label = pa.array(clicked.astype(np.int8))
            if file.split:
                row_id = pa.array([f"TEST_{i:08d}" for i in range(start, start + size)])
                tables = {file.path: chunk.table.add_column(0, "ID", row_id)}
                answers = pa.table({"ID": row_id, "clicked": label, "probability": probability})
                tables[file.path.parent / "test_truth" / file.path.name] = answers
            else:
                tables = {file.path: chunk.table.append_column("clicked", label)}
            for path, table in tables.items():
                if path not in writers:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    writers[path] = pq.ParquetWriter(path, table.schema, compression="snappy")
                writers[path].write_table(table, row_group_size=ROW_GROUP_ROWS)
    finally:
        for writer in writers.values():
            writer.close()
    return counts


def _auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """P(a positive lies above a negative), ties in a bin counted half."""
    below = np.cumsum(negatives) - negatives
    return float(np.sum(positives * (below + negatives / 2)) / (positives.sum() * negatives.sum()))


def summary(counts: np.ndarray, bias: float) -> dict[str, float | int]:
    """`bayes_auc` of the true probability against the clicks that were drawn; `expected_bayes_auc` over all draws of them."""
    clicked, not_clicked, expected = counts
    return {
        "num_rows": int(clicked.sum() + not_clicked.sum()),
        "label_rate": float(clicked.sum() / (clicked.sum() + not_clicked.sum())),
        "bayes_auc": _auc(clicked, not_clicked),
        "expected_bayes_auc": _auc(expected, clicked + not_clicked - expected),
        "bias": bias,
    }


def make(
    out: Path,
    *,
    rows: int,
    test_rows: int = 0,
    rows_per_file: int = 1_200_000,
    seed: int = 0,
    mean_length: int = 500,
    workers: int = 1,
) -> dict:
    """Writes the files and truth.json, whose content is returned."""
    bias = solve_bias(Truth.draw(seed), seed, mean_length=mean_length)
    files = []
    for split, (name, total) in enumerate((("train", rows), ("test", test_rows))):
        step = max(rows_per_file // ROW_GROUP_ROWS, 1) * ROW_GROUP_ROWS
        for number, start in enumerate(range(0, total, step)):
            path = out / f"{name}-{number:05d}.parquet"
            files.append(File(path, split, start, min(step, total - start), seed, mean_length, bias))
    out.mkdir(parents=True, exist_ok=True)
    if workers == 1:
        counts = [write_file(file) for file in files]
    else:
        with ProcessPoolExecutor(workers) as pool:
            counts = list(pool.map(write_file, files))
    result: dict = {"seed": seed, "mean_length": mean_length}
    for split, name in enumerate(("train", "test")):
        of_split = [count for count, file in zip(counts, files) if file.split == split]
        if of_split:
            result[name] = summary(np.sum(of_split, axis=0), bias)
    (out / "truth.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, required=True, help="training rows")
    parser.add_argument("--test-rows", type=int, default=0)
    parser.add_argument("--rows-per-file", type=int, default=1_200_000, help=f"rounded down to row groups of {ROW_GROUP_ROWS} rows")
    parser.add_argument("--mean-length", type=int, default=500, help="ids per sequence (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes; each writes files of its own")
    args = parser.parse_args()
    result = make(
        args.out,
        rows=args.rows,
        test_rows=args.test_rows,
        rows_per_file=args.rows_per_file,
        seed=args.seed,
        mean_length=args.mean_length,
        workers=args.workers,
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
