"""An interrupted `prepare` loses what it did since it last saved, and nothing else: the cache is that of an undisturbed run.

Saved is at every border of parts here, which are 600 rows; else it is ten seconds apart.
"""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_prepare_together import CASES, CATEGORICAL, FEATURES, LIST_TEXT, files_below, raw_config, together, write_log

from torchrec_models.pipelines.config import parse
from torchrec_models.pipelines.data.fit import Fitter
from torchrec_models.pipelines.data.growing_arrays import GrowingArray
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.row_writer import RowWriter

PART_ROWS = 600


@pytest.fixture
def saving_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrec_models.pipelines.data.saving.SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr("torchrec_models.pipelines.data.saving._LEAST_WORK_PER_SAVING", 0)
    monkeypatch.setattr("torchrec_models.pipelines.data.parquet_files._LEAST_PART_ROWS", PART_ROWS)
    monkeypatch.setattr("torchrec_models.pipelines.data.open_shard._SIDECAR_CHUNK_ROWS", 256)


class Steps:
    """Counts batches that are learned from and written; the one at `stop` is interrupted."""

    def __init__(self, stop: int) -> None:
        self.learned = self.written = 0
        self.stop = stop

    def step(self) -> None:
        if self.learned + self.written == self.stop:
            raise KeyboardInterrupt

    @contextmanager
    def counted(self) -> Iterator[None]:
        learn, append = Fitter.learn, RowWriter.append

        def counted_learn(fitter: Fitter, lesson: Any) -> None:
            self.step()
            self.learned += 1
            learn(fitter, lesson)

        def counted_append(writer: RowWriter, written: Any) -> None:
            self.step()
            self.written += 1
            append(writer, written)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Fitter, "learn", counted_learn)
            patch.setattr(RowWriter, "append", counted_append)
            yield


def counted(config: dict[str, Any], *, stop: int = -1, workers: int = 1) -> Steps:
    steps = Steps(stop)
    with steps.counted():
        try:
            prepare(parse(config), progress=False, workers=workers)
        except KeyboardInterrupt:
            assert stop >= 0
    return steps


TWO_PASSES = {"price": {"kind": "numeric", "steps": ["standard", {"quantile": 8}, "min_max"]}, "item": CATEGORICAL}
OWN_CASES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    **{name: CASES[name] for name in ("all rows, and a text that is cut once", "at random", "text files at random")},
    **{name: CASES[name] for name in ("files of their own", "what is counted over all rows")},
    "several passes, and a sketch": (
        {"slices": ["device", "user"]},
        {**TWO_PASSES, "text": LIST_TEXT, "user": {**CATEGORICAL, "ids": {"by": "hash", "margin": 2}}, "age": FEATURES["age"]},
    ),
}


@pytest.mark.parametrize("case", OWN_CASES)
def test_interrupted_anywhere_it_goes_on_where_it_last_saved(tmp_path: Path, saving_always: None, case: str) -> None:
    write_log(tmp_path)
    data, features = OWN_CASES[case]
    data = {key: str(tmp_path / value) if key in ("train", "valid", "test") else value for key, value in data.items()}

    def config(name: str) -> dict[str, Any]:
        return raw_config(tmp_path, features=features, cache=str(tmp_path / name), **{"rows_per_shard": 2500, **data})

    whole = counted(config("whole"))
    expected = files_below(tmp_path / "whole")
    num_steps = whole.learned + whole.written
    for stop in sorted(random.Random(case).sample(range(1, num_steps), 4)):
        workers = 1 if stop % 3 else 2
        first = counted(config("again"), stop=stop, workers=workers)
        assert not (tmp_path / "again").exists()
        rest = counted(config("again"), workers=workers)
        assert files_below(tmp_path / "again") == expected, stop
        again = first.learned + first.written + rest.learned + rest.written - num_steps
        # with one worker, what came since the last border of a part; with more, saving may lag behind these tiny parts
        assert again <= (1 if workers == 1 else 8), (stop, vars(first), vars(rest))
        for path in sorted((tmp_path / "again").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "again").rmdir()


def test_interrupted_again_and_again(tmp_path: Path, saving_always: None) -> None:
    """Each run is interrupted a few batches behind the one before; nothing but these is done twice."""
    write_log(tmp_path)

    def config(name: str) -> dict[str, Any]:
        split = {"by": "random", "valid": 0.3, "test": 0.2}
        return raw_config(tmp_path, split=split, rows_per_shard=1300, cache=str(tmp_path / name))

    whole = counted(config("whole"))
    runs = 0
    while not (tmp_path / "again").exists():
        counted(config("again"), stop=4)
        runs += 1
    assert files_below(tmp_path / "again") == files_below(tmp_path / "whole")
    assert runs <= (whole.learned + whole.written) // 3 + 2


@pytest.mark.parametrize("damage", ["dense.npy", "waiting-*.arrow", "list_000.values.npy", "sidecars.arrow", "0-*.arrows"])
def test_what_is_altered_after_it_was_saved_is_done_again(tmp_path: Path, saving_always: None, damage: str) -> None:
    write_log(tmp_path)
    counted(raw_config(tmp_path, cache=str(tmp_path / "whole"), rows_per_shard=2500))
    raw, stop = raw_config(tmp_path, rows_per_shard=2500), 7 if damage.startswith("0-") else 32
    counted(raw, stop=stop)
    (path,) = (p for p in tmp_path.glob(f"cache.partial-*/**/{damage}") if p.parent.suffix == ".tmp" or p.suffix == ".arrows")
    path.write_bytes(path.read_bytes()[:100])
    counted(raw)
    assert files_below(tmp_path / "cache") == files_below(tmp_path / "whole")


