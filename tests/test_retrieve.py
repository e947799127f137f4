"""Exact retrieval against a loop in plain Python over raw rows: the corpus, the ranking, what is left out, and the metrics."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from torchrec_models.pipelines import checkpoint, checkpoint_folder
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.checkpoint import load_model
from torchrec_models.pipelines.data.loader import to_batch
from torchrec_models.pipelines.data.prepare import open_prepared, prepare
from torchrec_models.pipelines.data.transforms import Transforms
from torchrec_models.pipelines.distributed import build_task, processes
from torchrec_models.pipelines.evaluation.run import evaluate_run
from torchrec_models.pipelines.predict import predict
from torchrec_models.pipelines.retrieve import Corpus, Seen, encode_corpus, popularity_metrics, retrieval_metrics, top_k
from torchrec_models.pipelines.scoring import evaluation_mode
from torchrec_models.pipelines.train import train

SPLITS = ("train", "valid", "test")
K = (1, 4, 12)
NUM_TRAIN_ITEMS = 25


def write_files(folder: Path) -> None:
    """Users of whom some are null, items of which some are new in each split, a candidate's price that changes from row to row, and
    weights, of which some are 0."""
    random = np.random.default_rng(0)
    for name, num_rows, num_items in (("train", 300, NUM_TRAIN_ITEMS), ("valid", 50, 28), ("test", 70, 31)):
        num_watched = random.integers(0, 6, num_rows)
        offsets = pa.array(np.append(0, num_watched.cumsum()), pa.int32())
        table = {
            "user": pa.array(random.integers(0, 15, num_rows), mask=random.random(num_rows) < 0.1),
            "item": (num_items * random.random(num_rows) ** 2).astype(np.int64) * 10,
            "price": random.random(num_rows),
            "share": random.choice([0.0, 1.0, 2.5], num_rows),
            "history": pa.ListArray.from_arrays(offsets, pa.array(random.integers(0, 25, num_watched.sum()) * 10)),
        }
        pq.write_table(pa.table(table), folder / f"{name}.parquet")


def make_config(folder: Path, kind: str) -> C.RunConfig:
    """`jagged`: the item's table also serves a history, and so lies in an EmbeddingCollection; `pooled`: in a bag collection, and
    rows have weights."""
    features: dict[str, Any] = {
        "user": {"kind": "categorical", "dim": 8, "side": "query", "init_std": 0.5},
        "item": {"kind": "categorical", "dim": 8, "side": "candidate", "init_std": 0.5},
        "price": {"kind": "numeric", "side": "candidate"},
    }
    if kind == "jagged":
        features["history"] = {"kind": "sequence", "table": "item", "max_len": 4, "side": "query"}
    data: dict[str, Any] = {name: str(folder / f"{name}.parquet") for name in SPLITS}
    raw = {
        "run": str(folder / kind),
        "data": {
            **data,
            "cache": str(folder / f"cache-{kind}"),
            "group": "user",
            "weight": "share" if kind == "pooled" else "",
            "rows_per_shard": 64,
        },
        "features": features,
        "retrieval": {"candidate_id": "item", "k": list(K)},
        "model": {"name": "two_tower", "out_width": 8, "query": {"hidden_units": []}, "candidate": {"hidden_units": []}},
        "train": {"batch_size": 50, "steps": 4, "tensorboard": False},
        "evaluate": {"batch_size": 32},
    }
    return C.parse(raw)


@pytest.fixture(scope="module", params=["pooled", "jagged"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> C.RunConfig:
    folder = tmp_path_factory.mktemp(request.param)
    write_files(folder)
    config = make_config(folder, request.param)
    prepare(config, progress=False)
    train(config, progress=False)
    return config


def with_retrieval(config: C.RunConfig, **changes: Any) -> C.RunConfig:
    assert config.retrieval is not None
    return config.model_copy(update={"retrieval": config.retrieval.model_copy(update=changes)})


def raw_rows(config: C.RunConfig) -> dict[str, pa.Table]:
    return {name: pq.read_table(getattr(config.data, name)[0]) for name in SPLITS}


def raw_weights(config: C.RunConfig, split: str) -> list[float]:
    rows = raw_rows(config)[split]
    return rows[config.data.weight].to_pylist() if config.data.weight else [1.0] * len(rows)


@torch.no_grad()
def vectors(config: C.RunConfig, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Query and candidate vectors [N, K] of raw rows, from the unsharded model."""
    loaded = load_model(Path(config.run))
    encoded = Transforms.load(loaded.transforms).encode(rows, where="rows", first_row=0)
    query, candidate = loaded.model(to_batch(loaded.schema, encoded))
    return query.double().numpy(), candidate.double().numpy()


