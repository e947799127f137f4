"""Negative downsampling: the right rows, the same on any number of ranks and after a restart; predictions of all rows."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from torchrec_models import Bundle
from torchrec_models.losses import RankingLoss
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.calibrate import calibrate_run
from torchrec_models.pipelines.data import order
from torchrec_models.pipelines.data.loader import Loader
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.sampling import NegativeSampling
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.data.synthetic import click_log, random_cache
from torchrec_models.pipelines.export.run import export_run
from torchrec_models.pipelines.train import train
from torchrec_models.schema import Feature, Schema, Table, Task

SCHEMA = Schema(
    features=(
        Feature(name="item", kind="categorical", table="item"),
        Feature(name="history", kind="sequence", table="item", max_len=4),
    ),
    tables=(Table(name="item", num_rows=50, dim=4),),
    tasks=(Task(name="label"),),
)


@pytest.fixture(params=["kept", "streamed"])
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Cache:
    monkeypatch.setattr(order, "BLOCK_ROWS", 16)
    monkeypatch.setattr(order, "NUM_LANES", 4)
    monkeypatch.setattr(order, "WHOLE_BYTES", 0 if request.param == "streamed" else order.WHOLE_BYTES)
    return random_cache(tmp_path / "cache", SCHEMA, {"train": 1003}, rows_per_shard=300)


def loader(cache: Cache, *, rate: float = 0.1, rank: int = 0, world_size: int = 1) -> Loader:
    sampling = NegativeSampling(cache.split("train"), seed=3, rate=rate)
    return Loader(
        cache, "train", batch_size=48, shuffle=True, seed=3, sampling=sampling, rank=rank, world_size=world_size, pad=True
    )


def test_all_positives_and_a_fresh_share_of_negatives(cache: Cache) -> None:
    split = cache.split("train")
    labels = split.labels()[:, 0]
    sampling = NegativeSampling(split, seed=3, rate=0.1)
    assert sampling.num_rows == labels.sum() + round(0.1 * (labels == 0).sum())
    seen = []
    for epoch in range(2):
        batches = list(loader(cache).epoch(epoch))
        rows = torch.cat([batch.row_id for batch in batches])
        assert len(batches) == loader(cache).num_batches
        assert sorted(rows.tolist()) == sampling.rows(epoch).tolist()
        assert set(np.flatnonzero(labels == 1)) <= set(rows.tolist())
        got = torch.cat([batch.labels[:, 0] for batch in batches])
        assert torch.equal(got, torch.from_numpy(labels)[rows]), "labels of other rows"
        assert abs(rows[: len(rows) // 2].float().mean() - 501) < 110  # mixed over the split
        seen.append(set(rows.tolist()) - set(np.flatnonzero(labels == 1)))
    assert len(seen[0] & seen[1]) < 0.5 * len(seen[0])


def test_ranks_and_restarts_see_the_same_batches(cache: Cache) -> None:
    one = [batch.row_id for batch in loader(cache).epoch(1)]
    ranks = [list(loader(cache, rank=r, world_size=3).epoch(1)) for r in range(3)]
    for number, batch in enumerate(one):
        parts = torch.cat([rank[number].row_id for rank in ranks])
        assert sorted(parts[parts >= 0].tolist()) == sorted(batch.tolist())
    for start in (1, 5, len(one) - 1):
        again = [batch.row_id for batch in loader(cache).epoch(1, start_batch=start)]
        assert all(torch.equal(a, b) for a, b in zip(again, one[start:], strict=True))


def test_positive_fraction_sets_the_rate(cache: Cache) -> None:
    split = cache.split("train")
    sampling = NegativeSampling(split, seed=0, positive_fraction=0.8)
    assert split.labels()[sampling.rows(0), 0].mean() == pytest.approx(0.8, abs=0.002)
    with pytest.raises(ValueError, match="sampling can only raise it"):
        NegativeSampling(split, seed=0, positive_fraction=0.1)


def test_the_loss_is_that_of_the_sample_in_training_and_of_all_rows_otherwise() -> None:
    """He et al. 2014, section 6.3, backwards: of probability q in all rows, of q / (q + w (1 - q)) in the sample."""
    loss = RankingLoss([Task(name="label")])
    loss.log_negative_rate = float(np.log(0.1))
    q = torch.tensor([[0.02], [0.5]], dtype=torch.float64)
    ones = torch.ones(2, 1)
    in_sample = loss(q.logit(), ones, ones)[1][0]
    torch.testing.assert_close(in_sample.double(), -(q / (q + 0.1 * (1 - q))).log())
    torch.testing.assert_close(loss.eval()(q.logit(), ones, ones)[1][0].double(), -q.log())


def run_config(folder: Path, **sampling: float) -> C.RunConfig:
    return C.parse(
        {
            "run": str(folder / "run"),
            "data": {
                "train": str(folder / "train.parquet"),
                "valid": str(folder / "valid.parquet"),
                "cache": str(folder / "cache"),
            },
            "features": {
                "user": {"kind": "categorical", "dim": 4},
                "item": {"kind": "categorical", "dim": 4},
                "price": {"kind": "numeric"},
            },
            "labels": {"label": {}},
            "model": {"name": "deepfm", "hidden_units": [16]},
            "train": {"batch_size": 250, "epochs": 3, "dense": {"lr": 0.01}, "tensorboard": False, "sampling": sampling},
        }
    )


def test_a_model_of_a_sample_predicts_the_rates_of_all_rows(tmp_path: Path) -> None:
    """Clicks over predicted clicks is about 1 on all rows of the validation split, in evaluation and in the bundle."""
    table = click_log(24_000, num_users=20, num_items=20, seed=5).table
    pq.write_table(table.slice(0, 20_000), tmp_path / "train.parquet")
    pq.write_table(table.slice(20_000), tmp_path / "valid.parquet")
    config = run_config(tmp_path, negative_rate=0.1)
    prepare(config, progress=False)
    found = train(config, progress=False).metrics
    label = table.slice(20_000)["label"].to_numpy()
    assert found["calibration_ratio"] == pytest.approx(1, abs=0.1)
    export_run(Path(config.run), out=tmp_path / "bundle")
    predicted = Bundle(tmp_path / "bundle").predict(table.slice(20_000).select(["user", "item", "price"]))
    assert predicted.mean() / label.mean() == pytest.approx(found["calibration_ratio"], abs=1e-4)
    with pytest.raises(ValueError, match=r"train\.sampling is undone in the loss already"):
        calibrate_run(Path(config.run), negative_rate=0.1)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(C.ConfigError, match="needs either negative_rate, positive_fraction, negatives_per_session or selection"):
        run_config(tmp_path, negative_rate=0.1, positive_fraction=0.5)
    raw = run_config(tmp_path, negative_rate=0.1).model_dump(mode="json", exclude_defaults=True)
    raw["features"] = {name: {"kind": f.kind} for name, f in run_config(tmp_path, negative_rate=0.1).features.items()}
    with pytest.raises(C.ConfigError, match=r"exactly one label, a binary one.*label \(regression\)"):
        C.parse(raw, overrides=["labels.label.kind=regression"])
    with pytest.raises(C.ConfigError, match="draws its rows in the shuffled order only"):
        C.parse(raw, overrides=["train.shuffle=false"])
