"""Checkpoints: what is damaged is refused by name, what is whole comes back to the bit, what cannot fit is refused in words."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click_run import differing, last_state, make_config, prepared, raw_config

from torchrec_models.pipelines import checkpoint_folder
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.checkpoint import load_model
from torchrec_models.pipelines.checkpoint_folder import CheckpointError, choose, latest_usable, list_checkpoints, verify
from torchrec_models.pipelines.data.prepare import open_prepared, prepare
from torchrec_models.pipelines.distributed import processes
from torchrec_models.pipelines.train import Trainer, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("clicks"))


@pytest.fixture(scope="module")
def finished(data: Path) -> Path:
    """A run with checkpoints at 3, 6, 9, 11 (evaluated) and 12; not to be altered."""
    train(make_config(data, "finished", train__steps=12), progress=False)
    return data / "finished"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(finished, tmp_path / "run")


def names(run: Path) -> list[str]:
    return [p.name for p in list_checkpoints(run)]


# --- damage -----------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # transforms are hard links into the cache
    path.write_bytes(content)


DAMAGE = [
    ("__0_0.distcp", truncate, r"__0_0.distcp has \d+ bytes instead of \d+: truncated or altered"),
    ("__0_0.distcp", flip, r"__0_0.distcp was altered: its checksum is not the manifest's"),
    ("__0_0.distcp", Path.unlink, r"__0_0.distcp is missing"),
    (".metadata", flip, r"\.metadata was altered"),
    ("rng-0.pt", flip, r"rng-0.pt was altered"),
    ("progress.json", flip, r"progress.json was altered"),
    ("config.json", truncate, r"config.json has \d+ bytes instead of"),
    ("transforms/transforms.json", flip, r"transforms/transforms.json was altered"),
    ("manifest.json", truncate, r"manifest.json is damaged"),
    ("manifest.json", Path.unlink, r"manifest.json is missing: not a finished checkpoint"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), DAMAGE, ids=[f"{spoil.__name__}-{name}" for name, spoil, _ in DAMAGE])
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    run: Path, caplog: pytest.LogCaptureFixture, name: str, spoil: Any, message: str
) -> None:
    *_, before, last = list_checkpoints(run)
    verify(last)
    spoil(last / name)
    with pytest.raises(CheckpointError, match=rf"step-00000012/?.*{message}"):
        verify(last)
    caplog.clear()
    assert latest_usable(run) == before
    assert "checkpoint refused: " in caplog.text and "step-00000012" in caplog.text and "trying the one before" in caplog.text
    with pytest.raises(CheckpointError, match=message):
        load_model(run, which="last")
    with pytest.raises(CheckpointError, match=message):
        load_model(last)


def test_no_file_of_a_checkpoint_is_left_unverified(run: Path) -> None:
    last = list_checkpoints(run)[-1]
    on_disk = {str(p.relative_to(last)) for p in last.rglob("*") if p.is_file()}
    assert set(json.loads((last / "manifest.json").read_text())["files"]) == on_disk - {"manifest.json"}
    assert {"__0_0.distcp", ".metadata", "rng-0.pt", "progress.json", "config.json", "schema.json", "plan.txt"} < on_disk


def test_another_format_is_refused(run: Path) -> None:
    last = list_checkpoints(run)[-1]
    manifest = json.loads((last / "manifest.json").read_text())
    (last / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="step-00000012 has format 99; this version reads 1"):
        verify(last)


def test_without_a_usable_checkpoint_a_run_begins_anew(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in list_checkpoints(run):
        (folder / "manifest.json").unlink()
    assert latest_usable(run) is None
    assert caplog.text.count("checkpoint refused") == 5


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(data: Path, finished: Path) -> None:
    shutil.copytree(finished, data / "damaged")
    flip(list_checkpoints(data / "damaged")[-1] / "__0_0.distcp")
    result = train(make_config(data, "damaged", train__steps=12), progress=False)
    assert result.progress.step == 12
    verify(list_checkpoints(data / "damaged")[-1])  # written anew
    assert differing(last_state(finished, data / "a.pt"), last_state(data / "damaged", data / "b.pt")) == []


def test_half_written_checkpoints_never_count_and_are_cleared_away(data: Path, finished: Path) -> None:
    run = shutil.copytree(finished, data / "half")
    shutil.copytree(run / "checkpoints" / "step-00000012", run / "checkpoints" / "step-00000013.partial")
    assert names(run)[-1] == "step-00000012" and latest_usable(run).name == "step-00000012"
    assert choose(run, which="last").name == "step-00000012"
    train(make_config(data, "half", train__steps=14), progress=False)
    assert not list((run / "checkpoints").glob("*.partial")) and names(run)[-1] == "step-00000014"


# --- which are kept ---------------------------------------------------------------------------------------------------


def test_the_newest_and_the_best_are_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.9, 0.5, 0.6, 0.7])
    monkeypatch.setattr("torchrec_models.pipelines.train.validation_metrics", lambda *_: {"auc": next(values)})
    changes = {"train__checkpoint": {"every_steps": 1, "keep": 2}, "train__evaluate_every_steps": 3, "train__steps": 12}
    train(make_config(data, "kept", **changes), progress=False)
    assert names(data / "kept") == ["step-00000003", "step-00000011", "step-00000012"]
    assert json.loads((data / "kept" / "best.json").read_text()) == {
        "checkpoint": "step-00000003",
        "step": 3,
        "metrics": {"auc": 0.9},
    }
    assert [choose(data / "kept", which=which).name for which in ("best", "last")] == ["step-00000003", "step-00000012"]


def test_the_mark_of_the_best_is_replaced_at_once_or_not_at_all(
    data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the new mark is on the disk but not in place, or before it was begun: the old one stands, resuming sets it."""
    run = shutil.copytree(finished, data / "marks")
    old = (run / "best.json").read_text()
    best_step = json.loads(old)["step"]  # 11 or 12: close calls go either way with the number of threads
    for later in [c for c in list_checkpoints(run) if int(c.name[-8:]) > best_step]:
        shutil.rmtree(later)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint_folder.write_json(run / "best.json", {"checkpoint": "other"})
    assert (run / "best.json").read_text() == old
    monkeypatch.undo()
    (run / "best.json").write_text(json.dumps({"checkpoint": "step-00000006", "step": 6, "metrics": {}}))
    config = make_config(data, "marks", train__steps=12)
    with processes() as procs:
        Trainer(config, open_prepared(config), procs, show=False).resume(list_checkpoints(run)[-1])
    assert (run / "best.json").read_text() == old


