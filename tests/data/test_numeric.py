import numpy as np
import pyarrow as pa
import pytest
from data_flow import fit, run_config
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, StandardScaler

from torchrec_models.pipelines.data.fit_numeric import NumericFit
from torchrec_models.pipelines.data.numeric import Log1p, Quantile, Standard

VALUES = st.lists(st.integers(-8000, 8000).map(lambda i: i / 8), min_size=1, max_size=50)


def encode(steps: list, values: list, *, batch_rows: int = 1 << 30) -> np.ndarray:
    table = pa.table({"x": pa.array(values, pa.float64())})
    return fit(run_config({"x": {"kind": "numeric", "steps": steps}}), table, batch_rows=batch_rows).encode(table).dense[:, 0]


@given(VALUES, st.integers(1, 60))
def test_standard_equals_sklearn(values: list[float], batch_rows: int) -> None:
    expected = StandardScaler().fit_transform(np.array(values)[:, None])[:, 0]
    np.testing.assert_allclose(encode(["standard"], values, batch_rows=batch_rows), expected, rtol=1e-5, atol=1e-5)


@given(VALUES, st.integers(1, 60))
def test_min_max_equals_sklearn(values: list[float], batch_rows: int) -> None:
    expected = MinMaxScaler().fit_transform(np.array(values)[:, None])[:, 0]
    np.testing.assert_allclose(encode(["min_max"], values, batch_rows=batch_rows), expected, rtol=1e-5, atol=1e-6)


@given(VALUES, st.integers(2, 20))
def test_quantile_equals_sklearn(values: list[float], num_quantiles: int) -> None:
    """Within 1e-6 of scikit-learn: the same quantiles, the same middle of ties."""
    if num_quantiles > len(values):
        return  # scikit-learn lowers n_quantiles to the number of rows; ours keeps what was asked
    peer = QuantileTransformer(n_quantiles=num_quantiles, subsample=None).fit(np.array(values)[:, None])
    quantiles = np.array(fit_steps([{"quantile": num_quantiles}], values)[0].quantiles)
    np.testing.assert_allclose(quantiles, peer.quantiles_[:, 0], rtol=1e-12, atol=1e-12)
    asked = np.unique([*values, *np.linspace(min(values) - 1, max(values) + 1, 23)])
    ours = Quantile(tuple(peer.quantiles_[:, 0])).apply(asked)
    np.testing.assert_allclose(ours, peer.transform(asked[:, None])[:, 0], atol=1e-6)


def fit_steps(steps: list, values: list) -> tuple:
    transforms = fit(run_config({"x": {"kind": "numeric", "steps": steps}}), pa.table({"x": pa.array(values, pa.float64())}))
    return transforms.features["x"].steps


def reference(steps: list, x: np.ndarray) -> np.ndarray:
    """The steps one by one over all rows at once, in plain numpy."""
    for step in steps:
        present = x[~np.isnan(x)]
        if step == "log1p":
            x = np.log1p(x)
        elif step == "standard":
            x = (x - present.mean()) / (present.std() or 1.0)
        elif step == "min_max":
            x = (x - present.min()) / (np.ptp(present) or 1.0)
        elif step == "is_missing":
            x = np.isnan(x).astype(float)
        elif "clip" in step:
            x = np.clip(x, *step["clip"])
        elif "fill" in step:
            fills = {"mean": np.mean(present), "median": np.median(present)}
            x = np.where(np.isnan(x), fills.get(step["fill"], step["fill"]), x)
        else:
            x = Quantile(tuple(np.quantile(present, np.linspace(0, 1, step["quantile"])))).apply(x)
    return x


CHAINS = [
    [{"fill": "mean"}, "log1p", "standard"],
    [{"fill": "median"}, {"clip": [1, 50]}, "min_max"],
    [{"clip": [None, 60]}, {"fill": "mean"}, "log1p", {"quantile": 7}],
    ["log1p", "standard", {"fill": 0}],
    ["standard", {"fill": "mean"}, {"clip": [-1, 1]}, "min_max"],
    ["log1p", {"quantile": 5}, "standard", {"fill": "median"}],
    [{"fill": -0.5}, "min_max", "log1p", "standard"],
    [{"fill": "mean"}],
    ["is_missing"],
    ["log1p", "is_missing", "standard"],
    [{"fill": 3}, {"clip": [2, None]}],
]


@pytest.mark.parametrize("steps", CHAINS, ids=str)
@pytest.mark.parametrize("batch_rows", [3, 1000])
def test_steps_are_learned_in_order(steps: list, batch_rows: int) -> None:
    rng = np.random.default_rng(0)
    x = np.where(rng.random(200) < 0.3, np.nan, rng.exponential(20, 200))
    ours = encode(steps, x.tolist(), batch_rows=batch_rows)
    np.testing.assert_allclose(ours, reference(steps, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "num_passes"),
    [([], 0), ([{"fill": 1.0}, "log1p"], 0), ([{"fill": "mean"}, "log1p", "standard"], 1), (["standard", "min_max"], 2)],
    ids=str,
)
def test_passes_over_the_data(steps: list, num_passes: int) -> None:
    config = run_config({"x": {"kind": "numeric", "steps": steps}}).features["x"]
    assert NumericFit("x", config.steps, sample_rows=10).num_passes == num_passes


@pytest.mark.parametrize(
    "steps", [["is_missing", {"fill": 0}], [{"fill": "mean"}, "is_missing"], ["is_missing", "is_missing"]], ids=str
)
def test_a_mask_beside_a_fill_is_refused(steps: list) -> None:
    with pytest.raises(ValueError, match=r"features.x.steps: .* after .* has no effect, nothing is missing after the first"):
        fit_steps(steps, [1.0, None])


def test_new_values_are_not_clipped_unless_asked() -> None:
    table = pa.table({"x": [0.0, 10.0]})
    transforms = fit(run_config({"x": {"kind": "numeric", "steps": ["min_max"]}}), table)
    assert transforms.encode(pa.table({"x": [-10.0, 20.0]})).dense[:, 0].tolist() == [-1.0, 2.0]


def test_a_constant_column_becomes_zero() -> None:
    for step in ("standard", "min_max"):
        assert encode([step], [0.1] * 1000, batch_rows=7).tolist() == [0.0] * 1000  # the mean of many 0.1 is not 0.1 in floats


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2, None], pa.int8()),
        pa.array([True, False, None]),
        pa.array(["1", "2.5", None]),
        pa.array([1.0, float("nan"), None], pa.float32()),
        pa.array(["1", "0", None]).dictionary_encode(),
        pa.array([None] * 3),
    ],
    ids=lambda c: str(c.type),
)
def test_numbers_come_from_any_numeric_type(column: pa.Array) -> None:
    table = pa.table({"x": column})
    out = fit(run_config({"x": {"kind": "numeric", "steps": [{"fill": -9}]}}), table).encode(table).dense[:, 0]
    expected = [-9.0 if v is None or v != v else float(v) for v in column.to_pylist()]
    assert out.tolist() == expected


def test_steps_keep_float64_until_the_end() -> None:
    x = np.array([1e9, 1e9 + 1])
    assert np.diff(Standard(1e9, 1.0).apply(x)).tolist() == [1.0]
    assert Log1p().apply(np.array([0.0])).tolist() == [0.0]
