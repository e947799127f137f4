"""Processes that are killed: `kill -9` and Ctrl-C at random moments, alone and under torchrun. Nothing is lost, nothing hangs."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click_run import differing, last_state, metric_rows, prepared, raw_config

from torchrec_models.pipelines.checkpoint_folder import latest_usable, list_checkpoints, read_progress

CLI = "torchrec_models.pipelines.cli"
COMPONENTS = Path(__file__).parents[2] / "launch" / "components.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TIMEOUT_SECONDS = 120
NUM_STEPS = 88


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared log and `config.yaml`: 88 steps, a checkpoint after every second one, steps that may take 10 s."""
    folder = prepared(tmp_path_factory.mktemp("clicks"))
    raw = raw_config(folder, "unused")
    raw["train"] |= {"epochs": 8, "step_timeout_seconds": 10, "checkpoint": {"every_steps": 2, "keep": 2}}
    (folder / "config.yaml").write_text(json.dumps(raw))
    return folder


def start(words: list[str], log: Path) -> subprocess.Popen:
    def hear_interrupts() -> None:  # which a shell's background jobs do not, and hand on
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, "-m", *words]
    with log.open("a") as file:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT, preexec_fn=hear_interrupts)


def last_step(run: Path) -> int:
    folders = list_checkpoints(run)
    return int(folders[-1].name.removeprefix("step-")) if folders else 0


def wait(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"hung:\n{log.read_text()[-3000:]}"
        assert process.poll() is None, f"ended early:\n{log.read_text()[-3000:]}"
        time.sleep(0.002)


def finish(process: subprocess.Popen, log: Path) -> int:
    try:
        return process.wait(TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"hung:\n{log.read_text()[-3000:]}")


def assert_same_run(run: Path, whole: Path, scratch: Path) -> None:
    assert differing(last_state(whole, scratch / "whole.pt"), last_state(run, scratch / "run.pt")) == []
    assert metric_rows(run) == metric_rows(whole)
    assert read_progress(latest_usable(run)) == read_progress(latest_usable(whole))
    assert (run / "best.json").read_text() == (whole / "best.json").read_text()


def test_a_run_killed_five_times_and_interrupted_once_is_the_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    whole, run, log = data / "whole", data / "killed", tmp_path / "log"
    train = [CLI, "train", str(data / "config.yaml")]
    assert finish(start([*train, f"run={whole}"], log), log) == 0
    moments = random.Random(8)
    reached = 0
    for number in range(6):
        process = start([*train, f"run={run}"], log)
        target = reached + moments.randrange(2, 12)
        wait(lambda at=target: last_step(run) >= at, process, log)
        if number in (1, 3):  # while a checkpoint is written
            wait(lambda: any((run / "checkpoints").glob("*.partial")), process, log)
        else:
            time.sleep(moments.random() * 0.1)
        process.send_signal(signal.SIGINT if number == 5 else signal.SIGKILL)
        assert finish(process, log) == (130 if number == 5 else -signal.SIGKILL)
        reached = last_step(run)
    assert reached < NUM_STEPS
    text = log.read_text()
    assert "interrupted; what is finished is kept, the same command goes on from there" in text
    assert "Traceback" not in text
    assert finish(start([*train, f"run={run}"], log), log) == 0
    assert log.read_text().count("resuming") == 6
    assert_same_run(run, whole, tmp_path)


@pytest.fixture(scope="module")
def launched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes through torchx."""
    pytest.importorskip("torchx", reason="torchx is not installed")
    folder = tmp_path_factory.mktemp("torchx")
    run, log = data / "launched", folder / "log"
    place = ["-s", "local_cwd", "-cfg", f"log_dir={folder}", f"{COMPONENTS}:train"]
    options = ["--config", str(data / "config.yaml"), "--nproc", "2", "--python", sys.executable, "--", f"run={run}"]
    process = start(["torchx.cli.main", "run", *place, *options], log)
    assert finish(process, log) == 0, log.read_text()[-3000:]
    return run


def test_torchx_trains_with_tables_spread_over_two_processes(launched: Path) -> None:
    last = latest_usable(launched)
    plan = (last / "plan.txt").read_text()
    assert last.name == f"step-{NUM_STEPS:08d}" and plan.startswith("2 processes\n")
    assert {p.name for p in last.glob("rng-*")} == {"rng-0.pt", "rng-1.pt"}
    assert "rank:0" in plan.replace(" ", "") and "rank:1" in plan.replace(" ", "")


def workers(agent: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]


def test_a_job_restarts_from_its_last_checkpoint_when_a_process_is_killed(data: Path, launched: Path, tmp_path: Path) -> None:
    """Each of the two processes once."""
    run, log = data / "restarted", tmp_path / "log"
    launcher = ["torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--max-restarts=3"]
    agent = start([*launcher, "--nproc-per-node=2", "-m", CLI, "train", str(data / "config.yaml"), f"run={run}"], log)
    moments = random.Random(3)
    reached, old = 0, []
    for rank in (1, 0):
        target = reached + moments.randrange(2, 20)
        wait(lambda at=target, gone=old: last_step(run) >= at and not set(gone) & set(workers(agent)), agent, log)
        time.sleep(moments.random() * 0.1)
        old = workers(agent)
        os.kill(old[rank], signal.SIGKILL)
        reached = last_step(run)
    assert finish(agent, log) == 0, log.read_text()[-3000:]
    assert log.read_text().count("resuming") == 2
    assert_same_run(run, launched, tmp_path)
