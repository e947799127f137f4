"""Exact retrieval: encode every candidate that the data knows, score all of them for every query, judge the top k."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from torchrec_models.batch import Batch
from torchrec_models.model import CandidateId
from torchrec_models.retrieval_metrics import mrr, ndcg_at_k, recall_at_k

from .config import RunConfig
from .data.rows import BatchBuilder, Rows, single_valued
from .data.shards import Cache
from .distributed import Built, Processes

QUERY_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Corpus:
    """Every candidate once.

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
    ids, first = np.unique(rows.ids[:, column].numpy(), return_index=True)
    rows = rows.take(torch.from_numpy(first))
    build = BatchBuilder(cache.schema)
    vectors = []
    for start in range(0, rows.num_rows, config.evaluate.batch_size):
        piece = rows.slice(start, min(start + config.evaluate.batch_size, rows.num_rows))
        batch = build(piece, torch.arange(piece.num_rows)).to(procs.device)
        vectors.append(built.plain.model(batch)[1].float().cpu())
    return Corpus(torch.from_numpy(ids).long(), torch.cat(vectors))


def retrieval_metrics(built: Built, cache: Cache, split: str, config: RunConfig, procs: Processes) -> dict[str, float]:
    """recall@k, NDCG@k and MRR of a split over the full corpus, each row a query with one relevant candidate.

    With `retrieval.exclude_seen`, candidates that the row's group met in another split are taken out of its ranking.
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
    """The same metrics of the model that ranks candidates by their number of training rows, for everyone alike."""
    column = candidate_column(cache)

    def ids_of(name: str) -> Tensor:
        data = cache.split(name)
        return torch.cat([data.read(i, 0, s.num_rows).ids[:, column] for i, s in enumerate(data.shards)]).long()

    everywhere = torch.cat([ids_of(name) for name in cache.splits]).unique()
    counts = torch.bincount(ids_of("train"), minlength=int(everywhere.max()) + 1)[everywhere]
    relevant = ids_of(split)
    # one query "vector" and one column of counts: the dot product is the count
    corpus = Corpus(everywhere, counts[:, None].float())
    return _judge(torch.ones(len(relevant), 1), relevant, corpus, cache, split, config)


def _judge(queries_QK: Tensor, relevant_Q: Tensor, corpus: Corpus, cache: Cache, split: str, config: RunConfig) -> dict[str, float]:
    assert config.retrieval is not None
    seen = seen_pairs(cache, split, corpus) if config.retrieval.exclude_seen else None
    k = max(config.retrieval.k)
    retrieved = corpus.ids[top_k(queries_QK, corpus, k=k, seen=seen)]
    found = {}
    for at in config.retrieval.k:
        found[f"recall@{at}"] = recall_at_k(retrieved, relevant_Q, k=at)
        found[f"ndcg@{at}"] = ndcg_at_k(retrieved, relevant_Q, k=at)
    found[f"mrr@{k}"] = mrr(retrieved, relevant_Q, k=k)
    return found


@dataclass(frozen=True)
class Seen:
    """For query i, corpus positions `positions[offsets[i] : offsets[i + 1]]` are left out."""

    offsets: Tensor
    positions: Tensor


def seen_pairs(cache: Cache, split: str, corpus: Corpus) -> Seen:
    """What the group of each row of `split` met in the other splits.

    Raises:
        ValueError: no group column.
    """
    if "group" not in cache.split(split).columns:
        raise ValueError("retrieval.exclude_seen needs data.group (the column that identifies the user)")
    column = candidate_column(cache)
    groups = {name: s.column("group") for name, s in cache.splits.items()}
    together = pa.chunked_array([chunk for g in groups.values() for chunk in g.chunks]).combine_chunks()
    codes = np.asarray(together.dictionary_encode(null_encoding="encode").indices)
    parts = dict(zip(groups, np.split(codes, np.cumsum([len(g) for g in groups.values()])[:-1])))
    other_group, other_item = [], []
    for name, data in cache.splits.items():
        if name == split:
            continue
        items = torch.cat([data.read(i, 0, s.num_rows).ids[:, column] for i, s in enumerate(data.shards)]).numpy()
        other_group.append(parts[name])
        other_item.append(np.searchsorted(corpus.ids.numpy(), items))
    group, item = np.concatenate(other_group), np.concatenate(other_item)
    order = np.argsort(group, kind="stable")
    group, item = group[order], item[order]
    start, stop = np.searchsorted(group, parts[split]), np.searchsorted(group, parts[split], side="right")
    lengths = stop - start
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    where = np.repeat(start - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Seen(torch.from_numpy(offsets), torch.from_numpy(item[where]))


def top_k(queries_QK: Tensor, corpus: Corpus, *, k: int, seen: Seen | None = None) -> Tensor:
    """[Q, k] corpus positions by falling dot product, exact."""
    k = min(k, len(corpus.ids))
    best = []
    for start in range(0, len(queries_QK), QUERY_CHUNK_ROWS):
        stop = min(start + QUERY_CHUNK_ROWS, len(queries_QK))
        scores = queries_QK[start:stop] @ corpus.vectors.T
        if seen is not None:
            first, last = int(seen.offsets[start]), int(seen.offsets[stop])
            row = torch.repeat_interleave(torch.arange(stop - start), seen.offsets[start : stop + 1].diff())
            scores[row, seen.positions[first:last]] = float("-inf")
        best.append(scores.topk(k, dim=1).indices)
    return torch.cat(best)
