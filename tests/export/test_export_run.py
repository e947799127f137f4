"""From a run folder to a bundle: which checkpoint, which rows, which metrics, and where it goes."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scored_run import answers, train_run, write_files

from torchrec_models import Bundle
from torchrec_models.pipelines.checkpoint_folder import best_name, list_checkpoints
from torchrec_models.pipelines.evaluation.run import evaluate_run
from torchrec_models.pipelines.export.run import export_run

CHANGES = {"train__evaluate_every_steps": 3, "export__parity_rows": 150}  # two checkpoints, the better one is the best


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clicks")
    write_files(folder)
    train_run(folder, **CHANGES)
    return folder


def manifest(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_text())


def test_the_bundle_answers_as_the_run_does(folder: Path, tmp_path: Path) -> None:
    text = export_run(folder / "run", out=tmp_path / "bundle")
    bundle = Bundle(tmp_path / "bundle")
    rows = pq.read_table(folder / "test.parquet")
    np.testing.assert_allclose(bundle.predict(rows), answers(folder / "run", rows), atol=1e-6, rtol=0)
    assert bundle.self_test() <= 1e-6
    assert f"150 rows of {folder / 'test.parquet'} scored by PyTorch and by ONNX Runtime differ by at most" in text
    found = manifest(tmp_path / "bundle")
    assert found["parity"]["num_rows"] == 150 and found["parity"]["max_difference"] <= 1e-6
    assert found["source"] == {"run": "run", "checkpoint": best_name(folder / "run"), "step": int(best_name(folder / "run")[-8:])}


def test_the_last_checkpoint_can_be_asked_for(folder: Path, tmp_path: Path) -> None:
    rows = pq.read_table(folder / "test.parquet")
    first, last = (answers(checkpoint, rows) for checkpoint in list_checkpoints(folder / "run"))
    assert np.abs(first - last).max() > 1e-4, "the checkpoints answer alike, so the choice would not show"
    export_run(folder / "run", out=tmp_path / "bundle", which="last")
    np.testing.assert_allclose(Bundle(tmp_path / "bundle").predict(rows), last, atol=1e-6, rtol=0)


def test_a_single_checkpoint_can_be_exported(folder: Path, tmp_path: Path) -> None:
    first = list_checkpoints(folder / "run")[0]
    export_run(first, out=tmp_path / "bundle")
    rows = pq.read_table(folder / "test.parquet")
    np.testing.assert_allclose(Bundle(tmp_path / "bundle").predict(rows), answers(first, rows), atol=1e-6, rtol=0)
    assert manifest(tmp_path / "bundle")["source"] == {"run": "run", "checkpoint": "step-00000003", "step": 3}


def test_a_bundle_is_replaced_only_when_told_and_carries_its_own_metrics(folder: Path, tmp_path: Path) -> None:
    """Test metrics where this checkpoint was evaluated, else its validation metrics, and never those of another checkpoint."""
    first, last = list_checkpoints(folder / "run")
    evaluate_run(last, progress=False)
    evaluated = json.loads((folder / "run" / "evaluation" / "test" / "metrics.json").read_text())
    out = tmp_path / "bundle"
    export_run(first, out=out)
    progress = json.loads((first / "progress.json").read_text())
    assert manifest(out)["metrics"] == pytest.approx(progress["metrics"]) and "auc" in progress["metrics"]
    with pytest.raises(ValueError, match="exists already"):
        export_run(last, out=out)
    assert manifest(out)["source"]["step"] == 3
    export_run(last, out=out, overwrite=True)
    assert manifest(out)["source"]["step"] == 6
    assert manifest(out)["metrics"] == evaluated["tasks"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_without_test_files_validation_rows_are_the_check(folder: Path, tmp_path: Path) -> None:
    run = train_run(folder, "no-test", data__test=[])
    text = export_run(run, out=tmp_path / "bundle")
    assert f"100 rows of {folder / 'valid.parquet'}" in text


def test_raw_rows_that_are_gone_are_named(folder: Path, tmp_path: Path) -> None:
    write_files(tmp_path)
    run = train_run(tmp_path)
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(ValueError, match=r"test\.parquet"):
        export_run(run, out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
