"""Adds to a leave-last-out log what each user did before: a `history` list column, newest last, for sequence features.

    python -m benchmarks.data.ml1m_history ../shared/data/ml1m_loo data/ml1m --length 50

A training row's history holds earlier rows of the same user only; a test row's, the user's last training rows.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def histories(user_N: np.ndarray, item_N: np.ndarray, *, length: int) -> pa.ListArray:
    """The `length` items before each row among the rows of its user; rows are sorted by user, then time."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(user_N)) + 1])
    first_of_user = np.repeat(starts, np.diff(np.concatenate([starts, [len(user_N)]])))
    row = np.arange(len(user_N))
    begin = np.maximum(first_of_user, row - length)
    counts = row - begin
    offsets = np.concatenate([[0], np.cumsum(counts)])
    where = np.repeat(begin - offsets[:-1], counts) + np.arange(offsets[-1])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(item_N[where]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with train.parquet and test.parquet: user, item, position")
    parser.add_argument("out", type=Path)
    parser.add_argument("--length", type=int, default=50)
    args = parser.parse_args()
    order = [("user", "ascending"), ("position", "ascending")]
    train = pq.read_table(args.source / "train.parquet").sort_by(order)
    test = pq.read_table(args.source / "test.parquet")
    marked = pa.concat_tables(
        [t.append_column("is_test", pa.array(np.full(t.num_rows, flag))) for t, flag in ((train, False), (test, True))]
    ).sort_by([("user", "ascending"), ("is_test", "ascending"), ("position", "ascending")])
    column = histories(marked["user"].to_numpy(), marked["item"].to_numpy(), length=args.length)
    marked = marked.append_column("history", column)
    args.out.mkdir(parents=True, exist_ok=True)
    is_test = marked["is_test"].to_numpy(zero_copy_only=False)
    for name, mask in (("train", ~is_test), ("test", is_test)):
        pq.write_table(marked.filter(pa.array(mask)).drop_columns(["is_test"]), args.out / f"{name}.parquet")


if __name__ == "__main__":
    main()
