"""A published table by one command: two nets, two seeds, beside invented "published" values."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click_run import raw_config, write_click_log

from torchrec_models.pipelines.cli import main
from torchrec_models.pipelines.reproduce import Row, read_published, render

NETS = {"dnn": {"name": "dnn", "hidden_units": [8]}, "deepfm": {"name": "deepfm", "hidden_units": [8]}}
PUBLISHED = {
    "title": "Clicks",
    "seeds": [1, 2],
    "tolerance": 0.01,
    "nets": {"dnn": {"auc": 0.2, "log_loss": 9.0, "mean_auc": 0.1, "std_auc": 0.05}, "deepfm": {"auc": 0.999, "log_loss": 0.1}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clicks")
    write_click_log(folder)
    shutil.copy(folder / "valid.parquet", folder / "test.parquet")
    for net, model in NETS.items():
        raw = {**raw_config(folder, net), "model": model}
        raw["data"]["test"] = str(folder / "test.parquet")
        raw["train"]["epochs"] = 1
        (folder / f"{net}.yaml").write_text(yaml.safe_dump(raw))
    (folder / "published.yaml").write_text(yaml.safe_dump(PUBLISHED, sort_keys=False))
    return folder


def test_table_of_two_nets_and_two_seeds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out"
    assert main(["reproduce", str(folder), "--out", str(out), "--jobs", "2"]) == 0
    shown = capsys.readouterr().out
    rows = [Row(**row) for row in json.loads((out / "table.json").read_text())]
    assert [(row.net, row.seeds) for row in rows] == [("dnn", [1, 2]), ("deepfm", [1, 2])]
    for row in rows:
        evaluated = json.loads((out / f"{row.net}-2" / "evaluation" / "test" / "metrics.json").read_text())
        assert row.auc[1] == evaluated["tasks"]["label"]["metrics"]["auc"]["value"]
        assert row.auc[0] != row.auc[1], "seeds must matter"
        assert row.rows_per_second > 0 and row.epochs == [1, 1]
    assert rows[0].target == 0.1 and rows[1].target == 0.999
    lines = shown.splitlines()
    assert "0.20000 (mean 0.10000 +- 0.05000)" in lines[2] and "below" not in lines[2]
    assert "**below**" in lines[3]
    assert (out / "table.md").read_text().splitlines()[2] == lines[2]

    before = (out / "dnn-1" / "train.log").stat().st_mtime_ns
    assert main(["reproduce", str(folder), "--out", str(out), "--nets", "dnn"]) == 0
    assert (out / "dnn-1" / "train.log").stat().st_mtime_ns == before, "a finished run is not made again"
    assert main(["reproduce", str(folder), "--out", str(out), "--nets", "dnn", "--fused", "train.sparse.lr=0.5"]) == 2
    assert "was made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "given 'nowhere'; allowed: a folder with a published.yaml, or one of: frappe"),
        (["frappe", "--nets", "deepfn"], "no published result for deepfn; there are: lr, fm"),
    ],
)
def test_what_is_not_there_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_fails_says_why(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (out / "dnn-1").mkdir(parents=True)
    (out / "dnn-1" / "metrics.csv").mkdir()  # a folder where the log should be
    assert main(["reproduce", str(folder), "--out", str(out), "--nets", "dnn", "--seeds", "1"]) == 2
    assert "train.log" in capsys.readouterr().err


def test_published_values_are_read_strictly(tmp_path: Path) -> None:
    (tmp_path / "published.yaml").write_text(yaml.safe_dump({**PUBLISHED, "nets": {"dnn": {"auc": 0.5, "logloss": 1.0}}}))
    with pytest.raises(ValueError, match="logloss"):
        read_published(tmp_path)


def test_parameters_that_differ_from_the_published_count_show() -> None:
    published = {"auc": 0.9, "log_loss": 0.3, "mean_auc": None, "std_auc": None, "parameters": 100}
    row = Row("lr", [1], [0.91], [0.3], published, parameters=99, rows_per_second=1.0, minutes=[1.0], epochs=[3])
    table = read_published(Path(__file__).resolve().parents[1] / "configs" / "frappe")
    assert "| 99 (published 100) |" in render(table, [row])
    assert "+0.01000 |" in render(table, [row])
