"""Sharded over real gloo processes, a run must be the run that one process makes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import worker

TIMEOUT_SECONDS = 300


def launch(scenario: str, folder: Path, num_processes: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [str(Path(worker.__file__)), scenario, str(folder)]
    done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / f"{scenario}-{num_processes}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    worker.make_cache(folder)
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return launch("curves", folder, 1)


@pytest.fixture(scope="module")
def two(folder: Path, one: dict[str, Any]) -> dict[str, Any]:
    return launch("curves", folder, 2)


@pytest.mark.parametrize("mode", ["table_wise", "row_wise", "column_wise", "unfused"])
def test_two_processes_give_the_loss_curve_of_one(one: dict[str, Any], two: dict[str, Any], mode: str) -> None:
    assert len(two[mode]["losses"]) == len(one[mode]["losses"]) == 18
    assert two[mode]["losses"] == pytest.approx(one[mode]["losses"], abs=2e-6)
    assert two[mode]["valid"]["auc"] == pytest.approx(one[mode]["valid"]["auc"], abs=1e-4)
    first_epoch, second_epoch = one[mode]["losses"][:9], one[mode]["losses"][9:]
    assert sum(second_epoch) < sum(first_epoch), "nothing was learned, so equal curves would show little"


@pytest.mark.parametrize("mode", ["table_wise", "row_wise", "column_wise"])
def test_every_table_is_sharded_as_asked_and_every_collection_pipelined(two: dict[str, Any], mode: str) -> None:
    # first-order tables are 4 columns wide, too narrow for two column shards
    assert two[mode]["planned"] == (3 if mode == "column_wise" else 6)
    assert two[mode]["pipelined"] == ["model.embedding.ebc", "model.embedding.ecs.0", "model.embedding.ecs.1"]


def test_a_checkpoint_of_two_processes_scores_alike_on_one_and_three(folder: Path, two: dict[str, Any]) -> None:
    runs = {f"{mode}-2": {} for mode in ("table_wise", "row_wise", "column_wise", "unfused")}
    (folder / "plans.json").write_text(json.dumps(runs))
    alone, three = launch("evaluate", folder, 1), launch("evaluate", folder, 3)
    for run in runs:
        assert len(alone[run]) == 101
        assert three[run] == pytest.approx(alone[run], abs=1e-6)


RESUMED = {
    # run begun by two processes -> how three processes go on: another sharding type, another optimizer state layout
    "table_wise-2": {"sharding__types": ["row_wise"]},
    "row_wise-2": {"sharding__types": ["table_wise"]},
    "column_wise-2": {"sharding__types": ["row_wise"]},
}


def test_three_processes_go_on_where_two_stopped(folder: Path, one: dict[str, Any], two: dict[str, Any]) -> None:
    for run in RESUMED:
        for checkpoint in sorted((folder / run / "checkpoints").iterdir())[1:]:
            shutil.rmtree(checkpoint)  # as if killed after step 6
    (folder / "plans.json").write_text(json.dumps(RESUMED))
    found = launch("resume", folder, 3)
    for run in RESUMED:
        whole_run = one[run.removesuffix("-2")]
        assert found[run]["evaluated_at"] == [6, 12, 18]
        assert found[run]["losses"] == pytest.approx(whole_run["losses"][6:], abs=2e-6)
        assert found[run]["valid"]["auc"] == pytest.approx(whole_run["valid"]["auc"], abs=1e-4)


def test_row_wise_moments_survive_a_change_to_column_shards_and_back(folder: Path) -> None:
    """Row-wise Adagrad keeps one moment per row and column shard; torch's checkpoint alone cannot reshard that."""
    rowwise = {"train__sparse__optimizer": "rowwise_adagrad", "train__schedule__kind": "constant"}
    begun = {**rowwise, "sharding__types": ["row_wise"], "train__steps": 6}
    (folder / "plans.json").write_text(json.dumps({"moments": begun}))
    launch("resume", folder, 2)
    columns = {**rowwise, "sharding__types": ["column_wise"], "train__steps": 12}
    (folder / "plans.json").write_text(json.dumps({"moments": columns}))
    assert len(launch("resume", folder, 2)["moments"]["losses"]) == 6
    whole = {**rowwise, "sharding__types": ["table_wise"], "train__steps": 18}
    straight = {**whole, "train__steps": 18}
    (folder / "plans.json").write_text(json.dumps({"moments": whole, "straight": straight}))
    found = launch("resume", folder, 1)
    assert len(found["moments"]["losses"]) == 6
    # the column shards' moments drift apart for six steps, so close, not equal
    assert found["moments"]["losses"] == pytest.approx(found["straight"]["losses"][12:], abs=5e-3)
