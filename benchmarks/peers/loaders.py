"""Other libraries' loaders as workers (see step_server.py); runs in the peers' environment.

    PEER_PYTHON -m benchmarks.peers.loaders huggingface tokens.parquet --batch-size 4096

Rows are coded already: ids are table rows, the sequence is a list. A step is one batch; its "loss" is its number of rows.
"""

import argparse
import itertools
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.step_server import claim_stdout, serve

SEQUENCE, LABEL = "seq", "clicked"
PADDED_LENGTH = 500  # FuxiCTR pads sequences; longer ones lose their tail
FUXICTR_ROWS = 60_000  # its rows are one float64 matrix in memory


def huggingface(tokens: Path, batch_size: int) -> Iterator[int]:
    """datasets in torch format, in stored order; sequences joined to values and lengths, numbers to one matrix."""
    from datasets import Dataset

    dataset = Dataset.from_parquet(str(tokens), cache_dir=str(tokens.parent / "huggingface")).with_format("torch")
    numeric = [name for name in dataset.column_names if name not in (SEQUENCE, LABEL) and dataset.features[name].dtype == "float32"]
    while True:
        for batch in dataset.iter(batch_size=batch_size):
            lengths = torch.tensor([len(s) for s in batch[SEQUENCE]])
            values, dense = torch.cat(list(batch[SEQUENCE])), torch.stack([batch[name] for name in numeric], dim=1)
            assert len(values) == int(lengths.sum())
            yield len(dense)


def fuxictr(tokens: Path, batch_size: int) -> Iterator[int]:
    """RankDataLoader's NpzDataLoader, shuffled, without workers (two make it slower): a dict of float64 columns per batch."""
    from fuxictr.pytorch.dataloaders import RankDataLoader

    table = pq.read_table(tokens).slice(0, FUXICTR_ROWS)
    columns = {name: table[name].to_numpy() for name in table.column_names if name != SEQUENCE}
    lists = table[SEQUENCE].combine_chunks()
    padded = np.zeros((len(table), PADDED_LENGTH), np.int64)
    offsets, values = lists.offsets.to_numpy(), lists.values.to_numpy()
    for row in range(len(table)):
        ids = values[offsets[row] : offsets[row + 1]][:PADDED_LENGTH]
        padded[row, : len(ids)] = ids
    path = tokens.parent / f"fuxictr-{FUXICTR_ROWS}.npz"
    arrays: dict[str, Any] = {**columns, SEQUENCE: padded}
    np.savez(path, **arrays)
    names = [*(name for name in columns if name != LABEL), SEQUENCE]
    widths = [PADDED_LENGTH if name == SEQUENCE else 1 for name in [*names, LABEL]]
    starts = dict(zip([*names, LABEL], itertools.accumulate(widths, initial=0)))
    where = {
        name: starts[name] if width == 1 else [*range(starts[name], starts[name] + width)]
        for name, width in zip([*names, LABEL], widths)
    }
    feature_map = SimpleNamespace(features=dict.fromkeys(names), labels=[LABEL], get_column_index=where.__getitem__)
    loader, _ = RankDataLoader(
        feature_map, stage="train", train_data=str(path), batch_size=batch_size, shuffle=True, data_format="npz", num_workers=0
    )
    while True:
        for batch in loader:
            yield len(batch[LABEL])


READERS = {"huggingface": (huggingface, "datasets"), "fuxictr": (fuxictr, "fuxictr")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--batch-size", type=int, required=True)
    args = parser.parse_args()
    answers = claim_stdout()
    torch.set_num_threads(1)
    reader, package = READERS[args.reader]
    batches = reader(args.tokens, args.batch_size)
    next(batches)
    about = {
        "library": package,
        "versions": {package: version(package), "torch": version("torch")},
        "rows_per_step": args.batch_size,
    }
    serve(lambda: float(next(batches)), about=about, answers=answers)


if __name__ == "__main__":
    main()
