"""Core-sets: scores against their definition, the choice against its expectation, and a run that trains on exactly these rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.cli import main
from torchrec_models.pipelines.data.loader import Loader
from torchrec_models.pipelines.data.prepare import open_prepared, prepare
from torchrec_models.pipelines.data.sampling import sampling_of
from torchrec_models.pipelines.data.selection import Selection
from torchrec_models.pipelines.data.synthetic import click_log
from torchrec_models.pipelines.scoring import Scores
from torchrec_models.pipelines.select_rows import choose, el2n, select
from torchrec_models.pipelines.train import train

LOG = click_log(4000, num_users=20, num_items=20, seed=5)


def config_of(folder: Path, **train_options: Any) -> C.RunConfig:
    return C.parse(
        {
            "run": str(folder / "run"),
            "data": {
                "train": str(folder / "rows.parquet"),
                "cache": str(folder / "cache"),
                "split": {"by": "fold", "num_folds": 4},
            },
            "features": {name: {"kind": "categorical", "dim": 4} for name in ("user", "item")},
            "labels": {"label": {}},
            "model": {"name": "deepfm", "hidden_units": [16]},
            "train": {"batch_size": 250, "epochs": 2, "dense": {"lr": 0.02}, "tensorboard": False, **train_options},
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    pq.write_table(LOG.table, folder / "rows.parquet")
    prepare(config_of(folder), progress=False)
    return folder


def test_el2n_is_the_norm_of_the_error_vector() -> None:
    """Definition 2.2 of the paper, on (1 - p, p) and the one-hot label; tasks side by side are one longer vector."""
    random = torch.Generator().manual_seed(0)
    p, y = torch.rand(50, 2, generator=random), (torch.rand(50, 2, generator=random) < 0.5).float()
    weights = torch.ones(50, 2)
    vectors = torch.cat([torch.stack([1 - p[:, t] - (1 - y[:, t]), p[:, t] - y[:, t]], dim=1) for t in range(2)], dim=1)
    np.testing.assert_allclose(el2n(Scores(p, y, weights)), vectors.norm(dim=1).numpy(), rtol=1e-6)
    weights[:, 1] = 0
    np.testing.assert_allclose(el2n(Scores(p, y, weights)), np.sqrt(2) * (p - y).abs()[:, 0], rtol=1e-6)


def test_hard_rows_are_the_hardest_and_random_ones_stand_for_the_rest() -> None:
    scores = np.random.default_rng(0).random(1000).astype(np.float32)
    rows, weights = choose(1000, scores, keep=0.3, hard_share=1.0, weighted=True, seed=0)
    assert set(rows) == set(np.argsort(scores)[-300:])
    assert (weights == 1).all()
    rows, weights = choose(1000, scores, keep=0.3, hard_share=0.4, weighted=True, seed=0)
    assert (np.diff(rows) > 0).all()
    hard = set(np.argsort(scores)[-120:])
    assert hard <= set(rows)
    is_hard = np.isin(rows, list(hard))
    assert (weights[is_hard] == 1).all()
    np.testing.assert_allclose(weights[~is_hard], 880 / 180)
    # the expected sum over the sample is the sum over all rows
    value = np.random.default_rng(1).random(1000)
    sums = [
        float(weights @ value[rows])
        for rows, weights in (choose(1000, scores, keep=0.3, hard_share=0.4, weighted=True, seed=s) for s in range(300))
    ]
    assert np.mean(sums) == pytest.approx(value.sum(), abs=4 * np.std(sums) / np.sqrt(300))
    assert (choose(1000, scores, keep=0.3, hard_share=0.4, weighted=False, seed=0)[1] == 1).all()
    other = choose(1000, None, keep=0.3, hard_share=0.0, weighted=True, seed=1)[0]
    assert 50 < len(np.intersect1d(other, choose(1000, None, keep=0.3, hard_share=0.0, weighted=True, seed=2)[0])) < 130


@pytest.mark.parametrize("mode", ["fused", "unfused"])
def test_rows_that_the_truth_contradicts_score_high(folder: Path, mode: str) -> None:
    """|p - y| of the model agrees with |P - y| of the log's own probabilities; the same command gives the same rows."""
    config, cache = config_of(folder, mode=mode), open_prepared(config_of(folder))
    options: dict[str, Any] = {"keep": 0.3, "method": "el2n", "runs": 2, "progress": False}
    found = select(config, folder / mode, **options)
    again = select(config, folder / f"{mode}-again", **options)
    assert np.array_equal(found.rows, again.rows)
    assert not (folder / f"{mode}.scoring").exists()
    labels = cache.split("train").labels()[:, 0]
    assert labels[found.rows].mean() > labels.mean() + 0.05, "positives are the rare class, and so the harder one"
    ids = np.concatenate([b.sparse.values().view(2, -1).T.numpy() for b in Loader(cache, "train", batch_size=500).epoch(0)])
    mean_of_pair: dict[tuple, list] = {}
    for pair, label in zip(map(tuple, ids.tolist()), labels):
        mean_of_pair.setdefault(pair, []).append(label)
    ideal = np.array([abs(np.mean(mean_of_pair[tuple(pair)]) - label) for pair, label in zip(ids.tolist(), labels)])
    assert found.scores is not None
    assert np.corrcoef(found.scores, ideal)[0, 1] > 0.7


