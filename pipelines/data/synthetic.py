"""Generated data whose truth is known: a click log with its Bayes probabilities, and caches of random rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from torchrec_models.schema import Schema

from .manifest import write_manifest
from .rows import Rows, list_valued, single_valued
from .shard_writer import ShardWriter
from .shards import Cache

_NUM_TAGS = 20
_MAX_TAGS = 4
_MAX_HISTORY = 8


@dataclass(frozen=True)
class ClickLog:
    """A generated log.

    Attributes:
        table: user, item (int64), device (string, nulls), age (float64, nulls), price (float64), tags (list<string>), history
            (list<int64> of items), time (int64, growing), label (int8).
        probability: [num_rows] float64, P(label = 1 | the row): no model can do better than to know it.
    """

    table: pa.Table
    probability: np.ndarray


def click_log(num_rows: int, *, num_users: int = 200, num_items: int = 100, null_share: float = 0.05, seed: int = 0) -> ClickLog:
    """Clicks drawn from a logistic model with known weights.

    logit = -1 + user + item + 0.8 * (price - 1) + device + mean of the tags' weights + [1.2 if the item is in the history];
    a null device or age weighs 0, and age matters not at all.

    Args:
        num_users, num_items: ids are 0 .. n - 1, drawn with probability ~ 1 / (rank + 2).
        null_share: of `device` and of `age`.
        seed: equal arguments give an equal log with one numpy version.
    """
    random = np.random.default_rng(seed)

    def popular(count: int, size: int) -> np.ndarray:
        share = 1 / (np.arange(count) + 2)
        return random.choice(count, size=size, p=share / share.sum())

    user_weight, item_weight = random.normal(0, 0.7, num_users), random.normal(0, 0.7, num_items)
    tag_weight = random.normal(0, 0.5, _NUM_TAGS)
    user, item = popular(num_users, num_rows), popular(num_items, num_rows)
    device = random.integers(0, 3, num_rows)
    device_is_null, age_is_null = random.random(num_rows) < null_share, random.random(num_rows) < null_share
    price = random.gamma(2.0, 0.5, num_rows)
    num_tags = random.integers(0, _MAX_TAGS + 1, num_rows)
    tags = random.integers(0, _NUM_TAGS, num_tags.sum())
    num_history = random.integers(0, _MAX_HISTORY + 1, num_rows)
    history = popular(num_items, num_history.sum())

    tag_sum = np.bincount(np.repeat(np.arange(num_rows), num_tags), tag_weight[tags], minlength=num_rows)
    of_row = np.repeat(np.arange(num_rows), num_history)
    seen = np.bincount(of_row, history == item[of_row], minlength=num_rows) > 0
    logit = -1 + user_weight[user] + item_weight[item] + 0.8 * (price - 1) + 1.2 * seen
    logit += np.where(device_is_null, 0, np.array([-0.5, 0.0, 0.5])[device]) + tag_sum / np.maximum(num_tags, 1)
    probability = 1 / (1 + np.exp(-logit))

    def lists(values: pa.Array, counts: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32()), values)

    table = pa.table(
        {
            "user": user,
            "item": item,
            "device": pa.array(np.array(["phone", "tablet", "desktop"])[device], mask=device_is_null),
            "age": pa.array(random.integers(18, 80, num_rows).astype(np.float64), mask=age_is_null),
            "price": price,
            "tags": lists(pa.array(np.char.add("t", tags.astype(str))), num_tags),
            "history": lists(pa.array(history), num_history),
            "time": np.sort(random.integers(0, 10 * num_rows + 1, num_rows)),
            "label": (random.random(num_rows) < probability).astype(np.int8),
        }
    )
    return ClickLog(table, probability)


def random_rows(schema: Schema, num_rows: int, *, seed: int = 0) -> Rows:
    """Rows that fit a schema: dense N(0, 1), ids uniform over their tables, list lengths 0 .. max_len, binary labels, weights 1."""
    random = np.random.default_rng(seed)
    singles = [random.integers(0, schema.table(f.table).num_rows, num_rows, dtype=np.int32) for f in single_valued(schema)]
    lists = []
    for feature in list_valued(schema):
        offsets = np.concatenate([[0], np.cumsum(random.integers(0, feature.max_len + 1, num_rows))])
        values = random.integers(0, schema.table(feature.table).num_rows, offsets[-1], dtype=np.int32)
        lists.append((torch.from_numpy(values), torch.from_numpy(offsets)))
    num_tasks = len(schema.tasks)
    return Rows(
        dense=torch.from_numpy(random.standard_normal((num_rows, len(schema.dense)), dtype=np.float32)),
        ids=torch.from_numpy(np.stack(singles, axis=1)) if singles else torch.empty(num_rows, 0, dtype=torch.int32),
        lists=tuple(lists),
        labels=torch.from_numpy(random.integers(0, 2, (num_rows, num_tasks)).astype(np.float32)),
        weights=torch.ones(num_rows, max(num_tasks, 1)),
    )


def random_cache(
    folder: str | Path, schema: Schema, splits: Mapping[str, int], *, rows_per_shard: int = 1_000_000, seed: int = 0
) -> Cache:
    """A finished cache of `random_rows`, without sources, side columns or transforms.

    Args:
        splits: split name -> rows.
    """
    folder = Path(folder)
    shards = {}
    for i, (name, num_rows) in enumerate(splits.items()):
        writer = ShardWriter(folder / name, schema, pa.schema([]), rows_per_shard=rows_per_shard)
        for start in range(0, num_rows, rows_per_shard):
            part = random_rows(schema, min(rows_per_shard, num_rows - start), seed=seed + 1000 * i + start)
            writer.append(part, pa.table({}))
        writer.close()
        shards[name] = writer.shards
    write_manifest(folder, schema=schema, shards=shards, fingerprint=f"random-{seed}", inputs={}, versions={})
    return Cache.open(folder)
