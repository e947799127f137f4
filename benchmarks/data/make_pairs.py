"""A bid recommendation log at any size: notices, companies, and pairs of them with a label, whose truth is known.

    python -m benchmarks.data.make_pairs FOLDER --pairs 3000000 --chunks 3

writes notices.parquet and companies.parquet (an id, 32 numbers and 8 categories each) and pairs-<00>.parquet (two ids as text, a
day, the label). Ids are drawn by Zipf's law; a company bids where the first numbers of both point the same way.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ZIPF = 0.8
SIGNAL = 8  # numbers of each side that decide
SIDES = {"notices": "notice_id", "companies": "company_id"}


def write_pairs(
    folder: Path,
    *,
    num_rows: int = 100_000,
    num_pairs: int = 1_000_000,
    num_chunks: int = 1,
    num_dense: int = 32,
    num_categories: int = 8,
    seed: int = 0,
) -> None:
    """Write the files.

    Args:
        num_rows: of each store.
        num_pairs: over all chunks, which are files of equal size.
        num_dense, num_categories: columns `n_1` .. and `c_1` .. of each store.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    dense, ids = {}, {}
    for name, key in SIDES.items():
        dense[name] = random.standard_normal((num_rows, num_dense), np.float32)
        ids[name] = pa.array([f"{name[0]}{i:07d}" for i in random.permutation(num_rows)])
        columns = {key: ids[name]} | {f"n_{i + 1}": dense[name][:, i] for i in range(num_dense)}
        for i in range(num_categories):
            columns[f"c_{i + 1}"] = pa.array([f"v{value}" for value in random.integers(0, 10 * (i + 1), num_rows)])
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    likely = 1.0 / np.arange(1, num_rows + 1) ** ZIPF
    for chunk in range(num_chunks):
        count = num_pairs // num_chunks
        at = {name: random.choice(num_rows, count, p=likely / likely.sum()) for name in SIDES}
        part = min(SIGNAL, num_dense)
        score = np.einsum("nd,nd->n", *(dense[name][at[name], :part] for name in SIDES))
        label = random.random(count) < 1.0 / (1.0 + np.exp(-score))
        columns = {key: ids[name].take(pa.array(at[name])) for name, key in SIDES.items()}
        columns |= {"day": np.full(count, chunk, np.int32), "bid": label.astype(np.int8)}
        pq.write_table(pa.table(columns), folder / f"pairs-{chunk:02d}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000, help="of each store (default: 100000)")
    parser.add_argument("--pairs", type=int, default=3_000_000, help="over all chunks (default: 3000000)")
    parser.add_argument("--chunks", type=int, default=3, help="files of pairs (default: 3)")
    args = parser.parse_args()
    write_pairs(args.folder, num_rows=args.rows, num_pairs=args.pairs, num_chunks=args.chunks)


if __name__ == "__main__":
    main()