def test_training_uses_these_rows_with_these_weights(folder: Path) -> None:
    out = folder / "mixed"
    selection = select(config_of(folder), out, keep=0.2, runs=1, progress=False)
    config = config_of(folder, sampling={"selection": str(out)})
    cache = open_prepared(config)
    sampling = sampling_of(config, cache)
    for world_size in (1, 2):
        batches = [
            batch
            for rank in range(world_size)
            for batch in Loader(
                cache, "train", batch_size=100, shuffle=True, sampling=sampling, rank=rank, world_size=world_size
            ).epoch(1)
        ]
        row_id = torch.cat([b.row_id for b in batches])
        weights = torch.cat([b.weights[:, 0] for b in batches])[row_id.argsort()]
        assert np.array_equal(row_id.sort().values, selection.rows)
        np.testing.assert_allclose(weights, selection.weights)
    assert train(config, progress=False).progress.step == 2 * -(-len(selection.rows) // 250)
    reused = select(config_of(folder), folder / "reused", keep=0.1, method="el2n", scores_of=out, progress=False)
    assert np.array_equal(reused.scores, selection.scores)
    assert set(reused.rows) <= set(np.argsort(-selection.scores, kind="stable")[: len(reused.rows)])


def test_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "random"
    select(config_of(folder), out, keep=0.2, method="random", progress=False)
    with pytest.raises(ValueError, match="exists; a run may name it"):
        select(config_of(folder), out, keep=0.2, method="random", progress=False)
    with pytest.raises(ValueError, match=r"--keep: given 1\.5"):
        select(config_of(folder), tmp_path / "other", keep=1.5)
    with pytest.raises(ValueError, match="was chosen at random and has none"):
        select(config_of(folder), tmp_path / "other", keep=0.2, scores_of=out, progress=False)
    config = config_of(folder, sampling={"selection": str(out)})
    other_fold = C.parse(config.model_dump(mode="json", exclude_defaults=True) | raw_features(), overrides=["data.split.fold=1"])
    with pytest.raises(ValueError, match=r"split.fold: was 0, now 1.*select again"):
        sampling_of(other_fold, open_prepared(other_fold))
    rows = np.load(out / "rows.npy")
    np.save(out / "rows.npy", rows + 1)
    with pytest.raises(ValueError, match=r"rows\.npy is missing or was altered"):
        Selection.open(out, config=config, cache=open_prepared(config))
    with pytest.raises(ValueError, match="is not a selection of rows; `trm data select"):
        Selection.open(tmp_path, config=config, cache=open_prepared(config))
    with pytest.raises(C.ConfigError, match="needs either negative_rate, positive_fraction"):
        config_of(folder, sampling={"selection": "x", "negative_rate": 0.1})


def raw_features() -> dict[str, Any]:
    return {"features": {n: {"kind": "categorical", "dim": 4} for n in ("user", "item")}, "labels": {"label": {}}}


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    raw = config_of(folder).model_dump(mode="json", exclude_defaults=True)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw | raw_features(), sort_keys=False))
    assert main(["data", "select", str(tmp_path / "c.yaml"), "--keep", "0.25", "--method", "random"]) == 0
    cache = open_prepared(config_of(folder))
    written = Selection.open(folder / "cache.selections" / "random-0.25", config=config_of(folder), cache=cache)
    num_rows = cache.split("train").num_rows
    assert len(written.rows) == round(0.25 * num_rows)
    assert f"{len(written.rows):,} of {num_rows:,} training rows" in capsys.readouterr().out
    assert main(["data", "select", str(tmp_path / "c.yaml"), "--keep", "0.25", "--method", "random"]) == 2
