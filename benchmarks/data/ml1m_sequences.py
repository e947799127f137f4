"""Rows to rank with histories, from a log that only knows what each user did and in which order (MovieLens-1M, leave-last-out).

    python -m benchmarks.data.ml1m_sequences ../shared/data/ml1m_loo data/ml1m_sequences

Each event is a positive row, followed by rows of the same user and history with films that the user never watched, drawn with a
seed in proportion to how often films were watched: being popular alone says little. `history` and `history_genre` are the events
before it, newest last, side by side. Of each user the last event is the test split, the one before it the valid split, the newest
of the others train. `weight` lets a positive row weigh as much as its negatives together, so that all splits have one base rate.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "valid", "test")
ROW_COLUMNS = ("user", "gender", "age", "occupation")
EVENTS_PER_CHUNK = 1 << 14


class Events(NamedTuple):
    """All N events, sorted by user, then time; a user's last one is the test event.

    Attributes:
        columns: [N] each: ROW_COLUMNS, item, genre.
        first_N: where the user's events begin.
        end_N: behind the user's last event.
        seen: [users, items] bool; users and items by their rank among all.
        user_N, item_N: ranks.
        items, genres: [items] ids of all items, and the genre of each.
        popularity: [items] cumulative share of the training events.
    """

    columns: dict[str, np.ndarray]
    first_N: np.ndarray
    end_N: np.ndarray
    seen: np.ndarray
    user_N: np.ndarray
    item_N: np.ndarray
    items: np.ndarray
    genres: np.ndarray
    popularity: np.ndarray


def read_events(source: Path) -> Events:
    train, test = (pq.read_table(source / f"{name}.parquet") for name in ("train", "test"))
    table = pa.concat_tables([train, test])
    is_test = np.repeat([False, True], [train.num_rows, test.num_rows])
    order = np.lexsort((table["position"].to_numpy(), is_test, table["user"].to_numpy()))
    columns = {name: table[name].to_numpy()[order] for name in (*ROW_COLUMNS, "item", "genre")}
    _, first, user_N, counts = np.unique(columns["user"], return_index=True, return_inverse=True, return_counts=True)
    items, first_of_item, item_N = np.unique(columns["item"], return_index=True, return_inverse=True)
    seen = np.zeros((len(first), len(items)), bool)
    seen[user_N, item_N] = True
    watched = np.bincount(item_N[~is_test[order]], minlength=len(items))
    popularity = np.cumsum(watched) / watched.sum()
    ends = first + counts
    return Events(columns, first[user_N], ends[user_N], seen, user_N, item_N, items, columns["genre"][first_of_item], popularity)


def choose(events: Events, split: str, *, max_train_events: int) -> np.ndarray:
    """[M] the events that become positive rows of a split."""
    left_N = events.end_N - np.arange(len(events.end_N))  # 1 for the last event of a user
    if split == "train":
        return np.flatnonzero((left_N > 2) & (left_N <= 2 + max_train_events))
    return np.flatnonzero(left_N == (2 if split == "valid" else 1))


def sample_unseen(events: Events, users: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """[M] ranks of items that each user has no event of, by popularity."""
    drawn = np.searchsorted(events.popularity, random.random(len(users)), side="right")
    while len(again := np.flatnonzero(events.seen[users, drawn])):
        drawn[again] = np.searchsorted(events.popularity, random.random(len(again)), side="right")
    return drawn


def batches(
    events: Events, chosen: np.ndarray, *, num_negatives: int, length: int, seed: tuple[int, ...]
) -> Iterator[pa.RecordBatch]:
    """Rows of the chosen events, a chunk at a time: each event, then its negatives."""
    for chunk, start in enumerate(range(0, len(chosen), EVENTS_PER_CHUNK)):
        event = np.repeat(chosen[start : start + EVENTS_PER_CHUNK], 1 + num_negatives)
        is_positive = np.arange(len(event)) % (1 + num_negatives) == 0
        item = events.item_N[event]
        random = np.random.default_rng((*seed, chunk))
        item[~is_positive] = sample_unseen(events, events.user_N[event[~is_positive]], random)
        begin = np.maximum(events.first_N[event], event - length)
        offsets = np.concatenate([[0], np.cumsum(event - begin)])
        where = np.repeat(begin - offsets[:-1], event - begin) + np.arange(offsets[-1])
        columns = {name: pa.array(events.columns[name][event]) for name in ROW_COLUMNS}
        columns |= {"item": pa.array(events.items[item]), "genre": pa.array(events.genres[item])}
        for name, values in (("history", events.columns["item"]), ("history_genre", events.columns["genre"])):
            columns[name] = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values[where]))
        columns["label"] = pa.array(is_positive.astype(np.int8))
        columns["weight"] = pa.array(np.where(is_positive, num_negatives, 1).astype(np.float32))
        yield pa.record_batch(columns)


def write(
    source: Path, out: Path, *, length: int, max_train_events: int, num_negatives: dict[str, int], seed: int
) -> dict[str, int]:
    """Writes train, valid and test.parquet; the rows of each."""
    events = read_events(source)
    out.mkdir(parents=True, exist_ok=True)
    num_rows = {}
    for code, split in enumerate(SPLITS):
        chosen = choose(events, split, max_train_events=max_train_events)
        chunks = batches(events, chosen, num_negatives=num_negatives[split], length=length, seed=(seed, code))
        first = next(chunks)
        with pq.ParquetWriter(out / f"{split}.parquet", first.schema) as writer:
            writer.write_batch(first)
            for batch in chunks:
                writer.write_batch(batch)
        num_rows[split] = len(chosen) * (1 + num_negatives[split])
    return num_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with train.parquet and test.parquet: user, item, position, ...")
    parser.add_argument("out", type=Path)
    parser.add_argument("--length", type=int, default=50, help="most events of a history")
    parser.add_argument("--max-train-events", type=int, default=25, help="newest training events of each user")
    parser.add_argument("--negatives", type=int, nargs=3, default=(1, 4, 20), metavar=SPLITS, help="per event of each split")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    num_rows = write(
        args.source,
        args.out,
        length=args.length,
        max_train_events=args.max_train_events,
        num_negatives=dict(zip(SPLITS, args.negatives)),
        seed=args.seed,
    )
    print(", ".join(f"{split}: {count:,} rows" for split, count in num_rows.items()))


if __name__ == "__main__":
    main()
