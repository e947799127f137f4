"""`trm data`: what it says of a cache equals what the raw rows say, and one altered byte is found and named."""

import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.cli import main
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.inspection.hashed import hashed_tables
from torchrec_models.pipelines.inspection.head import head
from torchrec_models.pipelines.inspection.overview import verify
from torchrec_models.pipelines.inspection.statistics import statistics

NUM_ROWS = 700
DAY_SECONDS = 86_400
FIRST_DAY = 1_700_000_000 // DAY_SECONDS * DAY_SECONDS

YAML = """
run: {folder}/run
data: {{train: {folder}/rows.parquet, cache: {folder}/cache, timestamp: time, split: {{by: column, column: part}}}}
features:
  user: {{kind: categorical}}
  device: {{kind: categorical, ids: {{by: vocabulary, min_count: 2}}}}
  hashed: {{kind: categorical, column: user, ids: {{by: hash, buckets: 50}}}}
  roomy: {{kind: categorical, column: user, ids: {{by: hash, margin: 2}}}}
  age: {{kind: numeric, steps: [{{fill: 0}}]}}
  price: {{kind: numeric}}
  price_bucket: {{kind: categorical, column: price, ids: {{by: bucketize, boundaries: [1, 2]}}}}
  history: {{kind: sequence, max_len: 5, table: user}}
labels: {{click: {{}}}}
model: {{name: deepfm}}
"""


@pytest.fixture(scope="module")
def raw() -> pa.Table:
    random = np.random.default_rng(0)
    user = random.integers(1, 20, NUM_ROWS)
    device = pa.array(random.choice(["ios", "web"], NUM_ROWS), mask=random.random(NUM_ROWS) < 0.2)
    lengths = random.integers(0, 5, NUM_ROWS)
    history = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), pa.array(random.integers(1, 20, lengths.sum()))
    )
    part = np.where(np.arange(NUM_ROWS) < 500, "train", "valid")
    part[-20:] = "test"
    user[-20:] = 999  # unknown in training
    return pa.table(
        {
            "user": user,
            "device": device,
            "age": pa.array(random.normal(40, 9, NUM_ROWS), mask=random.random(NUM_ROWS) < 0.1),
            "price": random.gamma(2, 0.8, NUM_ROWS),
            "history": history,
            "time": FIRST_DAY + np.arange(NUM_ROWS) * (3 * DAY_SECONDS) // NUM_ROWS,
            "click": random.integers(0, 2, NUM_ROWS),
            "part": part,
        }
    )


@pytest.fixture
def config(raw: pa.Table, tmp_path: Path) -> Path:
    pq.write_table(raw, tmp_path / "rows.parquet")
    path = tmp_path / "config.yaml"
    path.write_text(YAML.format(folder=tmp_path))
    return path


@pytest.fixture
def cache(config: Path) -> Cache:
    return prepare(C.load(config), progress=False)


def of_part(raw: pa.Table, part: str) -> pa.Table:
    return raw.filter(pa.compute.equal(raw["part"], part))


def test_statistics_are_those_of_the_raw_rows(cache: Cache, raw: pa.Table) -> None:
    found = statistics(cache)
    assert list(found) == ["train", "valid", "test"]
    for part, stats in found.items():
        rows = of_part(raw, part)
        price = rows["price"].to_numpy().astype(np.float32)
        number = stats.numbers["price"]
        assert stats.num_rows == number.count == number.bins.sum() == len(rows)
        assert number.mean == pytest.approx(price.mean(), rel=1e-5) and number.std == pytest.approx(price.std(), rel=1e-4)
        assert (number.low, number.high) == (price.min(), price.max())
        assert np.array_equal(number.bins, np.histogram(price, bins=number.edges)[0])
        assert stats.numbers["age"].zeros == rows["age"].null_count  # filled with 0
        device = stats.ids["device"]
        assert device.missing_share == pytest.approx(rows["device"].null_count / len(rows))
        history = rows["history"].combine_chunks()
        assert stats.ids["history"].num_ids == len(history.flatten())
        lengths = pa.compute.list_value_length(history).to_numpy()
        assert stats.ids["history"].mean_length == pytest.approx(lengths.mean())
        assert stats.ids["history"].empty_share == pytest.approx((lengths == 0).mean())
        assert math.isnan(stats.ids["hashed"].oov_share)  # hashing knows every value
    assert found["train"].ids["user"].oov_share == 0 and found["test"].ids["user"].oov_share == 1
    assert found["train"].ids["user"].distinct == len(np.unique(of_part(raw, "train")["user"].to_numpy()))


