"""Negatives drawn session by session: the right rows by brute force, whoever asks; the loss undoes what sampling did."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_models.losses import RankingLoss
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.sampling import sampling_of
from torchrec_models.pipelines.data.session_sampling import SessionSampling
from torchrec_models.pipelines.train import train
from torchrec_models.schema import Task


def log(num_rows: int = 5000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    share = 1 / (np.arange(300) + 2)
    return (random.random(num_rows) < 0.1).astype(np.float32), random.choice(300, num_rows, p=share / share.sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 3), st.integers(0, 5))
def test_each_session_keeps_positives_and_so_many_negatives(most: int, seed: int, epoch: int) -> None:
    labels, sessions = log(seed=seed)
    sampling = SessionSampling(labels, sessions, seed=seed, most=most)
    rows = sampling.rows(epoch)
    assert len(rows) == sampling.num_rows
    assert (np.diff(rows) > 0).all()
    kept = np.zeros(len(labels), bool)
    kept[rows] = True
    assert kept[labels == 1].all()
    rates = sampling.log_negative_rate.exp().numpy()
    for session in np.unique(sessions):
        inside = sessions == session
        negatives = (inside & (labels == 0)).sum()
        assert (kept & inside & (labels == 0)).sum() == min(negatives, most)
        np.testing.assert_allclose(rates[inside], min(negatives, most) / negatives if negatives else 1, rtol=1e-6)


def test_a_fraction_of_each_session_and_at_least_one() -> None:
    labels, sessions = log()
    rows = SessionSampling(labels, sessions, seed=1, rate=0.2).rows(0)
    for session in np.unique(sessions):
        negatives = ((sessions == session) & (labels == 0)).sum()
        drawn = ((sessions[rows] == session) & (labels[rows] == 0)).sum()
        assert drawn == min(negatives, max(1, round(0.2 * negatives)))


def test_names_and_order_of_sessions_do_not_matter_and_epochs_differ() -> None:
    labels, sessions = log()
    rows = SessionSampling(labels, sessions, seed=1, most=3).rows(4)
    renamed = np.random.default_rng(0).permutation(300)[sessions]
    assert np.array_equal(SessionSampling(labels, renamed, seed=1, most=3).rows(4), rows)
    # rows before a session's do not change what is drawn of it as long as they are where they were
    longer = SessionSampling(np.append(labels, [0, 0]), np.append(sessions, [900, 900]), seed=1, most=3).rows(4)
    assert np.array_equal(longer[longer < len(labels)], rows)
    for other in (
        SessionSampling(labels, sessions, seed=2, most=3).rows(4),
        SessionSampling(labels, sessions, seed=1, most=3).rows(5),
    ):
        assert 0 < len(np.intersect1d(other, rows)) < len(rows)


def test_every_negative_has_the_same_chance() -> None:
    """Of a session with 40 negatives, 4 are drawn: 0.1 each. 2,000 epochs, five standard deviations."""
    labels, sessions = np.r_[np.zeros(40), np.ones(3)], np.zeros(43, int)
    sampling = SessionSampling(labels, sessions, seed=0, most=4)
    counts = sum(np.bincount(sampling.rows(epoch), minlength=43) for epoch in range(2000))
    assert (counts[40:] == 2000).all()
    assert np.abs(counts[:40] - 200).max() < 5 * np.sqrt(2000 * 0.1 * 0.9)


def test_the_loss_takes_each_rows_own_rate() -> None:
    """Of probability q in all rows of a session, q / (q + w (1 - q)) in its sample."""
    loss = RankingLoss([Task(name="label")])
    rates = torch.tensor([0.1, 1.0, 0.5])
    loss.log_negative_rate = rates.log()
    q, row_id = torch.tensor([[0.02], [0.5]], dtype=torch.float64), torch.tensor([2, 0])
    w, ones = rates[row_id][:, None].double(), torch.ones(2, 1)
    in_sample = loss(q.logit(), ones, ones, row_id)[1][0]
    torch.testing.assert_close(in_sample.double(), -(q / (q + w * (1 - q))).log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss.eval()(q.logit(), ones, ones, row_id)[1][0].double(), -q.log())


def sessions_config(folder: Path, **sampling: object) -> C.RunConfig:
    return C.parse(
        {
            "run": str(folder / "run"),
            "data": {
                "train": str(folder / "train.parquet"),
                "valid": str(folder / "valid.parquet"),
                "cache": str(folder / "cache"),
                "slices": ["session"],
            },
            "features": {"big": {"kind": "categorical", "dim": 4}, "item": {"kind": "categorical", "dim": 4}},
            "labels": {"label": {}},
            "model": {"name": "deepfm", "hidden_units": [16]},
            "train": {
                "batch_size": 500,
                "epochs": 6,
                "dense": {"lr": 0.01},
                "tensorboard": False,
                "sampling": sampling,
                "early_stopping": {"metric": "log_loss", "patience": 6},
            },
        }
    )


def sessions_log(folder: Path) -> None:
    """Sessions of 4 or 40 rows, whose click rates are 0.3 and 0.1: one common rate could not be right for both."""
    random = np.random.default_rng(0)
    for name, num_sessions in (("train", 1000), ("valid", 600)):
        size = random.choice([4, 40], num_sessions)
        session = np.repeat(np.arange(num_sessions), size)
        big = (size == 40)[session]
        label = (random.random(len(session)) < np.where(big, 0.1, 0.3)).astype(np.int8)
        table = pa.table({"session": session, "big": big, "item": random.integers(0, 10, len(session)), "label": label})
        pq.write_table(table, folder / f"{name}.parquet")


def test_a_model_of_sampled_sessions_predicts_the_rates_of_all_rows(tmp_path: Path) -> None:
    """Big sessions give 4 of 36 negatives, small ones 2 of 3 or so."""
    sessions_log(tmp_path)
    config = sessions_config(tmp_path, session="session", negatives_per_session=2)
    cache = prepare(config, progress=False)
    sampling = sampling_of(config, cache)
    assert sampling.num_rows < 0.4 * cache.split("train").num_rows
    found = train(config, progress=False).metrics
    assert found["calibration_ratio"] == pytest.approx(1, abs=0.08)


def test_refused(tmp_path: Path) -> None:
    for sampling, text in (
        ({"negatives_per_session": 2}, "needs train.sampling.session"),
        ({"negatives_per_session": 2, "session": "seson"}, "there are: session; did you mean"),
        ({"negatives_per_session": 2, "negative_rate": 0.1, "session": "session"}, "needs either"),
        ({"positive_fraction": 0.5, "session": "session"}, "has no effect with positive_fraction"),
    ):
        with pytest.raises(C.ConfigError, match=text):
            sessions_config(tmp_path, **sampling)
    sessions_log(tmp_path)
    table = pq.read_table(tmp_path / "train.parquet")
    gaps = pa.array([None, *table["session"].to_pylist()[1:]])
    pq.write_table(table.set_column(0, "session", gaps), tmp_path / "train.parquet")
    config = sessions_config(tmp_path, negatives_per_session=2, session="session")
    cache = prepare(config, progress=False)
    with pytest.raises(ValueError, match=r"'session' has no value in 1 rows of the training split \(the first is row 1\)"):
        sampling_of(config, cache)
