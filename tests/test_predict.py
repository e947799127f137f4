"""Every row once, in order, with the model's own answer, whatever the pieces that it is read and scored in."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from click_run import raw_config
from scored_run import NUM_TEST_ROWS, answers, log_rows, train_run, write_files

import torchrec_models.pipelines.predict as predict_module
from torchrec_models import Bundle
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.checkpoint_folder import choose, read_config, read_schema
from torchrec_models.pipelines.cli import main
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.distributed import build_task, processes
from torchrec_models.pipelines.export.run import export_run
from torchrec_models.pipelines.predict import predict
from torchrec_models.pipelines.scoring import evaluation_mode, score

FEATURES = ("user", "item", "device", "tags", "price")
TIMEOUT_SECONDS = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files, a run with a row id of its own, and `raw/`: the test rows without labels, in three files of small row groups."""
    folder = tmp_path_factory.mktemp("clicks")
    write_files(folder)
    train_run(folder, data__row_id="key")
    raw = pq.read_table(folder / "test.parquet").select(["key", *FEATURES])
    (folder / "raw").mkdir()
    for name, first, stop, row_group in (("a", 0, 90, 17), ("b", 90, 90, 1), ("c", 90, NUM_TEST_ROWS, 1000)):
        pq.write_table(raw.slice(first, stop - first), folder / "raw" / f"{name}.parquet", row_group_size=row_group)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    return answers(folder / "run", pq.read_table(folder / "test.parquet"))[:, 0]


def keys(num_rows: int = NUM_TEST_ROWS) -> list[str]:
    return [f"k{i:04d}" for i in range(num_rows)]


@pytest.mark.parametrize("batch_rows", [7, 101, 202, 203, 10_000])  # 202: one row is left for the end
def test_every_row_comes_once_in_order(folder: Path, expected: np.ndarray, tmp_path: Path, batch_rows: int) -> None:
    inputs = [str(folder / "raw" / name) for name in ("a.parquet", "b.parquet", "c.parquet")]
    result = predict(folder / "run", inputs, tmp_path / "p.parquet", batch_rows=batch_rows, progress=False)
    found = pq.read_table(tmp_path / "p.parquet")
    assert found.column_names == ["key", "label"] and result.num_rows == NUM_TEST_ROWS
    assert found["key"].to_pylist() == keys()
    np.testing.assert_allclose(found["label"].to_numpy(), expected, atol=1e-6, rtol=0)
    assert expected.std() > 1e-3, "rows score alike, so their order would not show"
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]


def test_one_row_at_a_time(folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(folder / "raw" / "a.parquet").slice(0, 5), tmp_path / "five.parquet")
    predict(folder / "run", [str(tmp_path / "five.parquet")], tmp_path / "p.parquet", batch_rows=1, progress=False)
    found = pq.read_table(tmp_path / "p.parquet")
    assert found["key"].to_pylist() == keys(5)
    np.testing.assert_allclose(found["label"].to_numpy(), expected[:5], atol=1e-6, rtol=0)


