"""`trm profile` on a real small run: what it writes, what it leaves alone, and that a slow loader is found out."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click_run import make_config, prepared, raw_config

from torchrec_models.batch import Batch
from torchrec_models.pipelines.cli import main
from torchrec_models.pipelines.data.loader import Loader
from torchrec_models.pipelines.data.prepare import open_prepared
from torchrec_models.pipelines.distributed import processes
from torchrec_models.pipelines.profiling.run import FEWEST_ROUNDS, MOST_ROUNDS, Turns
from torchrec_models.pipelines.profiling.verdict import PARTS
from torchrec_models.pipelines.train import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("clicks"))


@pytest.mark.parametrize("mode", ["fused", "unfused"])
def test_a_profile_measures_all_and_touches_nothing(data: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    raw = raw_config(data, f"run-{mode}")
    if mode == "unfused":
        del raw["train"]["sparse"]
    (data / f"{mode}.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    arguments = ["profile", str(data / f"{mode}.yaml"), "--seconds", "0.4", f"train.mode={mode}"]
    assert main([*arguments, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert not (data / f"run-{mode}").exists()
    assert shown["device"] == "the CPU" and shown["gpu"] == {} and shown["resident"] is None and shown["batch_size"] == 60
    for way in ("loader", "cached", "varied", "both"):
        assert shown[way]["per_second"] > 0
        num_rounds = len(shown[way]["rounds"])
        assert num_rounds == FEWEST_ROUNDS if way == "loader" else FEWEST_ROUNDS <= num_rounds <= MOST_ROUNDS
    assert 0 <= shown["wait_share"] < 1 and shown["verdict"]["limit"] in ("input", *PARTS)
    parts = shown["step_parts"]
    assert set(parts) == {*PARTS} and sum(parts.values()) == pytest.approx(1.0)
    assert all(parts[part] > 0 for part in ("sparse", "dense", "optimizer", "logging"))
    trace = json.loads((data / f"run-{mode}.profile" / "timeline.json").read_text())
    names = {event.get("name", "").rstrip(" #0123456789") for event in trace["traceEvents"]}
    assert {"## forward", "## backward", "## optimizer", "## note_loss"} <= names


def test_the_table_says_it_in_words(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (data / "words.yaml").write_text(yaml.safe_dump(raw_config(data, "words"), sort_keys=False))
    assert main(["profile", str(data / "words.yaml"), "--seconds", "0.2", "--out", str(tmp_path / "here")]) == 0
    text = capsys.readouterr().out
    for words in (
        "deepfm (fused) on the CPU",
        "loader alone",
        "training on a cached batch",
        "of a step: ",
        "bound",
        "to change it: ",
    ):
        assert words in text
    assert f"timeline (ui.perfetto.dev): {tmp_path / 'here' / 'timeline.json'}" in text and (tmp_path / "here").is_dir()


class SlowLoader(Loader):
    """As over a slow disk."""

    def _groups(self, epoch: int, start_batch: int) -> Iterator[list[Batch]]:  # type: ignore[override]
        for batch in (batch for group in super()._groups(epoch, start_batch) for batch in group):
            time.sleep(0.2)
            yield [batch]


def test_a_slow_loader_is_called_input_bound(data: Path, tmp_path: Path) -> None:
    config = make_config(data, "slow")
    with processes() as procs:
        trainer = Trainer(config, open_prepared(config), procs, show=False)
        trainer.loader = SlowLoader(trainer.cache, "train", batch_size=60, shuffle=True)
        profile = Turns(trainer, None).profile(0.8, tmp_path)
    assert profile.verdict.limit == "input" and profile.reached < 0.9 and profile.wait_share > 0.3
    assert profile.loader.per_second < 5.3  # a batch in 0.2 s
    assert "input-bound" in profile.render()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_no_time_is_refused(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, seconds: str) -> None:
    (data / "c.yaml").write_text(yaml.safe_dump(raw_config(data, "c"), sort_keys=False))
    assert main(["profile", str(data / "c.yaml"), "--seconds", seconds, "--out", str(tmp_path)]) == 2
    assert "--seconds must be above 0; given" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_not_prepared_are_an_error_in_words(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "none.yaml").write_text(yaml.safe_dump(raw_config(data, "none"), sort_keys=False))
    assert main(["profile", str(data / "none.yaml"), f"data.cache={tmp_path / 'no'}"]) == 2
    assert "run `trm prepare CONFIG` first" in capsys.readouterr().err
