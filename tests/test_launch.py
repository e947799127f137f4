"""The torchx components: what each would run, on this machine and on Slurm, and one real run with a stand-in for Python."""

import ast
import shlex
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from torchrec_models.pipelines.config import load
from torchrec_models.pipelines.data.prepare import prepare

runner = pytest.importorskip("torchx.runner", reason="torchx is not installed")

COMPONENTS = Path(__file__).parents[1] / "launch" / "components.py"
RUN = ("--run", "runs/a b")


def dryrun(component: str, arguments: list[str], *, scheduler: str = "local_cwd"):
    with runner.get_runner() as torchx:
        return torchx.dryrun_component(f"{COMPONENTS}:{component}", arguments, scheduler)


def command(component: str, *arguments: str) -> list[str]:
    """The words that the shell of the first replica would run."""
    request = dryrun(component, list(arguments)).request
    (replica, *_), *_ = request.role_params.values()
    bash, option, text = replica.args
    assert (bash, option) == ("bash", "-c")
    return shlex.split(text)


@pytest.mark.parametrize("verb", ["prepare", "export"])
def test_jobs_of_one_process_call_the_command_line_with_words_kept_whole(verb: str) -> None:
    place = ("--config", "c $x.yaml") if verb == "prepare" else ("--run", "c $x.yaml")
    assert command(verb, *place, "--", "data.train=[a, 'b c']", "a='$HOME'") == [
        *("exec", "python", "-m", "torchrec_models.pipelines.cli", verb, "c $x.yaml", "data.train=[a, 'b c']", "a='$HOME'")
    ]


@pytest.mark.parametrize(
    ("verb", "place", "restarts"),
    [("prepare", ("--config", "c.yaml"), 0), ("train", ("--config", "c.yaml"), 3), ("evaluate", RUN, 0), ("predict", RUN, 0)],
)
def test_jobs_of_many_processes_go_through_torchrun(verb: str, place: tuple[str, str], restarts: int) -> None:
    words = command(verb, *place, "--nproc", "2", "--python", "/opt/my python", "--", "--verbose", "train.epochs=2")
    assert words[:4] == ["exec", "/opt/my python", "-m", "torch.distributed.run"]
    options = dict(zip(words[4:16:2], words[5:16:2], strict=True))
    assert options.pop("--rdzv_id").startswith(f"trm-{verb}-")
    assert options == {
        "--rdzv_backend": "c10d",
        "--rdzv_endpoint": "localhost:0",
        "--nnodes": "1",
        "--nproc_per_node": "2",
        "--max_restarts": str(restarts),
    }
    assert words[16:] == ["-m", "torchrec_models.pipelines.cli", verb, place[1], "--verbose", "train.epochs=2"]


def test_serve_listens_on_every_address_and_names_its_port() -> None:
    request = dryrun("serve", ["--bundle", "ctr=/b", "--port", "9000", "--replicas", "2", "--", "--watch-seconds", "5"])
    replicas = request.request.role_params["serve"]
    assert len(replicas) == 2
    assert shlex.split(replicas[0].args[2]) == [
        *("exec", "python", "-m", "torchrec_models.pipelines.cli", "serve", "ctr=/b"),
        *("--host", "0.0.0.0", "--port", "9000", "--workers", "1", "--watch-seconds", "5"),
    ]
    assert request._app.roles[0].port_map == {"http": 9000}


def test_several_nodes_meet_at_the_host_that_slurm_names() -> None:
    script = str(dryrun("train", ["--config", "c.yaml", "--nnodes", "2", "--nproc", "4"], scheduler="slurm"))
    assert '"${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}:29500"' in script
    assert script.count("--nnodes 2 --nproc_per_node 4 --max_restarts 3") == 2  # one command per node


def test_no_processes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nproc and nnodes must be at least 1 .*given 0, 1 and 3"):
        dryrun("train", ["--config", "c.yaml", "--nproc", "0"])