def corpus_by_hand(config: C.RunConfig) -> dict[int, np.ndarray]:
    """Item -> vector, of the first row that shows it in any split; items that no training row has are not known."""
    known = set(pq.read_table(config.data.train[0])["item"].to_pylist())
    found: dict[int, np.ndarray] = {}
    for rows in raw_rows(config).values():
        for item, vector in zip(rows["item"].to_pylist(), vectors(config, rows)[1]):
            if item in known:
                found.setdefault(item, vector)
    return found


def judge_by_hand(
    rankings: list[list[int]], relevant: list[int], weights: list[float], ks: tuple[int, ...] = K
) -> dict[str, float]:
    ranks = [ranking.index(item) + 1 if item in ranking else math.inf for ranking, item in zip(rankings, relevant)]
    weighted = list(zip(ranks, weights))
    found = {}
    for k in ks:
        found[f"recall@{k}"] = sum(w for rank, w in weighted if rank <= k) / sum(weights)
        found[f"ndcg@{k}"] = sum(w / math.log2(rank + 1) for rank, w in weighted if rank <= k) / sum(weights)
    found[f"mrr@{max(ks)}"] = sum(w / rank for rank, w in weighted if rank <= max(ks)) / sum(weights)
    return found


def seen_by_hand(config: C.RunConfig, split: str) -> list[set[int]]:
    """Per row of the split, what its user has in other splits; nothing for a user who is not known."""
    rows = {name: list(zip(*(table[c].to_pylist() for c in ("user", "item")))) for name, table in raw_rows(config).items()}
    pairs = [pair for name in SPLITS if name != split for pair in rows[name]]
    return [{item for other, item in pairs if other == user and user is not None} for user, _ in rows[split]]


def rankings_by_hand(config: C.RunConfig, split: str, *, exclude_seen: bool) -> list[list[int]]:
    corpus = corpus_by_hand(config)
    queries = vectors(config, raw_rows(config)[split])[0]
    seen = seen_by_hand(config, split) if exclude_seen else [set()] * len(queries)
    rankings = []
    for query, left_out in zip(queries, seen):
        scores = {item: float(query @ vector) for item, vector in corpus.items() if item not in left_out}
        rankings.append(sorted(scores, key=lambda item: -scores[item]))
    return rankings


def metrics_of(config: C.RunConfig, split: str = "test") -> dict[str, float]:
    cache = open_prepared(config)
    with processes() as procs:
        built = build_task(config, cache.schema, procs)
        checkpoint.load_weights(checkpoint_folder.choose(Path(config.run)), built.state_dict(), averaged=False)
        with evaluation_mode(built):
            return retrieval_metrics(built, cache, split, config, procs)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_metrics_are_those_of_a_loop(config: C.RunConfig, split: str, exclude_seen: bool) -> None:
    relevant = raw_rows(config)[split]["item"].to_pylist()
    want = judge_by_hand(rankings_by_hand(config, split, exclude_seen=exclude_seen), relevant, raw_weights(config, split))
    found = metrics_of(with_retrieval(config, exclude_seen=exclude_seen), split)
    assert found == pytest.approx(want)
    assert 0 < found["recall@4"] < found["recall@12"] < 1


def test_leaving_seen_items_out_matters_here(config: C.RunConfig) -> None:
    seen, relevant = seen_by_hand(config, "test"), raw_rows(config)["test"]["item"].to_pylist()
    assert any(not s for s in seen) and any(item in s for item, s in zip(relevant, seen))
    assert metrics_of(config) != metrics_of(with_retrieval(config, exclude_seen=False))


def test_the_corpus_has_the_known_items_of_all_splits(config: C.RunConfig) -> None:
    cache = open_prepared(config)
    with processes() as procs:
        built = build_task(config, cache.schema, procs)
        checkpoint.load_weights(checkpoint_folder.choose(Path(config.run)), built.state_dict(), averaged=False)
        with evaluation_mode(built):
            corpus = encode_corpus(built, cache, config, procs)
    by_hand = corpus_by_hand(config)
    values = cache.transforms.tables["item"].values.to_pylist()  # value i is row i + 1; row 0, the unknown items, is left out
    assert [values[i - 1] for i in corpus.ids.tolist()] == sorted(by_hand, key=values.index)
    want = np.stack([by_hand[values[i - 1]] for i in corpus.ids.tolist()])
    np.testing.assert_allclose(corpus.vectors.numpy(), want, atol=1e-6)


