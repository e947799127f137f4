"""New versions that cannot be loaded, in a real `trm serve`: what passes is tried again, what is damaged only when it changes."""

import asyncio
import itertools
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from server_process import Served, serving

from torchrec_models import Bundle
from torchrec_models.pipelines.serving.bundle_files import MANIFEST
from torchrec_models.pipelines.serving.loading import Reloader, load_model, signature_of
from torchrec_models.pipelines.serving.metrics import Metrics
from torchrec_models.pipelines.serving.models import Deployment, Models

ROW = {"device": "phone", "item": 101, "price": 2.5}
TOKEN = "secret-of-this-test"
HOLDER = {"Authorization": f"Bearer {TOKEN}"}


class Holder(Served):
    """Asks with the token."""

    def ask(self, method, path, body=None, **headers):
        return super().ask(method, path, body, **HOLDER, **headers)

    def failed(self, reason: str) -> float:
        return self.metric(f'trm_failed_reloads_total{{model="click",reason="{reason}"')

    def version(self) -> str:
        return self.ask("POST", "/predict", ROW).json["version"]


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def point(link: Path, target: Path) -> None:
    """Another target, in one step."""
    following = link.with_name("next")
    following.symlink_to(target)
    following.replace(link)


def test_a_version_that_cannot_be_read_for_a_moment_is_tried_again(click_bundles, tmp_path):
    first, second = click_bundles
    versions = [Bundle(first).version, Bundle(second).version]
    (tmp_path / "token").write_text(TOKEN)
    current, copy = tmp_path / "current", shutil.copytree(second, tmp_path / "copy")
    current.symlink_to(first)
    options = ["--token-file", tmp_path / "token", "--watch-seconds", "0.05"]
    with serving(tmp_path, f"click={current}", *options, make=Holder) as served:
        (copy / "model.onnx").rename(tmp_path / "away.onnx")
        manifest = signature_of(copy)
        point(current, copy)
        until(lambda: served.failed("unreadable") >= 2)
        assert served.version() == versions[0] and served.failed("refused") == 0
        log = served.log.read_text()
        for seconds in (1, 2):
            assert f"could not be read and is tried again in {seconds} s, the old one goes on: {copy}: file 'model.onnx' is" in log
        (tmp_path / "away.onnx").rename(copy / "model.onnx")  # and nothing else changes
        assert signature_of(copy) == manifest
        until(lambda: served.version() == versions[1])
        count = served.failed("unreadable")
        point(current, current)  # a link to itself cannot be followed
        until(lambda: served.failed("unreadable") > count)
        point(current, first)
        until(lambda: served.version() == versions[0])
        (copy / "model.onnx").rename(tmp_path / "away.onnx")
        point(current, copy)
        for _ in range(6):
            served.ask("POST", "/admin/reload", {})  # does not wait for its time, which is further off with each
        (tmp_path / "away.onnx").rename(copy / "model.onnx")
        assert served.ask("POST", "/admin/reload", {}).json == {"click": {"current": versions[1]}}
        assert served.metric("trm_reloads_total") == 3


def test_a_damaged_version_is_tried_again_when_it_changes_and_not_before(click_bundles, tmp_path):
    first, second = click_bundles
    current, copy = tmp_path / "current", shutil.copytree(second, tmp_path / "copy")
    examples = (copy / "examples.json").read_bytes()
    (copy / "examples.json").write_bytes(examples[:-1] + b" ")
    (tmp_path / "token").write_text(TOKEN)
    current.symlink_to(first)
    options = ["--token-file", tmp_path / "token", "--watch-seconds", "0.05"]
    with serving(tmp_path, f"click={current}", *options, make=Holder) as served:
        point(current, copy)
        until(lambda: served.failed("refused") == 1)
        for _ in range(3):
            served.ask("POST", "/admin/reload", {})
        time.sleep(1.2)  # two dozen looks, and longer than the first wait for what could not be read
        assert served.failed("refused") == 1 and served.failed("unreadable") == 0
        assert "is refused until one of its files changes" in served.log.read_text()
        (copy / "examples.json").write_bytes(examples)
        until(lambda: served.version() == Bundle(second).version)
        (copy / "examples.json").write_bytes(b"{}")  # of the version that is served: no other manifest, no other version
        text = (copy / MANIFEST).read_text()
        (copy / MANIFEST).write_text(text + "\n")
        until(lambda: served.failed("refused") == 2)
        assert served.version() == Bundle(second).version


def test_waits_grow_and_the_look_goes_on_after_any_error(click_bundles, tmp_path, monkeypatch, caplog):
    first, second = click_bundles
    current, copy = tmp_path / "current", shutil.copytree(second, tmp_path / "copy")
    current.symlink_to(first)
    metrics = Metrics()
    models = Models({"click": Deployment("click", {"current": current}, load_model("click", current, metrics=metrics))})
    reloader = Reloader(models, metrics, max_batch_rows=64, num_threads=1)
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    (copy / "model.onnx").rename(copy / "away")
    point(current, copy)
    waits = []
    with caplog.at_level(logging.ERROR):
        for second_number in range(200):
            now[0] += 1.0
            caplog.clear()
            asyncio.run(reloader.look())
            waits += [second_number] * len(caplog.records)
    assert [later - earlier for earlier, later in itertools.pairwise(waits)] == [1, 2, 4, 8, 16, 32, 60, 60]
    refuse = RuntimeError("as ONNX Runtime's own errors, neither a ValueError nor an OSError")

    def fail(model: object) -> None:
        raise refuse

    (copy / "away").rename(copy / "model.onnx")
    models.deployment().on_load.append(fail)
    assert asyncio.run(reloader.look(at_once=True)) == {"click": {"current": Bundle(first).version}}
    models.deployment().on_load.clear()
    assert asyncio.run(reloader.look(at_once=True)) == {"click": {"current": Bundle(second).version}}


def test_a_version_that_comes_while_the_first_is_loaded_is_new(click_bundles, tmp_path):
    first, second = click_bundles
    current = tmp_path / "current"
    current.symlink_to(first)
    found = {("click", "current"): signature_of(current)}
    metrics = Metrics()
    models = Models({"click": Deployment("click", {"current": current}, load_model("click", current, metrics=metrics))})
    point(current, second)
    reloader = Reloader(models, metrics, max_batch_rows=64, num_threads=1, served=found)
    assert asyncio.run(reloader.look()) == {"click": {"current": Bundle(second).version}}


def test_a_refused_version_leaves_no_counters_behind(click_bundles, tmp_path):
    copy = shutil.copytree(click_bundles[0], tmp_path / "copy")
    metrics = Metrics()
    model = load_model("click", copy, metrics=metrics)
    model.bundle.examples["model"]["answers"][0][0] += 1.0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="answered otherwise than at export"):
        patch.setattr(Bundle, "self_test", lambda self: 0.0)
        patch.setattr(Bundle, "examples", model.bundle.examples)
        load_model("click", copy, metrics=metrics)
    assert len(metrics._waiting) == 1