def test_hashed_tables_say_how_much_is_shared(
    cache: Cache, raw: pa.Table, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, roomy = hashed_tables(cache)
    values = np.unique(of_part(raw, "train")["user"].to_numpy())
    assert (given.name, given.buckets, roomy.name, roomy.buckets) == ("hashed", 50, "roomy", 2 * len(values))
    assert math.isnan(given.num_distinct) and roomy.num_distinct == len(values) == 19
    drawn = np.random.default_rng(0).integers(0, roomy.buckets, (20_000, 19))
    shared = np.mean([np.sum(counts[counts > 1]) / 19 for counts in (np.bincount(row) for row in drawn)])
    assert roomy.collision_share == pytest.approx(shared, abs=0.005)
    for look in ("inspect", "stats"):
        assert main(["data", look, str(config)]) == 0
        out = capsys.readouterr().out
        assert re.search(r"^hashed +50 +- +-$", out, flags=re.MULTILINE)
        assert re.search(rf"^roomy +38 +~19 +{roomy.collision_share:.2%}$", out, flags=re.MULTILINE)
    page = Path(re.search(r"wrote (.+)", out)[1]).read_text()
    assert f"<td>roomy</td><td>38</td><td>19</td><td>{roomy.collision_share:.2%}</td>" in page


def test_labels_by_day_are_those_of_the_raw_rows(cache: Cache, raw: pa.Table) -> None:
    over_time = statistics(cache)["train"].over_time
    assert over_time is not None and over_time.unit == "day"
    rows = of_part(raw, "train")
    days = (rows["time"].to_numpy() - FIRST_DAY) // DAY_SECONDS
    assert over_time.periods == [str(np.datetime64(FIRST_DAY + int(d) * DAY_SECONDS, "s"))[:10] for d in np.unique(days)]
    for i, day in enumerate(np.unique(days)):
        of_day = rows["click"].to_numpy()[days == day]
        assert over_time.num_rows[i] == len(of_day)
        assert over_time.means["click"][i] == pytest.approx(of_day.mean())


def test_rows_without_a_time_are_counted_beside_the_days(config: Path, raw: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    """One row in four of those to train on, and all that are to test on."""
    row = np.arange(NUM_ROWS)
    none = (row % 4 == 0) & (row < 500) | (row >= NUM_ROWS - 20)
    times = pa.array(raw["time"].to_numpy(), mask=none)
    pq.write_table(raw.set_column(raw.column_names.index("time"), "time", times), config.parent / "rows.parquet")
    stats = statistics(prepare(C.load(config), progress=False))
    of_train, of_test = stats["train"].over_time, stats["test"].over_time
    assert of_train is not None and of_train.num_rows_without_time == 125 and sum(of_train.num_rows) == 375
    assert of_test is not None and of_test.num_rows_without_time == 20 and of_test.periods == []
    assert main(["data", "stats", str(config)]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^  without a time +(\d+) rows$", out, flags=re.MULTILINE) == ["125", "20"]
    page = Path(re.search(r"wrote (.+)", out)[1]).read_text()
    assert "125 of 500 rows have no time" in page and "20 of 20 rows have no time" in page


def test_the_first_rows_come_back_as_raw_values(cache: Cache, raw: pa.Table) -> None:
    shown = head(cache, "train", num_rows=30)
    for row, expected in zip(shown, of_part(raw, "train").slice(0, 30).to_pylist(), strict=True):
        for name in ("user", "device", "history"):
            assert row[name] == expected[name]
        assert row["price"] == pytest.approx(expected["price"], rel=1e-6)
        assert row["label click"] == expected["click"] and row["timestamp"] == expected["time"]
        assert re.fullmatch(r"#\d+", row["hashed"])
        low, high = (float(edge) for edge in row["price_bucket"][1:-1].split(", "))
        assert low <= expected["price"] < high
    assert head(cache, "test", num_rows=1)[0]["user"] == "<oov>"


def test_every_bad_file_is_named(cache: Cache) -> None:
    assert verify(cache.folder, progress=False).problems == ()
    folder = cache.folder / "train" / "00000"
    data = bytearray((folder / "dense.npy").read_bytes())
    data[-1] ^= 1
    (folder / "dense.npy").write_bytes(data)
    (folder / "ids.npy").unlink()
    verdict = verify(cache.folder, progress=False)
    assert len(verdict.problems) == 2 and verdict.num_files > 10
    assert "dense.npy: altered" in verdict.problems[0] and "ids.npy: missing" in verdict.problems[1]


def test_the_command_line_shows_all_four(cache: Cache, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(config)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^train +500 +1 ", out, flags=re.MULTILINE) and re.search(
        r"^history +sequence +user", out, flags=re.MULTILINE
    )
    assert main(["data", "head", str(cache.folder), "--split", "valid", "--rows", "1"]) == 0
    assert "row 0\n" in capsys.readouterr().out
    assert main(["data", "stats", str(config)]) == 0
    out, bar = capsys.readouterr()
    assert re.search(r"stats: 100%.*1\.40k/1\.40k", bar), "700 rows, read twice"
    assert "train by day:" in out
    page = Path(re.search(r"wrote (.+)", out)[1]).read_text()
    assert page.count("<svg") == 3 + 1 + 2  # three splits by day, lengths of history, two numbers
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|<!DOCTYPE[^>]*>', "", page)
    assert main(["data", "verify", str(config)]) == 0
    assert "sound" in capsys.readouterr().out
    (cache.folder / "valid" / "00000" / "labels.npy").unlink()
    assert main(["data", "verify", str(config)]) == 1
    assert "labels.npy: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], r"has no split 'tset'; it has: train, valid, test; did you mean 'test'\?\n"),
        (["--rows", "-1"], r"--rows must be 1 or more; given -1\n"),
    ],
)
def test_rows_that_are_not_there_are_refused(
    cache: Cache, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["data", "head", str(cache.folder), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_folds_have_a_head_too(config: Path, cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    folds = ["data.split={by: fold, num_folds: 3, fold: 0}", f"data.cache={cache.folder}-folds"]
    assert main(["prepare", str(config), *folds]) == 0
    capsys.readouterr()
    assert main(["data", "head", f"{cache.folder}-folds"]) == 0
    assert "row 0\n" in capsys.readouterr().out
    assert main(["data", "head", f"{cache.folder}-folds", "--split", "train"]) == 2
    assert capsys.readouterr().err.endswith("has no split 'train'; it has: fold_00, fold_01, fold_02\n")


def test_what_is_no_cache_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(tmp_path / "nothing")]) == 2
    assert "neither a cache folder" in capsys.readouterr().err
    assert main(["data", "inspect", str(tmp_path)]) == 2
    assert "not a finished cache" in capsys.readouterr().err
