"""Co-visitation features: numbers worked out by hand, a slow program that does the same, and no look into the future."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from torchrec_models import Bundle
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.data.covisitation import covisitation, read_visits
from torchrec_models.pipelines.data.covisitation_state import CovisitationState, load_states, save_states
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.sources import Source
from torchrec_models.pipelines.export.run import export_run
from torchrec_models.pipelines.predict import predict
from torchrec_models.pipelines.serving.columns import raw_columns
from torchrec_models.pipelines.serving.encoder import RowEncoder
from torchrec_models.pipelines.serving.predict_files import predict_files
from torchrec_models.pipelines.train import train

MEMORY = 2**24


def feature_of(**options: Any) -> C.CovisitationConfig:
    return C.CovisitationConfig(kind="covisitation", user="user", item="item", time="time", **options)


def compute(folder: Path, table: pa.Table, **options: Any) -> tuple[np.ndarray, CovisitationState]:
    pq.write_table(table, folder / "log.parquet", row_group_size=64)
    feature = feature_of(**options)
    source = Source.open(
        [str(folder / "log.parquet")],
        format="parquet",
        column_names=[],
        null_values=[""],
        columns=feature.columns,
        memory_budget_bytes=MEMORY,
    )
    found = covisitation(feature, read_visits(feature, {"train": source}), memory_budget_bytes=MEMORY)
    return found.values, found.state


def log(num_rows: int = 400, *, num_users: int = 12, num_items: int = 15, seed: int = 0) -> pa.Table:
    """Rows in no order, times with many ties, some users and items missing."""
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "user": pa.array(random.integers(0, num_users, num_rows), mask=random.random(num_rows) < 0.05),
            "item": pa.array([f"i{n}" for n in random.integers(0, num_items, num_rows)], mask=random.random(num_rows) < 0.05),
            "time": random.integers(0, num_rows // 3, num_rows),
            "click": (random.random(num_rows) < 0.6).astype(np.int8),
        }
    )


def slowly(table: pa.Table, feature: C.CovisitationConfig) -> np.ndarray:
    """The definitions, one row at a time: everything counted anew from the earlier rows."""
    rows = table.to_pylist()
    order = sorted(range(len(rows)), key=lambda r: rows[r]["time"])  # stable

    def weight(age: float) -> float:
        return 2 ** (-age / feature.half_life) if feature.half_life else 1.0

    out = np.zeros(len(rows))
    for at in order:
        now = rows[at]
        memory: dict[Any, list[tuple[Any, float]]] = {}
        pairs: dict[tuple, float] = {}
        count: dict[Any, float] = {}
        for other in order:
            user, item, time = (rows[other][name] for name in ("user", "item", "time"))
            if time >= now["time"]:
                break
            if user is None or item is None or (feature.events and not rows[other][feature.events] > 0):
                continue
            seen = [one for one in memory.get(user, []) if one[0] != item]
            for before, when in seen:
                if feature.max_age is None or time - when <= feature.max_age:
                    key = tuple(sorted((item, before)))
                    pairs[key] = pairs.get(key, 0) + weight(now["time"] - (time + when) / 2)
            memory[user] = [*seen, (item, time)][-feature.window :]
            count[item] = count.get(item, 0) + weight(now["time"] - time)
        if now["user"] is None or now["item"] is None:
            continue
        found = []
        for before, when in memory.get(now["user"], []):
            if before == now["item"] or (feature.max_age is not None and now["time"] - when > feature.max_age):
                continue
            c = pairs.get(tuple(sorted((now["item"], before))), 0.0)
            product, total = count.get(now["item"], 0) * count[before], sum(count.values())
            formulas: dict[str, Callable[[], float]] = {
                "cosine": lambda c=c, product=product: c / product**0.5,
                "lift": lambda c=c, product=product, n=total: c * n / product,
                "log": lambda c=c: np.log1p(c),
                "none": lambda c=c: c,
            }
            found.append(formulas[feature.normalise]() if c else 0.0)
        if found:
            out[at] = {"sum": sum(found), "max": max(found), "mean": np.mean(found)}[feature.combine]
    return out


# user 1 saw a, b, a; user 2 saw a, b; user 3 sees a and then is offered b and c
BY_HAND = pa.table(
    {
        "user": [1, 1, 2, 2, 1, 3, 3, 3, 3],
        "item": ["a", "b", "a", "b", "c", "a", "b", "c", "b"],
        "time": [1, 2, 3, 4, 5, 6, 7, 7, 8],
    }
)


def test_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    """At time 7: c(a, b) = 2, c(a, c) = c(b, c) = 1, n(a) = 3, n(b) = 2, n(c) = 1, n = 6. User 3 remembers a."""
    cosine, state = compute(tmp_path, BY_HAND)
    assert cosine[0] == cosine[2] == cosine[5] == 0, "who remembers nothing has nothing to compare with"
    assert cosine[1] == 0, "a and b were not together before"
    assert cosine[3] == pytest.approx(1 / np.sqrt(2 * 1))  # time 4: c(a, b) = 1, n(a) = 2, n(b) = 1
    assert cosine[6] == pytest.approx(2 / np.sqrt(6))
    assert cosine[7] == pytest.approx(1 / np.sqrt(3)), "b of the same time is not remembered yet"
    lift, _ = compute(tmp_path, BY_HAND, normalise="lift")
    np.testing.assert_allclose(lift[[6, 7]], [6 * 2 / 6, 6 * 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(compute(tmp_path, BY_HAND, normalise="log")[0][[6, 7]], np.log([3, 2]), rtol=1e-6)
    counts, _ = compute(tmp_path, BY_HAND, normalise="none")
    # at time 8 user 3 remembers a, b and c; b itself is left out; c(a, b) = 3, c(b, c) = 2
    np.testing.assert_array_equal(counts, [0, 0, 0, 1, 0, 0, 2, 1, 5])
    np.testing.assert_array_equal(compute(tmp_path, BY_HAND, normalise="none", combine="max")[0][[6, 7, 8]], [2, 1, 3])
    np.testing.assert_array_equal(compute(tmp_path, BY_HAND, normalise="none", combine="mean")[0][[6, 7, 8]], [2, 1, 2.5])
    assert sorted(state.pair_count.tolist()) == [2, 3, 4]  # at the end: (a, c), (b, c), (a, b); user 3 met b twice
    # with a half-life of 2, at time 7 the pairs (a, b) are 5.5 and 3.5 old
    halved = compute(tmp_path, BY_HAND, normalise="none", half_life=2)[0]
    assert halved[6] == pytest.approx(2**-2.75 + 2**-1.75)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"window": 2, "normalise": "lift", "combine": "max"},
    {"normalise": "log", "max_age": 9.5, "combine": "mean"},
    {"normalise": "none", "half_life": 7.5, "window": 3},
    {"normalise": "log", "half_life": 0.11, "events": "click"},  # 1,200 half-lives: scaled back on the way
    {"half_life": 3, "max_age": 30, "events": "click"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_the_slow_program_says(tmp_path: Path, options: dict[str, Any]) -> None:
    table = log()
    found, _ = compute(tmp_path, table, **options)
    expected = slowly(table, feature_of(**options))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
    assert (expected > 0).mean() > 0.1


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_comes_later_changes_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    """Rows after time t shuffled, relabelled, replaced or taken away: rows up to t keep their features, to the bit."""
    table = log()
    time = table["time"].to_numpy()
    before, cut = compute(tmp_path, table, **options)[0], 70
    early = time <= cut
    random = np.random.default_rng(1)
    other = log(seed=9)
    for column in ("user", "item", "click"):
        values = table[column].to_pylist()
        late = np.flatnonzero(~early)
        for row, source in zip(late, random.permutation(late)):
            values[row] = other[column][int(source)].as_py()
        table = table.set_column(table.schema.get_field_index(column), column, pa.array(values, table[column].type))
    after = compute(tmp_path, table, **options)[0]
    assert np.array_equal(after[early], before[early])
    assert not np.array_equal(after[~early], before[~early])
    alone = compute(tmp_path, table.filter(pa.array(early)), **options)[0]
    assert np.array_equal(alone, before[early])


def test_rows_of_one_time_do_not_see_each_other(tmp_path: Path) -> None:
    """The label of a row, and those of rows beside it, are not in its features."""
    table = log()
    before = compute(tmp_path, table, events="click")[0]
    at = 60
    now = table["time"].to_numpy() == at
    flipped = np.where(now, 1 - table["click"].to_numpy(), table["click"].to_numpy()).astype(np.int8)
    after = compute(tmp_path, table.set_column(3, "click", pa.array(flipped)), events="click")[0]
    past = table["time"].to_numpy() <= at
    assert np.array_equal(after[past], before[past])
    assert not np.array_equal(after[~past], before[~past])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_state_at_the_end_goes_on_where_the_log_stops(tmp_path: Path, options: dict[str, Any]) -> None:
    """Rows after the log that are no events get from the state what they would have got as part of the log."""
    table, later = log(), log(200, num_users=14, num_items=18, seed=4)
    end = int(table["time"].to_numpy().max())
    later = later.set_column(2, "time", pa.array(later["time"].to_numpy() + end + 1))
    options = {**options, "events": "click"}
    silent = later.set_column(3, "click", pa.array(np.zeros(200, np.int8)))
    expected = compute(tmp_path, pa.concat_tables([table, silent]), **options)[0][len(table) :]
    _, state = compute(tmp_path, table, **options)
    save_states({"a/b c": state}, tmp_path)
    ((name, loaded),) = load_states(tmp_path).items()
    assert name == "a/b c"
    found = loaded.encode(silent.to_batches()[0], where="later", first_row=0)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
    assert (found > 0).any()
    with pytest.raises(ValueError, match=r"file: column 'time', data row 11: the time is not after the last one.*\(132\)"):
        loaded.encode(table.to_batches()[0], where="file", first_row=10)


@pytest.mark.parametrize("type", [pa.timestamp("ms"), pa.timestamp("us", tz="UTC"), pa.date32(), pa.string(), pa.float64()])
def test_times_of_every_type(tmp_path: Path, type: pa.DataType) -> None:
    """Seconds for dates and times, so a day's half-life is 86,400."""
    days = pa.array(log()["time"].to_numpy().astype(np.int32))
    stamps = days.cast(pa.date32())
    column = (
        days.cast(type) if type == pa.float64() else stamps.cast(pa.timestamp("s")).cast(type) if type != pa.date32() else stamps
    )
    table = log().set_column(2, "time", column)
    scale = 1 if type == pa.float64() else 86_400
    found, state = compute(tmp_path, table, half_life=3 * scale, max_age=20 * scale, normalise="log")
    np.testing.assert_allclose(found, slowly(log(), feature_of(half_life=3, max_age=20, normalise="log")), rtol=2e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r"\(132\.0\)" if scale == 1 else r"\(1970-05-13T00:00:00\.000000\)"):
        state.encode(table.to_batches()[0], where="file", first_row=0)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"column 'time', data row 3: the value is missing"):
        compute(tmp_path, BY_HAND.set_column(2, "time", pa.array([1, 2, None, 4, 5, 6, 7, 7, 8])))
    many = log(3000, num_users=10, num_items=1500)
    feature = feature_of(window=50)
    pq.write_table(many, tmp_path / "many.parquet")
    source = Source.open(
        [str(tmp_path / "many.parquet")],
        format="parquet",
        column_names=[],
        null_values=[""],
        columns=feature.columns,
        memory_budget_bytes=MEMORY,
    )
    with pytest.raises(ValueError, match=r"more than 1,310 different pairs.*raise it, or take a smaller window"):
        covisitation(feature, read_visits(feature, {"train": source}), memory_budget_bytes=1310 * 80)
    with pytest.raises(C.ConfigError) as error:
        config_of(
            tmp_path, "parquet", {"features": {"user": {"kind": "covisitation", "user": "click", "item": "item", "time": "time"}}}
        )
    assert "features.user: reads 'click', the column of the label 'click'" in str(error.value)
    with pytest.raises(C.ConfigError, match=r"features\.time: data reads a column of this name"):
        config_of(
            tmp_path, "parquet", {"features": {"time": {"kind": "covisitation", "user": "user", "item": "item", "time": "time"}}}
        )


