"""The rows that two libraries are compared on: numpy and pyarrow only, so that both sides build exactly the same batches."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

FRAPPE_FIELDS = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")


class CodedRows(NamedTuple):
    """Single-valued categorical rows.

    Attributes:
        codes: name -> [N] int64; 0 .. cardinality - 1 for values of the training split, -1 for values it does not hold.
        labels: [N] float32, 0 or 1.
        cardinalities: name -> number of values in the training split.
    """

    codes: dict[str, np.ndarray]
    labels: np.ndarray
    cardinalities: dict[str, int]

    @property
    def num_rows(self) -> int:
        return len(self.labels)


def frappe(folder: Path, *, split: str) -> CodedRows:
    """One split of Frappe, coded by the values of its training split.

    Args:
        folder: holds train.parquet, valid.parquet and test.parquet: an integer `label` and the ten `FRAPPE_FIELDS`.
        split: `train`, `valid` or `test`.

    Raises:
        FileNotFoundError: if the file is absent.
    """
    train = pq.read_table(folder / "train.parquet")
    table = pq.read_table(folder / f"{split}.parquet")
    codes, cardinalities = {}, {}
    for name in FRAPPE_FIELDS:
        known = np.unique(train[name].to_numpy())
        values = table[name].to_numpy()
        position = np.minimum(np.searchsorted(known, values), len(known) - 1)
        codes[name] = np.where(known[position] == values, position, -1).astype(np.int64)
        cardinalities[name] = len(known)
    return CodedRows(codes=codes, labels=table["label"].to_numpy().astype(np.float32), cardinalities=cardinalities)


def batch_rows(num_rows: int, *, batch_size: int, seed: int) -> list[np.ndarray]:
    """Row numbers of all full batches of one shuffled pass."""
    order = np.random.default_rng(seed).permutation(num_rows)
    return [order[start : start + batch_size] for start in range(0, num_rows - batch_size + 1, batch_size)]


def zipf_rows(*, num_tables: int, rows_per_table: int, num_rows: int, exponent: float, seed: int) -> CodedRows:
    """CodedRows of one id per table; the k-th most frequent id has probability proportional to 1 / k^exponent.

    Frequent ids are scattered over the table by a permutation of each table's own. Labels are fair coin flips: speed only.
    """
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(1.0 / np.arange(1, rows_per_table + 1) ** exponent)
    codes = {}
    for table in range(num_tables):
        rank = np.searchsorted(cumulative, rng.random(num_rows) * cumulative[-1])
        codes[f"C{table + 1}"] = rng.permutation(rows_per_table)[rank].astype(np.int64)
    labels = rng.integers(0, 2, size=num_rows).astype(np.float32)
    return CodedRows(codes=codes, labels=labels, cardinalities=dict.fromkeys(codes, rows_per_table))