def test_csv_says_what_parquet_says(folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    predict(folder / "run", [str(folder / "raw")], tmp_path / "p.csv", batch_rows=64, progress=False)
    found = pacsv.read_csv(tmp_path / "p.csv")
    assert found["key"].to_pylist() == keys()
    np.testing.assert_allclose(found["label"].to_numpy(), expected, atol=1e-6, rtol=0)


def test_a_submission_has_the_header_that_is_asked_for(folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    """Byte for byte: no quotes where none are needed, another id than the config's, names of the competition's own."""
    raw = pq.read_table(folder / "raw" / "a.parquet")
    pq.write_table(raw.append_column("ID", pa.array([f"TEST_{i:03d}" for i in range(90)])), tmp_path / "test.parquet")
    arguments = ["predict", folder / "run", tmp_path / "test.parquet", "--out", tmp_path / "s.csv", "--row-id", "ID"]
    assert main([*map(str, arguments), "--columns", "ID,clicked", "--batch-rows", "32"]) == 0
    header, *lines = (tmp_path / "s.csv").read_text().splitlines()
    assert header == "ID,clicked" and [line.split(",")[0] for line in lines] == [f"TEST_{i:03d}" for i in range(90)]
    np.testing.assert_allclose([float(line.split(",")[1]) for line in lines], expected[:90], atol=1e-6, rtol=0)


def test_the_last_path_is_the_output_of_a_run_too(folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    assert main(["predict", *map(str, (folder / "run", folder / "raw" / "a.parquet", tmp_path / "p.csv")), "--which", "best"]) == 0
    np.testing.assert_allclose(pacsv.read_csv(tmp_path / "p.csv")["label"].to_numpy(), expected[:90], atol=1e-6, rtol=0)


def test_ids_that_need_quotes_come_back(folder: Path, tmp_path: Path) -> None:
    raw = pq.read_table(folder / "raw" / "a.parquet")
    odd = ["a,b", 'say "x"', "two\nlines", "", None, *(f"k{i}" for i in range(85))]
    pq.write_table(raw.append_column("ID", pa.array(odd)), tmp_path / "test.parquet")
    predict(folder / "run", [str(tmp_path / "test.parquet")], tmp_path / "s.csv", row_id="ID", batch_rows=40, progress=False)
    options = pacsv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    parse = pacsv.ParseOptions(newlines_in_values=True)
    assert pacsv.read_csv(tmp_path / "s.csv", parse_options=parse, convert_options=options)["ID"].to_pylist() == odd


def test_a_feature_can_be_the_row_id(folder: Path, tmp_path: Path) -> None:
    """Features that are ids are read as dictionaries."""
    predict(folder / "run", [str(folder / "raw")], tmp_path / "p.csv", row_id="device", batch_rows=64, progress=False)
    found = pacsv.read_csv(tmp_path / "p.csv", convert_options=pacsv.ConvertOptions(strings_can_be_null=True))
    assert found["device"].to_pylist() == pq.read_table(folder / "raw")["device"].to_pylist()


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_do_not_change_what_is_written(folder: Path, tmp_path: Path, workers: int) -> None:
    out = {}
    for number in (2, workers):
        path = tmp_path / f"{number}.csv"
        predict(folder / "run", [str(folder / "raw")], path, batch_rows=16, workers=number, progress=False)
        out[number] = path.read_bytes()
    assert out[2] == out[workers]


def test_text_rows_without_an_id_get_their_position(folder: Path, tmp_path: Path) -> None:
    """A run on CSV files, where ids are text and a row's name is where it stands."""
    raw = raw_config(tmp_path, "run")
    for name in ("train", "valid"):
        pacsv.write_csv(pq.read_table(folder / f"{name}.parquet").drop(["tags", "history"]), tmp_path / f"{name}.csv")
    files = {f"data__{name}": str(tmp_path / f"{name}.csv") for name in ("train", "valid", "test")}
    files["data__test"] = files["data__valid"]
    features = {name: feature for name, feature in raw["features"].items() if name != "tags"}
    run = train_run(tmp_path, features=features, **files)
    inputs = [files["data__valid"], files["data__train"]]
    predict(run, inputs, tmp_path / "p.csv", batch_rows=33, progress=False)
    found = pacsv.read_csv(tmp_path / "p.csv")
    both = pa.concat_tables([pq.read_table(folder / f"{name}.parquet") for name in ("valid", "train")])
    as_text = [c.cast(pa.string()) if n in ("user", "item") else c for n, c in zip(both.column_names, both.columns)]
    assert found.column_names == ["row", "label"]
    assert found["row"].to_pylist() == list(range(500))
    want = answers(run, pa.table(as_text, names=both.column_names))[:, 0]
    np.testing.assert_allclose(found["label"].to_numpy(), want, atol=1e-6, rtol=0)


def test_evaluation_and_bundle_say_the_same(folder: Path, tmp_path: Path) -> None:
    predict(folder / "run", [str(folder / "raw")], tmp_path / "p.parquet", progress=False)
    found = pq.read_table(tmp_path / "p.parquet")["label"].to_numpy()
    checkpoint = choose(folder / "run")
    config, cache = read_config(checkpoint), Cache.open(folder / "cache-run")
    with processes() as procs:
        built = build_task(config, read_schema(checkpoint), procs)
        predict_module.checkpoint.load_weights(checkpoint, built.state_dict(), averaged=True)
        with evaluation_mode(built):
            evaluated = score(built, cache, "test", config, procs).predictions[:, 0].numpy()
    np.testing.assert_allclose(found, evaluated, atol=1e-6, rtol=0)
    export_run(folder / "run", out=tmp_path / "bundle")
    answered = Bundle(tmp_path / "bundle").predict(pq.read_table(folder / "test.parquet"))[:, 0]
    np.testing.assert_allclose(found, answered, atol=1e-6, rtol=0)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_bad_row_is_named_and_no_output_left(folder: Path, tmp_path: Path, suffix: str) -> None:
    table = pq.read_table(folder / "test.parquet")
    price = pa.array([None if i == 150 else p for i, p in enumerate(table["price"].to_pylist())])
    bad = table.set_column(table.column_names.index("price"), "price", price)
    pq.write_table(bad, tmp_path / "bad.parquet")
    inputs = [str(folder / "raw" / "a.parquet"), str(tmp_path / "bad.parquet")]
    out = tmp_path / f"p{suffix}"
    with pytest.raises(ValueError, match=r"bad\.parquet: column 'price', data row 151") as error:
        predict(folder / "run", inputs, out, batch_rows=32, progress=False)
    assert "missing" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.parquet"]


def test_interrupted_it_leaves_what_was_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = predict_module._score, []

    def until_the_third(*args: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 3:
            assert (tmp_path / "p.csv.partial").exists(), "nothing was written before the interruption"
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(predict_module, "_score", until_the_third)
    (tmp_path / "p.csv").write_text("from an earlier run")
    with pytest.raises(KeyboardInterrupt):
        predict(folder / "run", [str(folder / "raw")], tmp_path / "p.csv", batch_rows=50, progress=False)
    assert (tmp_path / "p.csv").read_text() == "from an earlier run"
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("p.json", {}, r"p\.json: give a name that ends in \.parquet or \.csv"),
        ("p.csv", {"batch_rows": 0}, "batch_rows: given 0; must be at least 1"),
        ("p.csv", {"columns": ["ID"]}, "columns: given 'ID'; must be 2 different names, to stand for key,label"),
        ("p.csv", {"columns": ["ID", "ID"]}, "columns: given 'ID,ID'; must be 2 different names"),
        ("p.csv", {"row_id": "absent"}, r"a\.parquet: no column 'absent'"),
        ("raw/a.parquet", {}, r"a\.parquet: is one of the inputs and would replace it"),
    ],
)
def test_what_cannot_be_meant_is_refused(folder: Path, out: str, options: dict[str, Any], message: str) -> None:
    before = (folder / "raw" / "a.parquet").read_bytes()
    with pytest.raises(ValueError, match=message):
        predict(folder / "run", [str(folder / "raw")], folder / out, progress=False, **options)
    assert (folder / "raw" / "a.parquet").read_bytes() == before


def test_a_column_of_which_nothing_is_known_is_pointed_out(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = pq.read_table(folder / "test.parquet")
    predict(folder / "run", [str(folder / "test.parquet")], tmp_path / "right.parquet", progress=False)
    assert "not one" not in caplog.text
    column = rows.column_names.index("user")
    for num_rows, told in ((rows.num_rows, 1), (20, 0)):
        caplog.clear()
        wrong = rows.set_column(column, "user", pa.array(range(10**6, 10**6 + rows.num_rows))).slice(0, num_rows)
        pq.write_table(wrong, tmp_path / "wrong.parquet")
        predict(folder / "run", [str(tmp_path / "wrong.parquet")], tmp_path / "p.parquet", progress=False)
        assert caplog.text.count("not one of the") == told
        assert (f"features.user: not one of the {num_rows:,} rows has a value that was seen" in caplog.text) == bool(told)


def test_missing_columns_and_files_are_named(folder: Path, tmp_path: Path) -> None:
    pq.write_table(log_rows(5, seed=1).drop(["item"]), tmp_path / "less.parquet")
    with pytest.raises(ValueError, match=r"less\.parquet: no column 'item'"):
        predict(folder / "run", [str(tmp_path / "less.parquet")], tmp_path / "p.csv", progress=False)
    with pytest.raises(ValueError, match=r"absent\.parquet"):
        predict(folder / "run", [str(tmp_path / "absent.parquet")], tmp_path / "p.csv", progress=False)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        predict(tmp_path, [str(folder / "raw")], tmp_path / "p.csv", progress=False)


def test_a_label_cannot_have_the_name_of_the_row_id(folder: Path) -> None:
    raw = raw_config(folder, "unused") | {"labels": {"row": {"column": "label"}}}
    with pytest.raises(C.ConfigError, match=r"labels\.row: trm predict writes the row's position under this name"):
        C.parse(raw)
    raw["data"]["row_id"] = "key"
    assert C.parse(raw).labels["row"].column == "label"


def torchrun(*arguments: str, num_processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += ["-m", "torchrec_models.pipelines.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)


def test_several_processes_write_what_one_writes(folder: Path, expected: np.ndarray, tmp_path: Path) -> None:
    """196 rows in pieces of 48: of the last four, two processes have two each and the third none."""
    num_rows = 196
    rows, out = tmp_path / "rows.parquet", tmp_path / "p.parquet"
    pq.write_table(pq.read_table(folder / "raw").slice(0, num_rows), rows)
    done = torchrun("predict", str(folder / "run"), str(rows), "--out", str(out), "--batch-rows", "48", num_processes=3)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("196 rows") == 1, "every process reports"
    found = pq.read_table(out)
    assert found["key"].to_pylist() == keys(num_rows)
    np.testing.assert_allclose(found["label"].to_numpy(), expected[:num_rows], atol=1e-6, rtol=0)
    predict(folder / "run", [str(rows)], tmp_path / "one.parquet", batch_rows=50, progress=False)
    assert found.schema.equals(pq.read_schema(tmp_path / "one.parquet"))


def test_a_bad_row_ends_both_processes(folder: Path, tmp_path: Path) -> None:
    """Only the process that has the row sees it; the other must not wait for ever, nor publish what it has."""
    table = pq.read_table(folder / "raw")
    price = pc.if_else(pc.equal(table["key"], "k0199"), None, table["price"])
    pq.write_table(table.set_column(table.column_names.index("price"), "price", price), tmp_path / "bad.parquet")
    done = torchrun(
        "predict", str(folder / "run"), str(tmp_path / "bad.parquet"), "--out", str(tmp_path / "p.csv"), "--batch-rows", "50"
    )
    assert done.returncode != 0
    assert "bad.parquet: column 'price', data row 200" in done.stderr
    assert not (tmp_path / "p.csv").exists()