def test_a_candidate_that_training_never_saw_is_a_miss(config: C.RunConfig) -> None:
    relevant = raw_rows(config)["test"]["item"].to_pylist()
    weights, known = raw_weights(config, "test"), corpus_by_hand(config)
    unknown = sum(weight for item, weight in zip(relevant, weights) if item not in known)
    found = metrics_of(with_retrieval(config, exclude_seen=False, k=[1000]))
    assert unknown > 0 and found["recall@1000"] == pytest.approx(1 - unknown / sum(weights))


def test_more_than_there_are_candidates_may_be_asked_for(config: C.RunConfig) -> None:
    relevant = raw_rows(config)["test"]["item"].to_pylist()
    want = judge_by_hand(rankings_by_hand(config, "test", exclude_seen=True), relevant, raw_weights(config, "test"), (4, 1000))
    assert metrics_of(with_retrieval(config, k=[4, 1000])) == pytest.approx(want)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_popularity_ranks_by_training_rows_then_by_id(config: C.RunConfig, exclude_seen: bool) -> None:
    rows, cache = raw_rows(config), open_prepared(config)
    counts: Counter[int] = Counter()
    for item, weight in zip(rows["train"]["item"].to_pylist(), raw_weights(config, "train")):
        counts[item] += weight
    values = cache.transforms.tables["item"].values.to_pylist()
    order = sorted(counts, key=lambda item: (-counts[item], values.index(item)))
    relevant = rows["test"]["item"].to_pylist()
    seen = seen_by_hand(config, "test") if exclude_seen else [set()] * len(relevant)
    want = judge_by_hand([[item for item in order if item not in s] for s in seen], relevant, raw_weights(config, "test"))
    assert popularity_metrics(cache, "test", with_retrieval(config, exclude_seen=exclude_seen)) == pytest.approx(want)


def test_evaluation_writes_both(config: C.RunConfig) -> None:
    text = evaluate_run(Path(config.run), progress=False)
    found = json.loads((Path(config.run) / "evaluation" / "test" / "metrics.json").read_text())["tasks"]["retrieval"]
    assert found["metrics"] == pytest.approx(metrics_of(config))
    assert found["base"] == pytest.approx(popularity_metrics(open_prepared(config), "test", config))
    assert found["base_name"] == "popularity" and "recall@12" in text


def test_two_processes_retrieve_what_one_retrieves(config: C.RunConfig) -> None:
    if "history" not in config.features:
        pytest.skip("one kind is enough: the sharded collections are tested by themselves")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "torchrec_models.pipelines.cli", "evaluate", config.run, "--split", "valid"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("popularity") == 1, "every process reports"
    found = json.loads((Path(config.run) / "evaluation" / "valid" / "metrics.json").read_text())["tasks"]["retrieval"]
    assert found["metrics"] == pytest.approx(metrics_of(config, "valid"))


def test_predict_refuses_a_retrieval_run(config: C.RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a retrieval model: it gives vectors, not scores of rows"):
        predict(Path(config.run), config.data.test, tmp_path / "p.csv", progress=False)
    assert not list(tmp_path.iterdir())


def test_top_k_over_several_chunks_of_queries_is_a_sort() -> None:
    random = torch.Generator().manual_seed(0)
    num_queries, num_candidates = 2500, 40
    queries, candidates = (torch.randn(n, 6, generator=random, dtype=torch.float64) for n in (num_queries, num_candidates))
    lengths = torch.randint(0, num_candidates + 1, (num_queries,), generator=random)
    positions = torch.cat([torch.randperm(num_candidates, generator=random)[: int(n)] for n in lengths])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    found = top_k(queries, Corpus(torch.arange(num_candidates), candidates), k=7, seen=Seen(offsets, positions))
    scores = (queries @ candidates.T).numpy()
    for i in range(num_queries):
        left_out = set(positions[offsets[i] : offsets[i + 1]].tolist())
        best = [c for c in np.argsort(-scores[i]) if c not in left_out][:7]
        assert found[i].tolist() == best + [-1] * (7 - len(best))


def test_seen_items_need_a_group(tmp_path: Path) -> None:
    raw = make_config(tmp_path, "pooled").model_dump(mode="json")
    raw["data"]["group"] = ""
    with pytest.raises(C.ConfigError, match=r"retrieval\.exclude_seen: needs data\.group"):
        C.parse(raw)
    raw["retrieval"]["exclude_seen"] = False
    assert not C.parse(raw).data.group
