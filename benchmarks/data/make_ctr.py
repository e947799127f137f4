"""A click log in the layout of a CTR competition, at any size, drawn from a known model, so that the best possible AUC is known.

    python -m benchmarks.data.make_ctr data/ctr --rows 300000 --test-rows 100000
    python -m benchmarks.data.make_ctr data/ctr --rows 10700000 --test-rows 15300000 --rows-per-file 1000000 --workers 2

Writes train-*.parquet (and valid-*.parquet) of 119 columns (5 categorical and 112 numeric ones, `seq`, `clicked`), test-*.parquet
(`ID` instead of `clicked`), test_truth/*.parquet (ID, clicked, probability) and truth.json. `seq` is text: ids with commas between
them. Memory holds one row group per worker. Equal arguments give equal rows, whatever the number of workers; files that are
there are kept.

A row's history is made of visits of 4 to 12 ids each, drawn evenly from 262,144 visits that were drawn once: a text of 500 ids
is put together from about 62 pieces, which is what makes this quick. Over all rows ids are Zipf.

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
import pyarrow.compute as pc
import pyarrow.parquet as pq

CATEGORICALS = {"gender": 2, "age_group": 8, "inventory_id": 18, "day_of_week": 7, "hour": 24}
GROUPS = {"l_feat": 27, "feat_e": 10, "feat_d": 6, "feat_c": 8, "feat_b": 6, "feat_a": 18, "history_a": 7, "history_b": 30}
NUMERIC = tuple(f"{group}_{i + 1}" for group, count in GROUPS.items() for i in range(count))
USED_NUMERIC = NUMERIC[:76]  # what the benchmarks' models read
SKEWED = slice(75, 112)  # the history columns: long-tailed amounts, 0 and up
REPEATING = [*CATEGORICALS, *NUMERIC[SKEWED]]  # columns that are stored as dictionaries
INFORMATIVE = (*range(0, 20, 2), *range(27, 47, 2))  # columns of NUMERIC with a weight
MISSING_SHARE = 0.02  # of gender, age_group, and every numeric column of the groups feat_*
NUM_SEQUENCE_IDS, ZIPF_EXPONENT, RECENT, RECENT_WEIGHT = 100_000, 1.1, 20, 1.5
NUM_VISITS, VISIT_IDS = 1 << 18, (4, 12)  # ids of a visit: from 4 to 12
LABEL_RATE = 0.018
SPLITS = ("train", "test", "valid")  # the order is part of the seeds
FORMAT = 2  # of what is drawn: files of another one are not kept
ROW_GROUP_ROWS = 30_000
_LOGIT_BINS = np.linspace(-16, 8, 48_001)
_PILOT_ROWS = 200_000


class Truth(NamedTuple):
    """Weights of the model that clicks are drawn from; drawn from a seed of their own."""

    seed: int
    categorical: dict[str, np.ndarray]
    gender_inventory: np.ndarray
    numeric: np.ndarray
    sequence: np.ndarray

    @classmethod
    def draw(cls, seed: int) -> "Truth":
        random = np.random.default_rng([seed, 0])
        scale = {"gender": 0.2, "age_group": 0.4, "inventory_id": 0.6, "day_of_week": 0.0, "hour": 0.3}
        return cls(
            seed=seed,
            categorical={name: random.normal(0, scale[name], size) for name, size in CATEGORICALS.items()},
            gender_inventory=random.normal(0, 0.3, (2, 18)),
            numeric=random.normal(0, 0.25, len(INFORMATIVE)),
            sequence=random.normal(0, 1, NUM_SEQUENCE_IDS + 1),
        )


class Visits(NamedTuple):
    """V visits, of which histories are made: ids that were seen one after another, from offsets[v] to offsets[v + 1] - 1."""

    ids: np.ndarray
    offsets: np.ndarray
    text: pa.StringArray  # [2 V]: "5,17,5," of each visit, then "5,17,5" of each


@cache
def visits() -> Visits:
    """The same for every seed. Their ids together are Zipf to the last one: slot i of n holds the id of quantile (i + 1/2) / n."""
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(random.integers(*VISIT_IDS, NUM_VISITS, endpoint=True))])
    num_slots = offsets[-1]
    cumulative = np.cumsum(1.0 / np.arange(1, NUM_SEQUENCE_IDS + 1) ** ZIPF_EXPONENT)
    ids = np.searchsorted(cumulative, (np.arange(num_slots) + 0.5) / num_slots * cumulative[-1]) + 1
    random.shuffle(ids)
    without_comma = pa.array(np.arange(NUM_SEQUENCE_IDS + 1)).cast(pa.string())
    texts = pa.concat_arrays([pc.binary_join_element_wise(without_comma, "", ","), without_comma])
    is_last = np.zeros(num_slots, bool)
    is_last[offsets[1:] - 1] = True
    both = [_joined(texts, ids, offsets), _joined(texts, ids + is_last * len(without_comma), offsets)]
    return Visits(ids.astype(np.int32), offsets, pa.concat_arrays(both))


def _joined(texts: pa.StringArray, which: np.ndarray, offsets: np.ndarray) -> pa.StringArray:
    """Text i: texts[which[j]] for j from offsets[i] to offsets[i + 1] - 1, one behind the other."""
    taken = texts.take(pa.array(which))
    _, ends, characters = taken.buffers()
    ends = np.frombuffer(ends, np.int32)[: len(taken) + 1][offsets]
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(ends), characters)


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
    per_visit = sum(VISIT_IDS) / 2
    num_visits = np.clip(random.gamma(4, mean_length / per_visit / 4, num_rows).round(), 1, 6 * mean_length // per_visit + 1)
    offsets = np.concatenate([[0], np.cumsum(num_visits.astype(np.int64))])
    seen = random.integers(0, NUM_VISITS, offsets[-1], dtype=np.uint32)
    uniform = random.random(num_rows)

    logit = sum(np.where(missing.get(name, False), 0, truth.categorical[name][code]) for name, code in codes.items())
    logit = logit + np.where(missing["gender"], 0, truth.gender_inventory[codes["gender"], codes["inventory_id"]])
    for weight, column in zip(truth.numeric, INFORMATIVE):
        logit += np.where(is_missing[column], 0, weight * np.tanh(dense[column]))
    logit += RECENT_WEIGHT * _mean_of_recent(truth, seen, offsets)

    if not with_text:
        return Chunk(pa.table({}), logit, uniform)
    columns: dict[str, pa.Array] = {}
    for name, size in CATEGORICALS.items():
        code = pa.array(codes[name].astype(np.int32), mask=missing.get(name))
        columns[name] = pa.DictionaryArray.from_arrays(code, pa.array([str(i + 1) for i in range(size)])).cast(pa.string())
    seen[offsets[1:] - 1] += NUM_VISITS  # no comma behind the last
    columns["seq"] = _joined(visits().text, seen, offsets)
    columns |= {name: pa.array(dense[i], mask=is_missing[i] if is_missing[i].any() else None) for i, name in enumerate(NUMERIC)}
    return Chunk(pa.table(columns), logit, uniform)


def _mean_of_recent(truth: Truth, seen: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[N] mean weight of each row's last RECENT ids, or of all that it has."""
    ends, sums = visits().offsets, _sums_of_visits(truth.seed)
    total, missing = np.zeros(len(offsets) - 1), np.full(len(offsets) - 1, RECENT)
    rows, at = np.arange(len(offsets) - 1), offsets[1:] - 1
    while len(rows):
        visit = seen[at]
        end = ends[visit + 1]
        taken = np.minimum(end - ends[visit], missing[rows])
        total[rows] += sums[end] - sums[end - taken]
        missing[rows] -= taken
        more = (missing[rows] > 0) & (at > offsets[rows])
        rows, at = rows[more], at[more] - 1
    return total / (RECENT - missing)