def config_of(folder: Path, suffix: str, changes: dict[str, Any] | None = None) -> C.RunConfig:
    seen = {"kind": "covisitation", "user": "user", "item": "item", "time": "time"}
    raw = {
        "run": str(folder / f"run-{suffix}"),
        "data": {
            "train": str(folder / f"rows.{suffix}"),
            "cache": str(folder / f"cache-{suffix}"),
            "split": {"by": "time", "column": "time", "valid_from": 100},
            "rows_per_shard": 90,
        },
        "features": {
            "user": {"kind": "categorical", "dim": 4, "ids": {"by": "hash", "buckets": 20}},
            "seen": seen,
            "clicked": {**seen, "events": "click", "normalise": "log", "combine": "max", "steps": ["standard"]},
        },
        "labels": {"click": {}},
        "model": {"name": "deepfm", "hidden_units": [8]},
        "train": {"batch_size": 64, "tensorboard": False},
    }
    return C.parse(raw | (changes or {}))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_prepared_trained_predicted_exported_and_served(tmp_path: Path, suffix: str) -> None:
    """The dense column of the cache is that of the whole log, row by row; predict needs rows after it."""
    table = log()
    if suffix == "csv":
        pacsv.write_csv(table, tmp_path / "rows.csv")
    else:
        pq.write_table(table, tmp_path / "rows.parquet", row_group_size=50)
    config = config_of(tmp_path, suffix)
    cache = prepare(config, progress=False)
    assert [f.name for f in cache.schema.dense] == ["seen", "clicked"]
    is_valid = table["time"].to_numpy() >= 100
    expected = slowly(table, feature_of())
    other = slowly(table, feature_of(events="click", normalise="log", combine="max"))
    other = (other - other[~is_valid].mean()) / other[~is_valid].std()
    for split, rows in (("train", ~is_valid), ("valid", is_valid)):
        dense = np.concatenate([np.load(shard.folder / "dense.npy") for shard in cache.split(split).shards])
        np.testing.assert_allclose(dense, np.stack([expected[rows], other[rows]], axis=1), rtol=1e-4, atol=1e-5)
    train(config, progress=False)
    with pytest.raises(ValueError, match=r"feature 'clicked'.*is not after the last one"):
        predict(Path(config.run), [str(tmp_path / f"rows.{suffix}")], tmp_path / "p.parquet", progress=False)
    later = table.set_column(2, "time", pa.array(table["time"].to_numpy() + 1000)).drop_columns(["click"])
    pq.write_table(later, tmp_path / "later.parquet")
    if suffix == "csv":
        pacsv.write_csv(later, tmp_path / "later.csv")
    predict(Path(config.run), [str(tmp_path / f"later.{suffix}")], tmp_path / "p.parquet", progress=False)
    wanted = pq.read_table(tmp_path / "p.parquet")["click"].to_numpy()
    assert len(wanted) == len(table) and wanted.std() > 1e-4

    export_run(Path(config.run), out=tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    np.testing.assert_allclose(bundle.predict(later)[:, 0], wanted, atol=1e-6, rtol=0)
    as_json = later.to_pylist()
    np.testing.assert_allclose(bundle.predict(as_json)[:, 0], wanted, atol=1e-6, rtol=0)
    encoder = RowEncoder(bundle.transforms, bundle.graphs["model"].layout)
    for index in (0, 17, 101):  # as the server encodes: one row, from JSON
        ids, dense = encoder.encode([as_json[index]], from_json=True)
        assert bundle.graphs["model"].run_slots(ids, dense)[0, 0] == pytest.approx(wanted[index], abs=1e-6)
    described = [(c.name, c.type, c.is_required) for c in raw_columns(bundle.transforms)]
    of_users = "integer" if suffix == "parquet" else "text"
    assert described == [("user", of_users, False), ("item", "text", False), ("time", "number", True)]
    predict_files(tmp_path / "bundle", [str(tmp_path / f"later.{suffix}")], tmp_path / "q.parquet", progress=False)
    np.testing.assert_allclose(pq.read_table(tmp_path / "q.parquet")["click"].to_numpy(), wanted, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"unknown key 'seen'"):
        bundle.predict([{**as_json[0], "seen": 0.5}])
    with pytest.raises(ValueError, match=r"feature 'clicked'.*data row 1.*is not after the last one"):
        bundle.predict([{**as_json[0], "time": 5}])
    with pytest.raises(ValueError, match=r"feature 'clicked'.*column 'time'.*the value is missing"):
        bundle.predict([{k: v for k, v in as_json[0].items() if k != "time"}])


def test_in_the_schema_of_configs() -> None:
    adapter = TypeAdapter(C.FeatureConfig)
    assert "covisitation" in str(adapter.json_schema())
