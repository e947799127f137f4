"""Exact retrieval: encode every candidate that the data knows, score all of them for every query, judge the top k."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from torchrec_models.batch import Batch
from torchrec_models.model import CandidateId
from torchrec_models.retrieval_metrics import mrr, ndcg_at_k, recall_at_k

from .config import RunConfig
from .data.ids import Identity
from .data.rows import BatchBuilder, Rows, single_valued
from .data.shards import Cache
from .distributed import Built, Processes
from .evaluation.columns import group_codes

QUERY_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Corpus:
    """Every candidate once. Row 0 of a table is shared by all values that it does not know, and so is no candidate; a query for
    such a value is a miss. (Identity tables know all values, and have no such row.)

    Attributes:
        ids: [N] table rows of the candidate id, increasing.
        vectors: [N, K] float32.
    """

    ids: Tensor
    vectors: Tensor


def candidate_column(cache: Cache) -> int:
    """Where the candidate id stands in `Rows.ids`."""
    return [f.name for f in single_valued(cache.schema)].index(cache.schema.candidate_id)


def encode_corpus(built: Built, cache: Cache, config: RunConfig, procs: Processes) -> Corpus:
    """Candidates of all splits, each from the first row that shows it. Every process encodes all of them."""
    column = candidate_column(cache)
    first_rows: list[Rows] = []
    for split in cache.splits.values():
        for i, shard in enumerate(split.shards):
            rows = split.read(i, 0, shard.num_rows)
            _, first = np.unique(rows.ids[:, column].numpy(), return_index=True)
            first_rows.append(rows.take(torch.from_numpy(first)))
    rows = Rows.cat(first_rows)
    ids = _known(cache, rows.ids[:, column])
    _, first = np.unique(rows.ids[:, column].numpy(), return_index=True)
    rows = rows.take(torch.from_numpy(first[-len(ids) :]))
    build = BatchBuilder(cache.schema)
    vectors = []
    for start in range(0, rows.num_rows, config.evaluate.batch_size):
        piece = rows.slice(start, min(start + config.evaluate.batch_size, rows.num_rows))
        batch = build(piece, torch.arange(piece.num_rows)).to(procs.device)
        vectors.append(built.plain.model(batch)[1].float().cpu())
    return Corpus(ids, torch.cat(vectors))


def _known(cache: Cache, ids: Tensor) -> Tensor:
    """The candidates among ids [N], each once, increasing.

    Raises:
        ValueError: there are none.
    """
    table = cache.schema.feature(cache.schema.candidate_id).table
    found = ids.long().unique()
    found = found if isinstance(cache.transforms.tables[table], Identity) else found[found > 0]
    if not len(found):
        raise ValueError(f"no candidate to retrieve: the table {table!r} knows none of the data's {cache.schema.candidate_id}")
    return found


def retrieval_metrics(built: Built, cache: Cache, split: str, config: RunConfig, procs: Processes) -> dict[str, float]:
    """recall@k, NDCG@k and MRR of a split over the full corpus, each row a query with one relevant candidate, which counts by its
    weight (`data.weight`).

    With `retrieval.exclude_seen`, candidates that the row's group met in another split are taken out of its ranking, the relevant
    one too (a miss).
    """
    from .scoring import evaluation_loader, for_each_batch

    assert config.retrieval is not None
    corpus = encode_corpus(built, cache, config, procs)
    candidate_id = CandidateId(cache.schema)

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        return built.plain.model(batch)[0].float(), candidate_id(batch)

    queries, relevant = for_each_batch(evaluation_loader(cache, split, config, procs), procs, encode)
    found = _judge(queries, relevant, corpus, cache, split, config) if procs.is_first else {}
    shared = procs.broadcast(found)
    assert isinstance(shared, dict)
    return shared


def popularity_metrics(cache: Cache, split: str, config: RunConfig) -> dict[str, float]:
    """The same metrics of the model that ranks candidates by their number of training rows (the sum of their weights), for everyone
    alike; of equally many, the one with the lower id is first."""
    everywhere = _known(cache, torch.cat([_candidates(cache, name) for name in cache.splits]))
    weights = _weights(cache, "train").double()
    counts = torch.bincount(_candidates(cache, "train"), weights, minlength=int(everywhere.max()) + 1)[everywhere]
    place = torch.empty(len(counts))
    place[counts.argsort(descending=True, stable=True)] = torch.arange(len(counts), 0, -1).float()
    relevant = _candidates(cache, split)
    # one query "vector" and one column: the dot product is the place
    return _judge(torch.ones(len(relevant), 1), relevant, Corpus(everywhere, place[:, None]), cache, split, config)


def _candidates(cache: Cache, split: str) -> Tensor:
    """[N] int64: the candidate of every row of a split."""
    column, data = candidate_column(cache), cache.split(split)
    return torch.cat([data.read(i, 0, shard.num_rows).ids[:, column] for i, shard in enumerate(data.shards)]).long()


def _weights(cache: Cache, split: str) -> Tensor:
    """[N] float32: what every row of a split counts."""
    return torch.from_numpy(cache.split(split).weights()[:, 0])


def _judge(queries_QK: Tensor, relevant_Q: Tensor, corpus: Corpus, cache: Cache, split: str, config: RunConfig) -> dict[str, float]:
    assert config.retrieval is not None
    seen = seen_pairs(cache, split, corpus) if config.retrieval.exclude_seen else None
    k = max(config.retrieval.k)
    positions = top_k(queries_QK, corpus, k=k, seen=seen)
    retrieved = torch.where(positions >= 0, corpus.ids[positions.clamp(min=0)], -1)
    weights = _weights(cache, split)
    found = {}
    for at in config.retrieval.k:
        found[f"recall@{at}"] = recall_at_k(retrieved, relevant_Q, k=at, weights=weights)
        found[f"ndcg@{at}"] = ndcg_at_k(retrieved, relevant_Q, k=at, weights=weights)
    found[f"mrr@{k}"] = mrr(retrieved, relevant_Q, k=k, weights=weights)
    return found


@dataclass(frozen=True)
class Seen:
    """For query i, corpus positions `positions[offsets[i] : offsets[i + 1]]` are left out."""

    offsets: Tensor
    positions: Tensor


def seen_pairs(cache: Cache, split: str, corpus: Corpus) -> Seen:
    """What the group of each row of `split` met in the other splits; nothing where the group is missing.

    Raises:
        ValueError: no group column.
    """
    if "group" not in cache.split(split).columns:
        raise ValueError("retrieval.exclude_seen needs data.group (the column that identifies the user)")
    groups = {name: s.column("group") for name, s in cache.splits.items()}
    codes = group_codes(pa.chunked_array([chunk for g in groups.values() for chunk in g.chunks]))
    assert codes is not None
    parts = dict(zip(groups, codes.split([len(g) for g in groups.values()])))
    others = [name for name in groups if name != split]
    if not others:
        return Seen(torch.zeros(len(parts[split]) + 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    group, item = torch.cat([parts[name] for name in others]), torch.cat([_candidates(cache, name) for name in others])
    known = torch.isin(item, corpus.ids)
    group, order = group[known].sort(stable=True)
    position = torch.searchsorted(corpus.ids, item[known][order])
    start, stop = torch.searchsorted(group, parts[split]), torch.searchsorted(group, parts[split], right=True)
    lengths = stop - start
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    where = torch.repeat_interleave(start - offsets[:-1], lengths) + torch.arange(int(offsets[-1]))
    return Seen(offsets, position[where])


def top_k(queries_QK: Tensor, corpus: Corpus, *, k: int, seen: Seen | None = None) -> Tensor:
    """[Q, k] corpus positions by falling dot product, exact; -1 at the end where fewer than k are left."""
    num_found = min(k, len(corpus.ids))
    best = []
    for start in range(0, len(queries_QK), QUERY_CHUNK_ROWS):
        stop = min(start + QUERY_CHUNK_ROWS, len(queries_QK))
        scores = queries_QK[start:stop] @ corpus.vectors.T
        if seen is not None:
            first, last = int(seen.offsets[start]), int(seen.offsets[stop])
            row = torch.repeat_interleave(torch.arange(stop - start), seen.offsets[start : stop + 1].diff())
            scores[row, seen.positions[first:last]] = float("-inf")
        top = scores.topk(num_found, dim=1)
        best.append(top.indices.masked_fill(top.values == float("-inf"), -1))
    return F.pad(torch.cat(best), (0, k - num_found), value=-1)
