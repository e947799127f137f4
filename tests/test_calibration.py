"""Calibration against scikit-learn and closed forms, and on the road: trm calibrate, trm export, the answers of the bundle."""

import json
from pathlib import Path

import numpy as np
import pytest
from scored_run import train_run, write_files
from sklearn.linear_model import LogisticRegression

from torchrec_models import Bundle
from torchrec_models.pipelines.calibrate import calibrate_run
from torchrec_models.pipelines.calibration import Affine, Calibration, fit
from torchrec_models.pipelines.export.run import export_run


def sample(num_rows: int = 20_000, *, scale: float = 0.7, shift: float = -1.5, seed: int = 0):
    """Logits z and labels drawn from sigmoid(scale * z + shift)."""
    random = np.random.default_rng(seed)
    z = random.normal(-2, 1.5, num_rows)
    y = (random.random(num_rows) < 1 / (1 + np.exp(-scale * z - shift))).astype(np.float64)
    return z, y, random.uniform(0.2, 3, num_rows)


def likelihood_slopes(z, y, w, affine: Affine) -> tuple[float, float]:
    """Derivatives of the mean log loss by shift and by scale: both 0 at the maximum."""
    error = w * (affine.probabilities(z) - y) / w.sum()
    return float(error.sum()), float((error * z).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_platt_is_logistic_regression_without_penalty(weighted: bool) -> None:
    z, y, w = sample()
    w = w if weighted else np.ones_like(w)
    found = fit(z, y, method="platt", weights=w)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(z[:, None], y, sample_weight=w)
    assert found.scale == pytest.approx(float(theirs.coef_[0, 0]), rel=1e-5)
    assert found.shift == pytest.approx(float(theirs.intercept_[0]), rel=1e-5)
    assert likelihood_slopes(z, y, w, found) == pytest.approx((0, 0), abs=1e-10)
    assert (w * found.probabilities(z)).sum() == pytest.approx((w * y).sum())  # as many positives as there are


def test_temperature_is_logistic_regression_without_intercept() -> None:
    z, y, w = sample(shift=0.0)
    found = fit(z, y, method="temperature", weights=w)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000, fit_intercept=False).fit(z[:, None], y, sample_weight=w)
    assert found.scale == pytest.approx(float(theirs.coef_[0, 0]), rel=1e-5)
    assert found.shift == 0
    assert likelihood_slopes(z, y, w, found)[1] == pytest.approx(0, abs=1e-10)


def test_two_values_are_fitted_in_closed_form() -> None:
    """Two distinct logits and two rates: the line through (z, logit of the rate)."""
    z = np.repeat([-1.0, 3.0], [100, 50])
    y = np.concatenate([np.arange(100) < 10, np.arange(50) < 40]).astype(float)
    low, high = np.log(0.1 / 0.9), np.log(0.8 / 0.2)
    found = fit(z, y, method="platt")
    assert found.scale == pytest.approx((high - low) / 4, rel=1e-9)
    assert found.shift == pytest.approx(low + (high - low) / 4, rel=1e-9)


def test_logits_far_from_zero_are_no_trouble() -> None:
    z, y, _ = sample(scale=1.0, shift=0.0)
    near, far = fit(z, y, method="platt"), fit(100 * z + 5000, y, method="platt")
    assert far.scale == pytest.approx(near.scale / 100, rel=1e-6)
    np.testing.assert_allclose(far.probabilities(100 * z + 5000), near.probabilities(z), rtol=1e-6)


def test_negatives_left_out_are_put_back() -> None:
    """He et al. 2014: q = p / (p + (1 - p) / w)."""
    p = np.array([0.001, 0.1, 0.5, 0.99])
    z, rate = np.log(p / (1 - p)), 0.05
    found = Affine().with_negatives_kept(rate).probabilities(z)
    np.testing.assert_allclose(found, p / (p + (1 - p) / rate), rtol=1e-12)
    z, y, _ = sample(400_000, scale=1.0, shift=0.0)
    kept = (y == 1) | (np.random.default_rng(1).random(len(y)) < rate)
    corrected = fit(z[kept], y[kept], method="platt").with_negatives_kept(rate)
    assert (corrected.scale, corrected.shift) == (pytest.approx(1, abs=0.05), pytest.approx(0, abs=0.1))
    for wrong in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            Affine().with_negatives_kept(wrong)


@pytest.mark.parametrize(
    ("z", "y", "reason"),
    [
        ([1.0, 2.0], [0.0, 0.0], "needs positives and negatives"),
        ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0], "separates the classes perfectly"),
        ([1.0, 1.0, 1.0], [0.0, 1.0, 1.0], "separates the classes perfectly"),
        ([4.0, 3.0, 2.0, 1.0, 2.5], [0.0, 0.0, 1.0, 1.0, 0.0], "separates the classes perfectly"),
        ([3.0, 2.0, 1.0, 2.5], [0.0, 1.0, 1.0, 1.0], "fewer positives|separate"),
        ([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 1.0, 0.0, 1.0, 0.0], "larger logits mean fewer positives"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(z: list[float], y: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fit(np.array(z), np.array(y), method="platt")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    write_files(folder)
    return train_run(folder, train__steps=60, train__epochs=10)


def test_a_run_is_calibrated_in_its_bundle(run: Path, tmp_path: Path) -> None:
    export_run(run, out=tmp_path / "raw")
    text = calibrate_run(run, negative_rate=0.5)
    assert "label on valid (fitted on it)" in text
    assert "label on test" in text
    said = export_run(run, out=tmp_path / "calibrated")
    assert "calibrated in the graph (platt on valid)" in said
    found = Calibration.load(run)
    assert found
    before, after = Bundle(tmp_path / "raw"), Bundle(tmp_path / "calibrated")
    assert before.manifest["calibration"] is None
    assert after.manifest["calibration"] == json.loads((run / "calibration.json").read_text())
    assert after.self_test() < 1e-6
    rows = [one for graph in before.examples.values() for one in graph["rows"]]
    p = before.predict(rows).astype(np.float64)
    affine = found.tasks["label"]
    np.testing.assert_allclose(after.predict(rows), affine.probabilities(np.log(p / (1 - p))), atol=1e-6)
    result = found.metrics["valid"]["label"]
    assert result["after"]["log_loss"] <= result["before"]["log_loss"]
    assert result["after"]["copc"] == pytest.approx(1.0)
    assert "not calibrated" in export_run(run, out=tmp_path / "without", calibrated=False)
    with pytest.raises(ValueError, match="the model has seen these rows"):
        calibrate_run(run, split="train")


def test_a_calibration_of_another_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    calibrate_run(run)
    raw = json.loads((run / "calibration.json").read_text())
    (run / "calibration.json").write_text(json.dumps(raw | {"checkpoint": "step-999999"}))
    with pytest.raises(ValueError, match=r"is of step-999999, and this is step-.*run trm calibrate again"):
        export_run(run, out=tmp_path / "bundle")
    (run / "calibration.json").write_text("[]")
    with pytest.raises(ValueError, match="not a calibration"):
        export_run(run, out=tmp_path / "bundle")
