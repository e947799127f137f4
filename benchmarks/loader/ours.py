"""Our own contenders: the loader in its settings, raw Parquet without a cache, and one copy of the same bytes as the limit."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from torchrec_models.pipelines.data import order
from torchrec_models.pipelines.data.loader import GatherKind, Loader, to_batch
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.data.sources import open_source

from .ctr import run_config

Epoch = Callable[[], Iterator[int]]


def from_cache(cache: Cache, *, batch_size: int, gather: GatherKind, id_dtype: torch.dtype, streamed: bool = True) -> Epoch:
    """Shuffled batches of the training split; each call is the next epoch. Streamed, as splits of more than 1 GiB are."""
    whole_bytes = order.WHOLE_BYTES
    order.WHOLE_BYTES = 0 if streamed else whole_bytes
    loader = Loader(cache, "train", batch_size=batch_size, shuffle=True, gather=gather, id_dtype=id_dtype)
    order.WHOLE_BYTES = whole_bytes
    number = iter(range(1 << 30))

    def epoch() -> Iterator[int]:
        for batch in loader.epoch(next(number)):
            yield batch.num_rows

    return epoch


def from_parquet(raw: Path, cache: Cache, *, batch_size: int) -> Epoch:
    """Raw rows through the fitted transforms, in the file's order: what predict does."""
    config, transforms = run_config(raw, cache.folder), cache.transforms

    def epoch() -> Iterator[int]:
        for source in open_source(config, [str(raw)]).batches():
            for start in range(0, source.batch.num_rows, batch_size):
                piece = source.batch.slice(start, batch_size)
                yield to_batch(cache.schema, transforms.encode(piece, where=str(raw), first_row=start)).num_rows

    return epoch


def memory_copy(row_bytes: int, *, batch_size: int) -> Epoch:
    """Copies as many bytes as a batch has, from memory far larger than the caches to a buffer that is used again: the limit."""
    num_batches = 64_000 // batch_size + 1
    source, target = (np.ones((n, batch_size * row_bytes), np.uint8) for n in (num_batches, 4))

    def epoch() -> Iterator[int]:
        for i in range(num_batches):
            target[i % 4] = source[i]
            yield batch_size

    return epoch
