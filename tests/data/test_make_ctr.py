"""The made competition: its layout, its rates, and that the truth is the truth."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.data import make_ctr

ROWS, TEST_ROWS, MEAN_LENGTH = 31_000, 20_000, 40  # a row group and a bit


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ctr")
    make_ctr.make(out, rows=ROWS, test_rows=TEST_ROWS, valid_rows=100, rows_per_file=30_000, mean_length=MEAN_LENGTH)
    return out


def test_layout(made: Path) -> None:
    train, test = pq.read_table(made / "train-00000.parquet"), pq.read_table(made / "test-00000.parquet")
    assert len(train.column_names) == 119 and train.column_names[-1] == "clicked"
    assert test.column_names == ["ID", *train.column_names[:-1]]
    assert (len(make_ctr.CATEGORICALS), len(make_ctr.NUMERIC), len(make_ctr.USED_NUMERIC)) == (5, 112, 76)
    assert [pq.read_metadata(path).num_rows for path in sorted(made.glob("train-*.parquet"))] == [30_000, 1_000]
    assert train["gender"].null_count / 30_000 == pytest.approx(0.02, abs=0.004)
    lengths = np.array([text.count(",") + 1 for text in train["seq"].to_pylist()])
    assert lengths.mean() == pytest.approx(MEAN_LENGTH, rel=0.02) and lengths.min() >= make_ctr.VISIT_IDS[0]


def test_ids_are_zipf(made: Path) -> None:
    ids = np.array(",".join(pq.read_table(made / "train-00000.parquet")["seq"].to_pylist()).split(","), dtype=np.int64)
    share = np.bincount(ids, minlength=make_ctr.NUM_SEQUENCE_IDS + 1)[1:] / len(ids)
    expected = np.arange(1, make_ctr.NUM_SEQUENCE_IDS + 1) ** -make_ctr.ZIPF_EXPONENT
    np.testing.assert_allclose(share[:10], (expected / expected.sum())[:10], rtol=0.03)
    assert np.count_nonzero(share) > 50_000 and ids.max() <= make_ctr.NUM_SEQUENCE_IDS


def test_the_truth_is_that_of_the_rows(made: Path) -> None:
    """The logit written out again, row by row, from the rows as they lie in the file."""
    rows = pq.read_table(made / "test-00000.parquet").slice(0, 200).to_pylist()
    answers = pq.read_table(made / "test_truth")
    bias, truth = json.loads((made / "truth.json").read_text())["test"]["bias"], make_ctr.Truth.draw(0)
    expected = []
    for row in rows:
        logit = bias
        for name, weights in truth.categorical.items():
            logit += weights[int(row[name]) - 1] if row[name] else 0
        logit += truth.gender_inventory[int(row["gender"]) - 1, int(row["inventory_id"]) - 1] if row["gender"] else 0
        for weight, column in zip(truth.numeric, make_ctr.INFORMATIVE):
            x = row[make_ctr.NUMERIC[column]]
            logit += 0 if x is None else weight * np.tanh(x)
        recent = [int(one) for one in row["seq"].split(",")][-make_ctr.RECENT :]
        expected.append(logit + make_ctr.RECENT_WEIGHT * truth.sequence[recent].mean())
    found = answers["probability"].to_numpy()[:200]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-np.array(expected))), rtol=1e-9)
    assert answers["ID"].to_pylist()[:200] == [row["ID"] for row in rows]


def test_the_best_auc(made: Path) -> None:
    told = json.loads((made / "truth.json").read_text())["test"]
    answers = pq.read_table(made / "test_truth")
    clicked, probability = answers["clicked"].to_numpy(), answers["probability"].to_numpy()
    assert told["bayes_auc"] == pytest.approx(roc_auc_score(clicked, probability), abs=1e-5)
    assert told["label_rate"] == clicked.mean() == pytest.approx(make_ctr.LABEL_RATE, abs=0.003)


def test_files_depend_on_no_other_and_are_kept(made: Path, tmp_path: Path) -> None:
    make_ctr.make(tmp_path, rows=ROWS, rows_per_file=60_000, mean_length=MEAN_LENGTH, workers=2)
    whole = pq.read_table(tmp_path / "train-00000.parquet")
    assert whole.equals(pq.read_table(sorted(made.glob("train-*.parquet"))))
    before = (made / "truth.json").read_text()
    kept = {path: path.stat().st_mtime_ns for path in made.rglob("*.parquet")}
    again = {"rows": ROWS, "test_rows": TEST_ROWS, "valid_rows": 100, "rows_per_file": 30_000, "mean_length": MEAN_LENGTH}
    make_ctr.make(made, **again)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*.parquet")} == kept
    assert (made / "truth.json").read_text() == before
    make_ctr.make(made, **again | {"valid_rows": 101})
    changed = [path.name for path in kept if path.stat().st_mtime_ns != kept[path]]
    assert changed == ["valid-00000.parquet"]