@cache
def _sums_of_visits(seed: int) -> np.ndarray:
    """Of the weights of all ids of all visits before each."""
    return np.concatenate([[0], np.cumsum(Truth.draw(seed).sequence[visits().ids])])


@cache
def solve_bias(seed: int, *, mean_length: int) -> float:
    """The bias that gives LABEL_RATE, on rows of its own."""
    logit = draw(Truth.draw(seed), _PILOT_ROWS, [seed, 1], mean_length=min(mean_length, 2 * RECENT), with_text=False).logit
    low, high = -20.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(_sigmoid(logit + middle)) < LABEL_RATE else (low, middle)
    return middle


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class File(NamedTuple):
    """One file to write: rows first_row .. first_row + num_rows - 1 of its split (train, test or valid)."""

    out: Path
    split: str
    number: int
    first_row: int
    num_rows: int
    seed: int
    mean_length: int
    bias: float

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


def write_file(file: File) -> np.ndarray:
    """Writes a file, and for test rows their truth; one that is there already is kept.

    Returns:
        [3, bins]: clicked, not clicked and expected clicks by logit. It is kept in `counts/`, and written last.
    """
    done = file.out / "counts" / f"{file.name}.npz"
    described = json.dumps([FORMAT, *file[1:]])
    if done.exists():
        found = np.load(done)
        if found["described"] == described:
            return found["counts"]
    truth = Truth.draw(file.seed)
    counts = np.zeros((3, len(_LOGIT_BINS) + 1))
    writers: dict[Path, pq.ParquetWriter] = {}
    try:
        for start in range(file.first_row, file.first_row + file.num_rows, ROW_GROUP_ROWS):
            size = min(ROW_GROUP_ROWS, file.first_row + file.num_rows - start)
            chunk = draw(truth, size, [file.seed, 2 + SPLITS.index(file.split), start], mean_length=file.mean_length)
            probability = _sigmoid(chunk.logit + file.bias)
            clicked = chunk.uniform < probability
            where = np.searchsorted(_LOGIT_BINS, chunk.logit + file.bias)
            for row, weights in zip(counts, (clicked, ~clicked, probability)):
                row += np.bincount(where, weights, minlength=len(row))
            label = pa.array(clicked.astype(np.int8))
            path = file.out / f"{file.name}.parquet"
            if file.split == "test":
                row_id = pa.array([f"TEST_{i:08d}" for i in range(start, start + size)])
                tables = {path: chunk.table.add_column(0, "ID", row_id)}
                answers = pa.table({"ID": row_id, "clicked": label, "probability": probability})
                tables[file.out / "test_truth" / path.name] = answers
            else:
                tables = {path: chunk.table.append_column("clicked", label)}
            for path, table in tables.items():
                if path not in writers:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    writers[path] = pq.ParquetWriter(path, table.schema, compression="snappy", use_dictionary=REPEATING)
                writers[path].write_table(table, row_group_size=ROW_GROUP_ROWS)
    finally:
        for writer in writers.values():
            writer.close()
    done.parent.mkdir(exist_ok=True)
    np.savez_compressed(partial := done.with_name(f"{file.name}.tmp.npz"), counts=counts, described=described)
    partial.rename(done)
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
    valid_rows: int = 0,
    rows_per_file: int = 1_200_000,
    seed: int = 0,
    mean_length: int = 500,
    workers: int = 1,
) -> dict:
    """Writes the files and truth.json, whose content is returned. Splits that are not asked for stay as they are.

    Files of an earlier call with the same arguments are kept, so an interrupted call goes on.
    """
    bias = solve_bias(seed, mean_length=mean_length)
    files = []
    for split, total in zip(SPLITS, (rows, test_rows, valid_rows)):
        step = max(rows_per_file // ROW_GROUP_ROWS, 1) * ROW_GROUP_ROWS
        for number, start in enumerate(range(0, total, step)):
            files.append(File(out, split, number, start, min(step, total - start), seed, mean_length, bias))
    out.mkdir(parents=True, exist_ok=True)
    if workers == 1:
        counts = [write_file(file) for file in files]
    else:
        with ProcessPoolExecutor(workers) as pool:
            counts = list(pool.map(write_file, files))
    path = out / "truth.json"
    result: dict = json.loads(path.read_text()) if path.exists() else {}
    result |= {"seed": seed, "mean_length": mean_length}
    for split in SPLITS:
        of_split = [count for count, file in zip(counts, files) if file.split == split]
        if of_split:
            result[split] = summary(np.sum(of_split, axis=0), bias)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=0, help="training rows")
    parser.add_argument("--test-rows", type=int, default=0)
    parser.add_argument("--valid-rows", type=int, default=0)
    parser.add_argument("--rows-per-file", type=int, default=1_200_000, help=f"rounded down to row groups of {ROW_GROUP_ROWS} rows")
    parser.add_argument("--mean-length", type=int, default=500, help="ids per sequence (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes; each writes files of its own")
    args = parser.parse_args()
    print(json.dumps(make(**vars(args)), indent=1))


if __name__ == "__main__":
    main()
