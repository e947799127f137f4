"""`trm predict BUNDLE`: the bundle's answers, in input order, from Parquet and CSV, and without torch."""

import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from bundle_cases import click_rows, export_model, identity_rows, identity_transforms, make_model
from fixtures import RETRIEVAL_SCHEMA

from torchrec_models import Bundle
from torchrec_models.pipelines.cli import main
from torchrec_models.pipelines.serving.predict_files import predict_files

ROWS = click_rows(300, seed=8)


def answers(path):
    table = pq.read_table(path) if path.suffix == ".parquet" else pa.csv.read_csv(path)
    return np.stack([table.column(t).to_numpy() for t in ("click", "spend")], axis=1)


def test_files_in_predictions_out(click_bundles, tmp_path, capsys):
    pq.write_table(ROWS.slice(0, 100), tmp_path / "a.parquet")
    pq.write_table(ROWS.slice(100), tmp_path / "b.parquet", row_group_size=37)
    out = tmp_path / "out" / "scores.parquet"
    arguments = ["predict", click_bundles[0], tmp_path / "*.parquet", "--out", out, "--batch-rows", "64"]
    assert main(list(map(str, arguments))) == 0
    assert re.search(r"300 rows in [\d.]+ s \([\d,]+ rows/s, ONNX Runtime\)", capsys.readouterr().out)
    expected = Bundle(click_bundles[0]).predict(ROWS)
    np.testing.assert_allclose(answers(out), expected, atol=1e-6)
    assert pq.read_table(out).column("row").to_pylist() == list(range(300))


def test_the_output_is_named_as_asked(click_bundles, tmp_path):
    rows = ROWS.append_column("ID", pa.array([f"r{i}" for i in range(300)]))
    pq.write_table(rows, tmp_path / "rows.parquet")
    out = tmp_path / "s.csv"
    arguments = ["predict", click_bundles[0], tmp_path / "rows.parquet", "--out", out, "--row-id", "ID", "--columns", "ID,p,q"]
    assert main(list(map(str, arguments))) == 0
    assert out.read_text().startswith("ID,p,q\nr0,")
    assert pa.csv.read_csv(out)["ID"].to_pylist() == rows["ID"].to_pylist()


def test_without_out_the_last_path_is_the_output(click_bundles, tmp_path, capsys):
    for name, rows in (("a", ROWS.slice(0, 100)), ("b", ROWS.slice(100))):
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    paths = [str(tmp_path / f"{name}.parquet") for name in ("a", "b", "scores")]
    assert main(["predict", str(click_bundles[0]), *paths]) == 0
    assert re.search(r"scores\.parquet: 300 rows in [\d.]+ s \([\d,]+ rows/s", capsys.readouterr().out)
    np.testing.assert_allclose(answers(tmp_path / "scores.parquet"), Bundle(click_bundles[0]).predict(ROWS), atol=1e-6)
    before = (tmp_path / "b.parquet").read_bytes()
    for given, said in (
        (paths[:2], r"b\.parquet: would be the output, .* but it exists; name the output by --out"),
        ([paths[0], str(tmp_path / "c*.parquet")], "but it is a pattern; name the output by --out"),
        (paths[:1], "give files to predict .* by --out, or as the last path"),
    ):
        assert main(["predict", str(click_bundles[0]), *given]) == 2
        assert re.search(said, capsys.readouterr().err)
    assert (tmp_path / "b.parquet").read_bytes() == before


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_bundle_has_no_checkpoint_to_choose(click_bundles, tmp_path, capsys, which):
    pq.write_table(ROWS, tmp_path / "rows.parquet")
    out = tmp_path / "out.parquet"
    assert main(["predict", *map(str, (click_bundles[0], tmp_path / "rows.parquet", out)), "--which", which]) == 2
    assert "is a bundle, made of one checkpoint; --which is for the folder of a run" in capsys.readouterr().err
    assert not out.exists()


def test_text_files_are_read_as_in_training(click_bundles, tmp_path):
    rows = ROWS.drop_columns(["history", "site", "label"])
    lists = {name: pa.nulls(300, ROWS[name].type) for name in ("history", "site")}
    pa.csv.write_csv(rows, tmp_path / "rows.csv")
    with pytest.raises(ValueError, match=r"rows\.csv.*history"):
        predict_files(click_bundles[0], [str(tmp_path / "rows.csv")], tmp_path / "out.csv", progress=False)
    assert not (tmp_path / "out.csv").exists()
    with_lists = rows.append_column("history", lists["history"]).append_column("site", lists["site"])
    pq.write_table(with_lists, tmp_path / "rows.parquet")
    predict_files(click_bundles[0], [str(tmp_path / "rows.parquet")], tmp_path / "out.csv", progress=False)
    np.testing.assert_allclose(answers(tmp_path / "out.csv"), Bundle(click_bundles[0]).predict(with_lists), atol=1e-6)


def test_what_is_refused(click_bundles, tmp_path):
    source = tmp_path / "rows.parquet"
    pq.write_table(ROWS.set_column(7, "price", pa.array([-5.0] * 300)), source)
    for out, said in (("out.json", "ends in .parquet or .csv"), ("rows.parquet", "is one of the inputs")):
        with pytest.raises(ValueError, match=said):
            predict_files(click_bundles[0], [str(source)], tmp_path / out, progress=False)
    with pytest.raises(ValueError, match=r"feature 'price': .*rows\.parquet: column 'price', data row 1: log1p has no value"):
        predict_files(click_bundles[0], [str(source)], tmp_path / "out.parquet", progress=False)
    assert not list(tmp_path.glob("out*"))
    two = tmp_path / "two"
    export_model(
        make_model(RETRIEVAL_SCHEMA, "two_tower"), identity_transforms(RETRIEVAL_SCHEMA), identity_rows(RETRIEVAL_SCHEMA, 20), two
    )
    with pytest.raises(ValueError, match="is a retrieval model"):
        predict_files(two, [str(source)], tmp_path / "out.parquet", progress=False)


def test_neither_predict_nor_serve_needs_torch(click_bundles, tmp_path):
    """Both verbs in processes in which importing torch and what comes with training fails."""
    pq.write_table(ROWS, tmp_path / "rows.parquet")
    blocked = [
        "torch",
        "torchrec",
        "fbgemm_gpu",
        "onnx",
        "onnxscript",
        "pandas",
        "jinja2",
        "matplotlib",
        "tensorboard",
        "sklearn",
        "torchx",
    ]
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked in this test", name=name)
sys.meta_path.insert(0, Blocked())
from torchrec_models.pipelines.cli import main
if sys.argv[1] == "predict":
    sys.exit(main(sys.argv[1:]))
import asyncio
from pathlib import Path
from torchrec_models.pipelines.serving.server import BundleOption, ServeOptions, Worker
app = Worker(ServeOptions(bundles=(BundleOption(name="click", path=Path(sys.argv[2])),))).app
sent = []
async def receive():
    return {{"type": "http.request", "body": b'{{"item": 101, "price": 2.5}}'}}
async def send(message):
    sent.append(message)
scope = {{"type": "http", "method": "POST", "path": "/predict", "headers": []}}
asyncio.run(app(scope, receive, send))
assert sent[0]["status"] == 200, sent
"""
    for arguments in (
        ["predict", click_bundles[0], tmp_path / "rows.parquet", "--out", tmp_path / "out.parquet"],
        ["serve", click_bundles[0]],
    ):
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(answers(tmp_path / "out.parquet"), Bundle(click_bundles[0]).predict(ROWS), atol=1e-6)
