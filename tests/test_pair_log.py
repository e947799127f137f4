"""Feature stores on the whole road: a ranker and a retriever are trained, evaluated, exported and asked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.data.make_pairs import write_pairs
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.cli import main
from torchrec_models.pipelines.data.prepare import open_prepared, prepare
from torchrec_models.pipelines.data.raw_join import joined_rows
from torchrec_models.pipelines.data.transforms import Transforms
from torchrec_models.pipelines.export.run import export_run
from torchrec_models.pipelines.predict import predict
from torchrec_models.pipelines.serving.bundle import Bundle
from torchrec_models.pipelines.train import train

NUM_PAIRS, DAYS = 1200, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bids")
    write_pairs(folder, num_rows=80, num_pairs=NUM_PAIRS, num_chunks=DAYS, num_dense=4, num_categories=2)
    return folder


def config_of(folder: Path, model: str) -> C.RunConfig:
    retrieves = model == "two_tower"
    sides = {"notices": "query", "companies": "candidate"}
    features: dict[str, dict[str, Any]] = {}
    for store, side in sides.items():
        here = {"store": store, **({"side": side} if retrieves else {})}
        features |= {f"{store}_n_{{1..4}}": {"kind": "numeric", **here}}
        features |= {f"{store}_c_{{1..2}}": {"kind": "categorical", "dim": 4, **here}}
    if retrieves:
        features["company"] = {"kind": "categorical", "column": "company_id", "dim": 4, "side": "candidate"}
    raw = {
        "run": str(folder / model),
        "data": {
            "train": str(folder / "pairs-*.parquet"),
            "split": {"by": "column", "column": "day", "train": [0], "valid": [1], "test": [2]},
            "stores": {
                "notices": {"files": str(folder / "notices.parquet"), "key": "notice_id"},
                "companies": {"files": str(folder / "companies.parquet"), "key": "company_id"},
            },
            "cache": str(folder / f"cache-{model}"),
        },
        "features": features,
        "model": {"name": model},
        "train": {"batch_size": 100, "tensorboard": False},
        **({"retrieval": {"candidate_id": "company", "k": [5], "exclude_seen": False}} if retrieves else {"labels": {"bid": {}}}),
    }
    return C.parse(raw)


@pytest.fixture(scope="module")
def ranker(data: Path) -> C.RunConfig:
    config = config_of(data, "dcnv2")
    prepare(config, progress=False)
    train(config, progress=False)
    return config


def test_a_ranker_scores_pairs_as_its_bundle_scores_joined_rows(ranker: C.RunConfig, data: Path, tmp_path: Path) -> None:
    run, pairs = Path(ranker.run), data / "pairs-02.parquet"
    assert predict(run, [str(pairs)], tmp_path / "p.parquet", progress=False).num_rows == NUM_PAIRS // DAYS
    scores = pq.read_table(tmp_path / "p.parquet")["bid"].to_numpy()
    export_run(run, out=tmp_path / "bundle")
    transforms = Transforms.load(tmp_path / "bundle")
    columns = list(transforms.columns.values())
    assert "companies.n_4" in columns and "notice_id" not in columns
    rows = pa.concat_tables(joined_rows(ranker, [str(pairs)], columns))
    assert rows.num_rows == NUM_PAIRS // DAYS
    bundle = Bundle(tmp_path / "bundle")
    bundle.self_test()
    np.testing.assert_allclose(bundle.predict(rows)[:, 0], scores, atol=1e-6)
    pq.write_table(rows, tmp_path / "joined.parquet")
    assert main(["predict", str(tmp_path / "bundle"), str(tmp_path / "joined.parquet"), "--out", str(tmp_path / "b.parquet")]) == 0
    np.testing.assert_allclose(pq.read_table(tmp_path / "b.parquet")["bid"].to_numpy(), scores, atol=1e-6)


def test_a_bundle_says_what_to_do_with_rows_of_ids(
    ranker: C.RunConfig, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_run(Path(ranker.run), out=tmp_path / "bundle")
    inputs = [str(tmp_path / "bundle"), str(data / "pairs-02.parquet")]
    assert main(["predict", *inputs, "--out", str(tmp_path / "p.parquet")]) == 2
    error = capsys.readouterr().err
    assert "no column 'notices.n_1': a bundle has no feature stores" in error and "trm predict RUN" in error


def test_evaluation_is_that_of_the_predictions(ranker: C.RunConfig, data: Path, tmp_path: Path) -> None:
    """Day 2 is the test split; the metrics file and a score by hand agree."""
    assert main(["evaluate", ranker.run, "--split", "test"]) == 0
    found = json.loads((Path(ranker.run) / "evaluation" / "test" / "metrics.json").read_text())
    predict(Path(ranker.run), [str(data / "pairs-02.parquet")], tmp_path / "p.parquet", progress=False)
    score = pq.read_table(tmp_path / "p.parquet")["bid"].to_numpy().astype(np.float64)
    label = pq.read_table(data / "pairs-02.parquet")["bid"].to_numpy()
    log_loss = -np.where(label, np.log(score), np.log1p(-score)).mean()
    assert found["tasks"]["bid"]["metrics"]["log_loss"]["value"] == pytest.approx(log_loss, rel=1e-5)


def test_stores_are_read_as_they_are_when_rows_are_scored(ranker: C.RunConfig, data: Path, tmp_path: Path) -> None:
    """A company that came after the training: known by its features alone. One that no store has: as the config says."""
    companies = pq.read_table(data / "companies.parquet")
    known = companies.slice(0, 1)
    pairs = pq.read_table(data / "pairs-00.parquet").slice(0, 3).to_pylist()
    pairs[0]["company_id"], pairs[1]["company_id"], pairs[2]["company_id"] = known["company_id"][0].as_py(), "new", "nobody"
    for pair in pairs:
        pair["notice_id"] = pairs[0]["notice_id"]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "pairs.parquet")
    try:
        new = known.set_column(0, "company_id", pa.array(["new"]))
        pq.write_table(pa.concat_tables([companies, new]), data / "companies.parquet")
        predict(Path(ranker.run), [str(tmp_path / "pairs.parquet")], tmp_path / "p.parquet", progress=False)
    finally:
        pq.write_table(companies, data / "companies.parquet")
    scores = pq.read_table(tmp_path / "p.parquet")["bid"].to_pylist()
    assert scores[1] == pytest.approx(scores[0], rel=1e-5) and abs(scores[2] - scores[0]) > 1e-4 and 0 < scores[2] < 1


def test_a_retriever_trains_on_two_stores_and_indexes_its_candidates(data: Path, tmp_path: Path) -> None:
    config = config_of(data, "two_tower")
    prepare(config, progress=False)
    result = train(config, progress=False)
    assert set(result.metrics) == {"recall@5", "ndcg@5", "mrr@5"} and 0 <= result.metrics["recall@5"] <= 1
    assert main(["evaluate", config.run, "--split", "test"]) == 0
    export_run(Path(config.run), out=tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    bundle.self_test()
    cache = open_prepared(config)
    position = [f.name for f in cache.schema.categorical].index("company")
    known = {int(i) for split in cache.splits.values() for i in split.read(0, 0, split.num_rows).ids[:, position]} - {0}
    assert bundle.index is not None and len(bundle.index.ids) == len(known)