def test_a_local_job_runs_the_command_and_reports_its_failure(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\ncase "$*" in *fail*) exit 3;; esac\n')
    python.chmod(0o755)
    with runner.get_runner() as torchx:
        for extra, state in (("x=1 2", "SUCCEEDED"), ("fail", "FAILED")):
            arguments = ["--config", "c.yaml", "--python", str(python), "--", extra]
            handle = torchx.run_component(f"{COMPONENTS}:prepare", arguments, "local_cwd", cfg={"log_dir": str(tmp_path / "log")})
            assert torchx.wait(handle, wait_interval=0.1).state.name == state
    assert (tmp_path / "arguments").read_text().splitlines() == ["-m", "torchrec_models.pipelines.cli", "prepare", "c.yaml", "fail"]


def test_three_local_processes_prepare_the_cache_that_one_makes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for i in range(4):
        rows = {"user": draw.integers(0, 90, 500), "price": draw.normal(size=500), "click": draw.integers(0, 2, 500)}
        pq.write_table(pa.table(rows), tmp_path / f"log-{i}.parquet")
    config = {
        "data": {"train": str(tmp_path / "*.parquet"), "cache": str(tmp_path / "three"), "rows_per_shard": 300},
        "features": {"user": {"kind": "categorical"}, "price": {"kind": "numeric", "steps": ["standard"]}},
        "labels": {"click": {}},
        "model": {"name": "deepfm"},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    prepare(load(path, [f"data.cache={tmp_path / 'one'}"]), progress=False)
    with runner.get_runner() as torchx:
        arguments = ["--config", str(path), "--python", sys.executable, "--nproc", "3"]
        handle = torchx.run_component(f"{COMPONENTS}:prepare", arguments, "local_cwd", cfg={"log_dir": str(tmp_path / "log")})
        status = torchx.wait(handle, wait_interval=0.5)
    output = "\n".join(file.read_text() for file in (tmp_path / "log").rglob("*.log"))
    assert status.state.name == "SUCCEEDED", output
    one, three = (
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "one", tmp_path / "three")
    )
    assert one == three and len(one) > 30
    told = "".join(file.read_text() for file in (tmp_path / "log").rglob("stdout.log"))
    assert told.count("2,000 rows") == 1, "one of them tells"


def test_two_local_processes_train_one_sharded_model(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    user, item = draw.integers(0, 20, 800), draw.integers(0, 30, 800)
    pq.write_table(pa.table({"user": user, "item": item, "click": (user + item) % 2}), tmp_path / "log.parquet")
    config = {
        "run": str(tmp_path / "run"),
        "data": {"train": str(tmp_path / "log.parquet"), "cache": str(tmp_path / "cache"), "split": {"by": "random"}},
        "features": {"user": {"kind": "categorical", "dim": 4}, "item": {"kind": "categorical", "dim": 4}},
        "labels": {"click": {}},
        "model": {"name": "deepfm", "hidden_units": [8]},
        "train": {"batch_size": 100, "tensorboard": False},
        "sharding": {"types": ["row_wise"]},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    prepare(load(path), progress=False)
    with runner.get_runner() as torchx:
        place = ["--config", str(path), "--python", sys.executable]
        arguments = [*place, "--nproc", "2", "--max_restarts", "0", "--", "train.epochs=2"]
        handle = torchx.run_component(f"{COMPONENTS}:train", arguments, "local_cwd", cfg={"log_dir": str(tmp_path / "log")})
        status = torchx.wait(handle, wait_interval=0.5)
    output = "\n".join(file.read_text() for file in (tmp_path / "log").rglob("*.log"))
    assert status.state.name == "SUCCEEDED", output
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert saved.name == "step-00000014"  # 2 epochs of 650 rows or so at 100 rows over both processes
    plan = (saved / "plan.txt").read_text()
    assert plan.startswith("2 processes") and "row_wise" in plan


def test_components_import_nothing_of_ours() -> None:
    tree = ast.parse(COMPONENTS.read_text())
    roots = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert roots == {"shlex", "torchx"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