def test_an_old_checkpoint_half_deleted_does_not_count(data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shutil.copytree(finished, data / "deleting")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint_folder.drop_old(run, keep=2)
    assert names(run) == ["step-00000011", "step-00000012"]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_models_load_from_best_last_and_a_folder(finished: Path) -> None:
    best = json.loads((finished / "best.json").read_text())["checkpoint"]
    found = [load_model(finished), load_model(finished, which="last"), load_model(finished / "checkpoints" / "step-00000006")]
    assert [m.checkpoint.name for m in found] == [best, "step-00000012", "step-00000006"]
    assert [m.progress.step for m in found] == [int(best[5:]), 12, 6]
    assert not found[0].model.training
    first, second = (m.model.state_dict() for m in found[1:])
    assert differing(first, second)
    with pytest.raises(CheckpointError, match=r"nowhere holds no checkpoint; train the run first"):
        load_model(finished / "nowhere")


def test_dense_weights_come_from_their_average_and_tables_as_they_are(data: Path, finished: Path) -> None:
    state = last_state(finished, data / "ema.pt")
    loaded = load_model(finished, which="last").model.state_dict()
    averaged = set(state["average"])
    assert averaged and not any("embedding" in name for name in averaged)
    for name, average in state["average"].items():
        assert torch.equal(loaded[name.removeprefix("model.")], average)
        assert not torch.equal(state["model"][name], average)
    for name in set(state["model"]) - averaged:
        assert torch.equal(loaded[name.removeprefix("model.")], state["model"][name])


def test_random_numbers_go_on_where_they_stopped(data: Path, finished: Path) -> None:
    shutil.copytree(finished, data / "random")
    config = make_config(data, "random", train__steps=12)
    torch.manual_seed(99)
    with processes() as procs:
        trainer = Trainer(config, open_prepared(config), procs, show=False)
        trainer.resume(list_checkpoints(data / "random")[-1])
        assert torch.equal(torch.get_rng_state(), torch.load(finished / "checkpoints" / "step-00000012" / "rng-0.pt")["cpu"])


def resume_into(data: Path, folder: Path, **changes: Any) -> None:
    """Past the check of the config, which would speak first."""
    config = make_config(data, "unused", **changes)
    with processes() as procs:
        Trainer(config, open_prepared(config), procs, show=False).resume(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"train__sparse__optimizer": "sgd"},
        {"train__sparse__optimizer": "adagrad"},
        {"train__dense__optimizer": "sgd"},
        {"train__dense__optimizer": "adagrad"},
        {"train__mode": "unfused"},
        {"sharding__types": ["data_parallel"]},
    ],
    ids=["sparse_sgd", "sparse_adagrad", "dense_sgd", "dense_adagrad", "unfused", "data_parallel"],
)
def test_another_optimizer_is_refused_with_a_sentence(data: Path, finished: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)step-00000012.*(optimizer|train.mode|data_parallel).*run="):
        resume_into(data, list_checkpoints(finished)[-1], **changes)


def test_another_schema_is_refused(tmp_path: Path, data: Path, finished: Path) -> None:
    raw = raw_config(data, "other")
    del raw["features"]["tags"]
    raw["data"]["cache"] = str(tmp_path / "cache")
    config = C.parse(raw)
    cache = prepare(config, progress=False)
    with processes() as procs, pytest.raises(CheckpointError, match=r"another schema \(they differ in features, tables\)"):
        Trainer(config, cache, procs, show=False).resume(list_checkpoints(finished)[-1])


def test_a_full_disk_is_told_in_a_sentence_and_leaves_the_last_checkpoint(
    data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished, data / "full")

    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", no_room)
    with pytest.raises(OSError, match="No space left on device"):
        train(make_config(data, "full", train__steps=14), progress=False)
    assert latest_usable(run).name == "step-00000012"
