"""The array half of evaluation: intervals, slices, the base-rate model, curves, text and JSON."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn import metrics as sk

from torchrec_models import metrics
from torchrec_models.pipelines.evaluation.bootstrap import Draws
from torchrec_models.pipelines.evaluation.curves import score_curves
from torchrec_models.pipelines.evaluation.evaluate import (
    base_rate_metrics,
    evaluate_binary,
    evaluate_columns,
    evaluate_regression,
    evaluate_slices,
)
from torchrec_models.pipelines.evaluation.results import Evaluation, Interval, point, render, write_metrics


def rows(seed: int = 0, num_rows: int = 400):
    rng = np.random.default_rng(seed)
    p = rng.beta(2, 5, num_rows).astype(np.float32)
    return (rng.random(num_rows) < p).astype(np.float32), p, rng.integers(0, 40, num_rows), rng.gamma(2.0, 1.0, num_rows)


def test_every_metric_is_the_library_s():
    y, p, users, w = rows()
    got = evaluate_binary(y, p, weights=w, groups=users)
    t = [torch.tensor(x) for x in (y, p)]
    kw = {"weights": torch.tensor(w)}
    whole = metrics.gauc(*t, torch.tensor(users), **kw)
    assert list(got)[:2] == ["auc", "gauc"]
    assert got == {
        "auc": metrics.auc(*t, **kw),
        "gauc": whole.value,
        "gauc_coverage": whole.coverage,
        "log_loss": metrics.log_loss(*t, **kw),
        "normalized_entropy": metrics.normalized_entropy(*t, **kw),
        "average_precision": metrics.average_precision(*t, **kw),
        "wll": metrics.wll(*t, **kw),
        "contest_score": metrics.contest_score(*t, **kw),
        "ece": metrics.ece(*t, **kw),
        "calibration_ratio": metrics.calibration_ratio(*t, **kw),
    }
    assert "gauc" not in evaluate_binary(y, p)


def test_groups_of_any_type_are_the_same_groups():
    y, p, users, _ = rows()
    expected = evaluate_binary(y, p, groups=users)
    for spelt in (users.astype(str), users.astype(object), users.astype(np.uint64) + np.uint64(2**63), users.astype(np.float64)):
        assert evaluate_binary(y, p, groups=spelt) == pytest.approx(expected, abs=1e-12)


def test_rows_without_a_group_only_lower_the_coverage():
    y, p, users, _ = rows()
    known = np.array([None if u < 10 else f"u{u}" for u in users], dtype=object)
    got, rest = evaluate_binary(y, p, groups=known), evaluate_binary(y[users >= 10], p[users >= 10], groups=users[users >= 10])
    assert got["gauc"] == pytest.approx(rest["gauc"])
    assert got["gauc_coverage"] == pytest.approx(rest["gauc_coverage"] * (users >= 10).mean())


def test_arrow_columns_are_numpy_columns():
    """Also chunked, with nulls, and with ids that a float64 would merge."""
    y, p, users, _ = rows()
    ids = [None if u < 5 else 2**60 + int(u) for u in users]
    expected = evaluate_binary(y, p, groups=np.array([None if i is None else str(i) for i in ids], dtype=object))
    chunked = pa.chunked_array([pa.array(ids[:100]), pa.array(ids[100:])])
    assert evaluate_binary(y, p, groups=chunked) == pytest.approx(expected)
    assert evaluate_binary(y, p, groups=pa.array(users)) == evaluate_binary(y, p, groups=users)
    half = pa.chunked_array([pa.array(["a", None] * 100), pa.array(["a", None] * 100)]).dictionary_encode()
    assert [(r.value, r.num_rows) for r in evaluate_slices(y, p, {"half": half})["half"]] == [("a", 200), ("(missing)", 200)]
    tenth = pa.array([0.1, float("nan"), None, 0.1] * 100)
    assert [(r.value, r.num_rows) for r in evaluate_slices(y, p, {"t": tenth})["t"]] == [("0.1", 200), ("(missing)", 200)]


def test_bootstrap_intervals_match_resampling_by_hand():
    """The counts trick against honest resampling of rows: same distribution, so ends agree within Monte Carlo error."""
    y, p, users, _ = rows(1, 300)
    got = evaluate_binary(y, p, groups=users, bootstrap=600, seed=3)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(600):
        pick = rng.integers(0, 300, 300)
        a, b = y[pick], p[pick].astype(np.float64)
        drawn.append((sk.roc_auc_score(a, b), sk.log_loss(a, b), sk.average_precision_score(a, b), b.sum() / a.sum()))
    ends = np.quantile(drawn, [0.025, 0.975], axis=0)
    for name, low, high in zip(("auc", "log_loss", "average_precision", "calibration_ratio"), *ends):
        interval = got[name]
        assert isinstance(interval, Interval)
        width = high - low
        assert abs(interval.low - low) < 0.15 * width and abs(interval.high - high) < 0.15 * width, name
        assert interval.low < interval.value < interval.high
    assert isinstance(got["ece"], float) and isinstance(got["gauc_coverage"], float)


def test_gauc_resamples_users():
    """Users who are all alike leave gAUC nothing to vary by, however their rows are drawn."""
    y = np.tile([0, 1, 0], 50)
    p = np.tile([0.2, 0.5, 0.7], 50)
    interval = evaluate_binary(y, p, groups=np.arange(50).repeat(3), bootstrap=50)["gauc"]
    assert interval == (0.5, 0.5, 0.5)


def test_gauc_varies_by_the_users_drawn():
    """Every other user is ranked perfectly, the others backwards: gAUC is the mean of 100 coins, 0.5 +- 1.96 * 0.05."""
    users = np.arange(100).repeat(2)
    y = np.tile([0, 1], 100)
    p = np.where(users % 2 == y, 0.6, 0.4)
    interval = evaluate_binary(y, p, groups=users, bootstrap=1000)["gauc"]
    assert interval.value == 0.5
    assert interval.low == pytest.approx(0.402, abs=0.02) and interval.high == pytest.approx(0.598, abs=0.02)


def test_interval_ends_are_the_95_percent_of_theory():
    values = torch.linspace(-1, 1, 200, dtype=torch.float64)
    low, high = Draws(0).spread(200, 2000, lambda counts: {"mean": float(values @ counts.double()) / 200})["mean"]
    error = float(values.std(correction=0)) / 200**0.5
    assert low == pytest.approx(-1.96 * error, abs=0.15 * error) and high == pytest.approx(1.96 * error, abs=0.15 * error)


def test_bootstrap_is_seeded_and_the_point_does_not_move():
    y, p, users, w = rows()
    once, again, other = (evaluate_binary(y, p, groups=users, weights=w, bootstrap=20, seed=s) for s in (1, 1, 2))
    assert once == again != other
    assert {k: point(v) for k, v in other.items()} == evaluate_binary(y, p, groups=users, weights=w)
    with pytest.raises(ValueError, match="bootstrap must be >= 0, got -1"):
        evaluate_binary(y, p, bootstrap=-1)


def test_base_rate_model_equals_a_constant_column():
    y, p, users, w = rows()
    model = evaluate_binary(y, p, weights=w, groups=users)
    got = base_rate_metrics(y, 0.25, weights=w, like=model)
    constant = evaluate_binary(y, np.full_like(p, 0.25), weights=w, groups=users)
    del constant["gauc_coverage"]
    assert got == pytest.approx(constant)
    assert got["gauc"] == 0.5
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        base_rate_metrics(y, 1.5)


def test_regression():
    y, p, _, w = rows()
    got = evaluate_regression(y, p, weights=w, bootstrap=30)
    assert got["rmse"].value == pytest.approx(sk.root_mean_squared_error(y, p, sample_weight=w), rel=1e-6)
    assert got["mae"].low < got["mae"].value < got["mae"].high
    found = evaluate_columns(y * 10, p * 10, base_rate=3.0, kind="regression", slices={"half": np.arange(400) % 2})
    assert found.base["rmse"] == pytest.approx(math.sqrt(np.mean((y * 10 - 3) ** 2)), rel=1e-6)
    assert set(found.slices["half"][0].metrics) == {"rmse", "mae"}


def test_slices_are_the_metrics_of_their_rows():
    y, p, users, w = rows()
    city = np.array([["Rome", "Oslo", None][i] for i in np.random.default_rng(2).choice(3, 400, p=[0.3, 0.6, 0.1])], dtype=object)
    table = evaluate_slices(y, p, {"city": city}, weights=w, groups=users)["city"]
    assert [r.value for r in table] == ["Oslo", "Rome", "(missing)"]
    for row, value in zip(table, ("Oslo", "Rome", None)):
        mine = np.array([c is None if value is None else c == value for c in city])
        assert row.num_rows == mine.sum()
        assert row.label_mean == pytest.approx(np.average(y[mine], weights=w[mine]))
        assert row.prediction_mean == pytest.approx(np.average(p[mine], weights=w[mine]))
        assert row.metrics == evaluate_binary(y[mine], p[mine], weights=w[mine], groups=users[mine])


def test_rare_slice_values_are_pooled_and_said_so():
    y, p, _, _ = rows()
    column = np.r_[np.zeros(200, int), np.ones(150, int), np.arange(2, 52)]
    table = evaluate_slices(y, p, {"c": column}, max_values=2)["c"]
    assert [(r.value, r.num_rows, r.num_pooled) for r in table] == [("0", 200, 0), ("1", 150, 0), ("other", 50, 50)]
    assert table[2].metrics == evaluate_binary(y[350:], p[350:])
    assert [r.num_pooled for r in evaluate_slices(y, p, {"c": column < 1}, max_values=2)["c"]] == [0, 0]


def test_undefined_metrics_carry_their_reason():
    p = np.array([0.2, 0.3, 0.4])
    found = evaluate_columns(np.zeros(3), p, base_rate=0.1, groups=np.array([1, 1, 2]), bootstrap=5)
    assert found.undefined["auc"] == "all 3 rows have label 0"
    assert math.isnan(found.value("auc")) and found.value("log_loss") > 0
    split = evaluate_columns(np.array([0, 1, 1]), p, base_rate=0.1, groups=np.array([1, 2, 2]))
    assert split.undefined == {"gauc": "none of 2 groups has both labels"}
    assert math.isnan(split.base["gauc"])
    empty = evaluate_columns(np.zeros(0), np.zeros(0), base_rate=0.1, slices={"c": np.zeros(0)}, bootstrap=5)
    assert empty.undefined["log_loss"] == "no rows with weight > 0" and empty.slices == {"c": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array(["a", "b", "c"])}, "labels: numbers expected, got dtype <U1"),
        ({"scores": np.array([0.1, np.nan, 0.2])}, "scores: NaN at row 1"),
        ({"scores": np.array([0.1, 0.2])}, "one value per row expected, got 3 labels, 2 scores"),
        ({"groups": np.array([1, 2])}, "groups: one per row expected, got shape [2]"),
        ({"slices": {"city": np.array(["x", "y"])}}, "slices.city: one value per row expected, got 2 for 3 rows"),
        ({"slices": {"city": np.array(["x", 3, 2.5], dtype=object)}}, "city: values of one type expected"),
        ({"max_slice_values": 0}, "max_values must be >= 1, got 0"),
    ],
)
def test_malformed_columns_are_refused(change, message):
    given = {"labels": np.array([0, 1, 0]), "scores": np.array([0.1, 0.6, 0.3]), "base_rate": 0.3} | change
    with pytest.raises(ValueError) as error:
        evaluate_columns(given.pop("labels"), given.pop("scores"), **given)
    assert message in str(error.value)


def test_slices_alone_name_the_row_of_the_whole_column():
    with pytest.raises(ValueError, match="scores: NaN at row 2"):
        evaluate_slices(np.array([0, 1, 1]), np.array([0.1, 0.2, np.nan]), {"c": np.array([1, 1, 2])})


def test_read_only_arrays_are_accepted():
    y, p, _, _ = rows()
    p.setflags(write=False)
    assert evaluate_binary(y, p)["auc"] > 0.5


def test_text_and_json(tmp_path):
    y, p, users, _ = rows()
    found = evaluate_columns(y, p, base_rate=0.25, groups=users, slices={"even": np.arange(400) % 2 == 0}, bootstrap=10)
    text = render(found)
    lines = text.splitlines()
    assert lines[0] == f"400 rows, label rate {100 * y.mean():.3f} %"
    assert lines[1].split() == ["model", "95", "%", "interval", "always", "0.25"]
    auc = found.metrics["auc"]
    assert lines[2].split() == ["AUC", f"{auc.value:.5f}", f"{auc.low:.5f}", "..", f"{auc.high:.5f}", "0.50000"]
    assert any(line.startswith("True ") and " 200 " in line for line in lines)
    write_metrics(tmp_path / "new" / "metrics.json", {"click": found})
    read = json.loads((tmp_path / "new" / "metrics.json").read_text())["click"]
    assert read["metrics"]["auc"] == {"value": auc.value, "low": auc.low, "high": auc.high}
    assert read["base"]["auc"] == 0.5 and read["slices"]["even"][0]["num_rows"] == 200
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["metrics.json"]


def test_nan_is_null_in_json_and_a_reason_in_text(tmp_path):
    found = evaluate_columns(np.ones(2), np.array([0.5, 0.6]), base_rate=0.4)
    write_metrics(tmp_path / "metrics.json", {"click": found})
    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert read["click"]["metrics"]["auc"] is None
    assert read["click"]["undefined"]["auc"] == "all 2 rows have label 1"
    assert "AUC is undefined: all 2 rows have label 1" in render(found)


def test_retrieval_results_use_the_same_table():
    found = Evaluation(
        kind="retrieval", num_rows=1500, base_name="popularity", metrics={"recall@10": 0.21}, base={"recall@10": 0.04}
    )
    assert render(found).splitlines() == ["1,500 queries", "             model  popularity", "recall@10  0.21000     0.04000"]


def test_curves_are_exact_points():
    y, p, _, w = rows(4, 3000)
    curves = score_curves(y, p, weights=w, num_points=100)
    fpr, tpr, _ = sk.roc_curve(y, p, sample_weight=w, drop_intermediate=False)
    exact = {(round(a, 9), round(b, 9)) for a, b in zip(fpr, tpr)}
    drawn = list(zip(curves.false_positive_rate.round(9), curves.true_positive_rate.round(9)))
    assert len(drawn) <= 101 and drawn[0] == (0, 0) and drawn[-1] == (1, 1)
    assert all(point_ in exact for point_ in drawn)
    assert curves.precision[-1] == pytest.approx(np.average(y, weights=w))
    area = np.trapezoid(curves.true_positive_rate, curves.false_positive_rate)
    assert area == pytest.approx(evaluate_binary(y, p, weights=w)["auc"], abs=2e-3)
    assert curves.positive_share.sum() == pytest.approx(1) and curves.negative_share.sum() == pytest.approx(1)
    assert len(curves.histogram_edges) == len(curves.positive_share) + 1
    assert score_curves(np.ones(3), np.full(3, 0.5)) is None


def test_curves_of_extreme_and_constant_scores():
    for p in (np.array([0.0, 1.0, 0.5, 0.5]), np.full(4, 0.5)):
        curves = score_curves(np.array([0, 1, 0, 1]), p)
        assert np.isfinite(curves.histogram_edges).all() and curves.positive_share.sum() == pytest.approx(1)