@pytest.mark.parametrize("num", [1, 3])
def test_one_of_several_processes_is_interrupted(tmp_path: Path, saving_always: None, num: int) -> None:
    """The next run may have another number of processes: what is saved of shards counts, too, and of learning if it is the same."""
    write_log(tmp_path)
    split = {"by": "random", "valid": 0.2}

    def config(name: str) -> dict[str, Any]:
        return raw_config(tmp_path, split=split, rows_per_shard=1000, cache=str(tmp_path / name))

    counted(config("whole"))
    for stop in (5, 30):
        steps = Steps(stop)
        with steps.counted():
            raised = together(config("again"), num=3)
        assert any(isinstance(error, KeyboardInterrupt) for error in raised) and not (tmp_path / "again").exists()
    assert together(config("again"), num=num) == [None] * num
    assert files_below(tmp_path / "again") == files_below(tmp_path / "whole")


def test_learning_begins_anew_with_another_memory_budget(tmp_path: Path, saving_always: None) -> None:
    """It sizes the samples that medians come from: what was dropped of a smaller one is gone."""
    write_log(tmp_path)
    config = raw_config(tmp_path, memory_budget_mib=64)
    whole = counted({**config, "data": {**config["data"], "cache": str(tmp_path / "whole")}})
    counted(raw_config(tmp_path, memory_budget_mib=16), stop=7)
    assert len(list(tmp_path.glob("cache.partial-*/progress/0/*.arrows"))) == 1
    assert vars(counted(config)) == vars(whole)


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [None, 3])
@pytest.mark.parametrize("length", [0, 5, 8160, 8161, 16_352, 40_000])
def test_an_array_goes_on_behind_what_was_saved(tmp_path: Path, columns: int | None, length: int) -> None:
    """Below, at and above the size of a half of the buffer (64 KiB), the header counted."""
    shape = (50_000,) if columns is None else (50_000, columns)
    values = np.random.default_rng(0).integers(0, 1 << 60, shape)

    def array(path: Path, **more: Any) -> GrowingArray:
        return GrowingArray(path, values.dtype, columns, buffer=mmap(-1, 1 << 17), **more)

    whole = array(tmp_path / "whole.npy")
    whole.append(values)
    first = array(tmp_path / "again.npy")
    first.append(values[:length])
    saved = first.saved()
    first.append(values[length:45_000])  # and dies here
    again = array(tmp_path / "again.npy", behind=saved)
    assert (tmp_path / "again.npy").stat().st_size == 128 + length * 8 * (columns or 1)
    assert again.saved() == saved
    again.append(values[length:])
    assert again.close() == whole.close()
    np.testing.assert_array_equal(np.load(tmp_path / "again.npy"), values)


def test_an_altered_or_shorter_array_is_refused_and_left_alone(tmp_path: Path) -> None:
    values = np.arange(30_000)
    buffer = mmap(-1, 1 << 17)
    first = GrowingArray(tmp_path / "x.npy", values.dtype, None, buffer=buffer)
    first.append(values)
    saved = first.saved()
    written = (tmp_path / "x.npy").read_bytes()
    for data, text in ((written[:70_000], "ends at byte 70000"), (written[:-1] + b"?", "altered after it was saved")):
        (tmp_path / "x.npy").write_bytes(data)
        with pytest.raises(ValueError, match=text):
            GrowingArray(tmp_path / "x.npy", values.dtype, None, buffer=buffer, behind=saved)
        assert (tmp_path / "x.npy").read_bytes() == data


# --- real processes ---------------------------------------------------------------------------------------------------

SCRIPT = """
import json, os, signal, sys
from torchrec_models.pipelines.data import open_shard, parquet_files, saving
saving.SECONDS_BETWEEN, saving._LEAST_WORK_PER_SAVING = 0.0, 0
parquet_files._LEAST_PART_ROWS, open_shard._SIDECAR_CHUNK_ROWS = 600, 256
from torchrec_models.pipelines.config import parse
from torchrec_models.pipelines.data.prepare import prepare

left, fsync = int(sys.argv[2]), os.fsync
def counted(descriptor):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = counted
prepare(parse(json.loads(sys.argv[1])), progress=False, workers=1)
"""


def test_killed_while_saving(tmp_path: Path, saving_always: None) -> None:
    """SIGKILL when something is forced to the disk, another time in each run; then one that nobody kills."""
    write_log(tmp_path)

    def config(name: str) -> dict[str, Any]:
        split = {"by": "random", "valid": 0.2}
        return raw_config(tmp_path, split=split, rows_per_shard=3000, cache=str(tmp_path / name))

    whole = counted(config("whole"))
    raw = json.dumps(config("again"))
    for number in (40, 90, 60):
        killed = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT, raw, str(number)])
        assert killed.returncode == -signal.SIGKILL and not (tmp_path / "again").exists(), number
    journal = next(tmp_path.glob("again.partial-*/journal.jsonl")).read_text()
    assert journal.count('{"learned"') > 5 and journal.count('{"saved"') > 1
    rest = counted(config("again"))
    assert rest.learned == 0 and rest.written < whole.written
    assert files_below(tmp_path / "again") == files_below(tmp_path / "whole")
