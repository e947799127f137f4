"""`prepare`: what it writes, what it refuses, and that killing it at any moment costs nothing but time."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from torchrec_models.pipelines.config import RunConfig, parse
from torchrec_models.pipelines.data.ids import Vocabulary
from torchrec_models.pipelines.data.loader import Loader
from torchrec_models.pipelines.data.pieces import Pieces
from torchrec_models.pipelines.data.prepare import open_prepared, prepare
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.data.synthetic import click_log
from torchrec_models.pipelines.data.transforms import Transforms

NUM_ROWS = 5000


def raw_config(folder: Path, **data: Any) -> dict:
    return {
        "data": {
            "train": str(folder / "log.parquet"),
            "split": {"by": "time", "column": "time", "valid_from": 30_000, "test_from": 40_000},
            "group": "user",
            "timestamp": "time",
            "slices": ["device"],
            "cache": str(folder / "cache"),
            "rows_per_shard": 700,
            **data,
        },
        "features": {
            "user": {"kind": "categorical", "dim": 4, "ids": {"by": "hash", "buckets": 64}},
            "item": {"kind": "categorical", "dim": 4},
            "device": {"kind": "categorical", "dim": 4},
            "age": {"kind": "numeric", "steps": [{"fill": "mean"}, "standard"]},
            "price": {"kind": "numeric"},
            "tags": {"kind": "categorical", "dim": 4, "max_len": 3},
            "history": {"kind": "sequence", "table": "item", "max_len": 5},
        },
        "labels": {"label": {}},
        "model": {"name": "deepfm"},
    }


def config_of(folder: Path, **data: Any) -> RunConfig:
    return parse(raw_config(folder, **data))


@pytest.fixture
def log(tmp_path: Path) -> pa.Table:
    """A click log of 5,000 rows in growing time, in row groups of 512; also written to `log.parquet`."""
    table = click_log(NUM_ROWS, seed=4).table
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=512)
    return table


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_rows_land_in_their_splits_in_order(tmp_path: Path, log: pa.Table) -> None:
    cache = prepare(config_of(tmp_path), progress=False)
    times = log["time"].to_numpy()
    in_split = {"train": times < 30_000, "valid": (times >= 30_000) & (times < 40_000), "test": times >= 40_000}
    assert list(cache.splits) == list(in_split)
    for name, mask in in_split.items():
        split, expected = cache.split(name), log.filter(pa.array(mask))
        assert split.num_rows == expected.num_rows > 500
        assert split.columns == ("group", "timestamp", "device")
        assert split.column("group").to_pylist() == expected["user"].to_pylist()
        assert split.column("timestamp").to_pylist() == expected["time"].to_pylist()
        assert split.column("device").to_pylist() == expected["device"].to_pylist()
        np.testing.assert_array_equal(split.labels()[:, 0], expected["label"].to_numpy())
        assert split.label_mean["label"] == pytest.approx(expected["label"].to_numpy().mean())
    cache.verify()


def test_batches_hold_what_the_raw_rows_say(tmp_path: Path, log: pa.Table) -> None:
    """Every id is translated back through the vocabulary and compared with the raw value of its row."""
    cache = prepare(config_of(tmp_path), progress=False)
    words = {name: [None, *cache.transforms.tables[name].values.to_pylist()] for name in ("item", "device", "tags")}
    train = log.filter(pa.array(log["time"].to_numpy() < 30_000)).to_pylist()
    ages = np.array([row["age"] for row in train if row["age"] is not None])
    for batch in Loader(cache, "train", batch_size=512, shuffle=True).epoch(0):
        rows = [train[i] for i in batch.row_id.tolist()]
        assert batch.sparse.keys() == ["user", "device", "tags"] and batch.sequence.keys() == ["item", "history"]
        assert [words["item"][i] for i in batch.sequence["item"].values().tolist()] == [row["item"] for row in rows]
        assert [words["device"][i] for i in batch.sparse["device"].values().tolist()] == [row["device"] for row in rows]
        tags, lengths = batch.sparse["tags"].values().tolist(), batch.sparse["tags"].lengths().tolist()
        assert lengths == [min(len(row["tags"]), 3) for row in rows]
        assert [words["tags"][i] for i in tags] == [tag for row in rows for tag in row["tags"][:3]]
        history = [words["item"][i] for i in batch.sequence["history"].values().tolist()]
        assert history == [item for row in rows for item in row["history"][-5:]]
        age = np.array([ages.mean() if row["age"] is None else row["age"] for row in rows])
        all_ages = np.array([ages.mean() if row["age"] is None else row["age"] for row in train])
        np.testing.assert_allclose(batch.dense[:, 0], (age - all_ages.mean()) / all_ages.std(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(batch.dense[:, 1], [row["price"] for row in rows], rtol=1e-6)
        assert batch.labels[:, 0].tolist() == [row["label"] for row in rows]


def test_separate_files_of_text(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("label,user,amount\n1,a,2\n0,b,3\n1,,4\n")
    (tmp_path / "test.csv").write_text("label,user,amount\n0,c,5\n")
    raw = {
        "data": {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv"), "weight": "amount", "row_id": "amount"}
        | {"cache": str(tmp_path / "cache")},
        "features": {"user": {"kind": "categorical"}},
        "labels": {"label": {}},
        "model": {"name": "deepfm"},
    }
    cache = prepare(parse(raw), progress=False)
    assert {name: split.num_rows for name, split in cache.splits.items()} == {"train": 3, "test": 1}
    assert cache.split("train").weights()[:, 0].tolist() == [2, 3, 4]
    assert cache.split("train").label_mean["label"] == pytest.approx(6 / 9)
    assert cache.split("test").read(0, 0, 1).ids.tolist() == [[0]]  # never seen in training


def test_lines_that_go_on_behind_the_named_columns(tmp_path: Path) -> None:
    """As iPinYou's test logs do, which carry two fields more than its training logs."""
    (tmp_path / "train.tsv").write_text("1\ta\n0\tb\n")
    (tmp_path / "test.tsv").write_text("0\ta\t0\t0\n1\tb\t0\t1\n")
    raw = {
        "data": {"train": str(tmp_path / "train.tsv"), "test": str(tmp_path / "test.tsv"), "column_names": ["label", "user"]}
        | {"cache": str(tmp_path / "cache")},
        "features": {"user": {"kind": "categorical"}},
        "labels": {"label": {}},
        "model": {"name": "deepfm"},
    }
    with pytest.raises(ValueError, match=r"test.tsv: data row 1 has 4 fields .* has 2 names; set data.extra_fields: ignore"):
        prepare(parse(raw), progress=False)
    raw["data"]["extra_fields"] = "ignore"
    assert prepare(parse(raw), progress=False).split("test").read(0, 0, 2).ids.tolist() == [[1], [2]]
    (tmp_path / "test.tsv").write_text("0\ta\t0\t0\n1\tb\t0\n")
    with pytest.raises(ValueError, match=r"test.tsv: data row 2: 3 fields where 4 are expected"):
        prepare(parse(raw), progress=False, force=True)
    del raw["data"]["column_names"]
    with pytest.raises(ValueError, match=r"data.extra_fields: has no effect without data.column_names"):
        parse(raw)


def test_masked_and_thresholded_labels(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"user": [1, 2, 3], "click": [1, None, 0], "stars": [5.0, 3.0, float("nan")]}), tmp_path / "log.parquet"
    )
    raw = {
        "data": {"train": str(tmp_path / "log.parquet"), "cache": str(tmp_path / "cache")},
        "features": {"user": {"kind": "categorical"}},
        "labels": {"click": {"null": "mask"}, "liked": {"column": "stars", "above": 3.5, "null": "mask"}},
        "model": {"name": "deepfm"},
    }
    train = prepare(parse(raw), progress=False).split("train")
    assert train.labels().tolist() == [[1, 1], [0, 0], [0, 0]]
    assert train.weights().tolist() == [[1, 1], [0, 1], [1, 0]]
    assert train.label_mean == {"click": 0.5, "liked": 0.5}


def test_retrieval_has_weights_and_no_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1, 2, 2], "item": [7, 8, 7]}), tmp_path / "log.parquet")
    raw = {
        "data": {"train": str(tmp_path / "log.parquet"), "cache": str(tmp_path / "cache")},
        "features": {"user": {"kind": "categorical", "side": "query"}, "item": {"kind": "categorical", "side": "candidate"}},
        "retrieval": {"candidate_id": "item", "exclude_seen": False},
        "model": {"name": "two_tower"},
    }
    cache = prepare(parse(raw), progress=False)
    batch = next(iter(Loader(cache, "train", batch_size=4, pad=True).epoch(0)))
    assert batch.labels.shape == (3, 0) and batch.weights.tolist() == [[1], [1], [1]]
    assert cache.schema.candidate_id == "item"


# --- reuse ------------------------------------------------------------------------------------------------------------


def test_a_finished_cache_is_reused(tmp_path: Path, log: pa.Table, capsys: pytest.CaptureFixture) -> None:
    first = prepare(config_of(tmp_path))
    written = (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns
    second = prepare(config_of(tmp_path, memory_budget_mib=64))  # which no row depends on
    assert "is up to date: reused" in capsys.readouterr().err
    assert first.fingerprint == second.fingerprint
    assert (tmp_path / "cache" / "manifest.json").stat().st_mtime_ns == written
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_cache_is_not_replaced(tmp_path: Path, log: pa.Table, kind: str) -> None:
    other = tmp_path / "cache"
    if kind == "folder":
        other.mkdir()
        other = other / "mine.txt"
    other.write_text("mine")
    for force in (False, True):
        with pytest.raises(ValueError, match=r"data.cache: .*cache exists and is not a cache; give another folder"):
            prepare(config_of(tmp_path), progress=False, force=force)
    assert other.read_text() == "mine"


def test_a_label_that_never_changes_is_pointed_out(tmp_path: Path, log: pa.Table, capsys: pytest.CaptureFixture) -> None:
    same = log.set_column(log.column_names.index("label"), "label", pa.array(np.zeros(log.num_rows)))
    prepare(config_of(tmp_path))
    assert "warning" not in capsys.readouterr().err
    pq.write_table(same, tmp_path / "log.parquet")
    prepare(config_of(tmp_path), force=True)
    warning = "warning: labels.label: every training row is 0, so there is nothing to learn; check the column, labels.label.above"
    assert warning in capsys.readouterr().err
    prepare(config_of(tmp_path))
    assert warning in capsys.readouterr().err, "again, of the cache that is there"


def test_another_config_is_told_what_changed(tmp_path: Path, log: pa.Table) -> None:
    before = files_below(prepare(config_of(tmp_path), progress=False).folder)
    raw = raw_config(tmp_path, slices=[])
    raw["features"]["tags"]["max_len"] = 2
    del raw["features"]["price"]
    with pytest.raises(ValueError) as error:
        prepare(parse(raw), progress=False)
    for line in (
        "data.slices: was ['device'], now []",
        "features.tags.max_len: was 3, now 2",
        "features.price: no longer given",
        "--force",
    ):
        assert line in str(error.value)
    assert files_below(tmp_path / "cache") == before
    assert prepare(parse(raw), progress=False, force=True).schema.feature("tags").max_len == 2
    assert open_prepared(parse(raw)).schema.feature("tags").max_len == 2


def test_changed_source_files_are_noticed(tmp_path: Path, log: pa.Table) -> None:
    config = config_of(tmp_path)
    prepare(config, progress=False)
    pq.write_table(log.slice(1), tmp_path / "log.parquet")
    for again in (lambda: prepare(config, progress=False), lambda: open_prepared(config)):
        with pytest.raises(ValueError, match=r"files.train.*log.parquet.size_bytes: was \d+, now \d+"):
            again()
    assert prepare(config, progress=False, force=True).splits["train"].num_rows > 0


def test_open_prepared_needs_a_cache_and_no_sources(tmp_path: Path, log: pa.Table) -> None:
    config = config_of(tmp_path)
    with pytest.raises(ValueError, match=r"no cache at .*; run `trm prepare CONFIG` first"):
        open_prepared(config)
    prepare(config, progress=False)
    (tmp_path / "log.parquet").unlink()
    with pytest.warns(UserWarning, match=r"cannot be compared: .*log.parquet: no file matches"):
        assert open_prepared(config).split("train").num_rows > 0


def test_a_folder_that_is_no_cache_is_never_replaced(tmp_path: Path, log: pa.Table) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.tex").write_text("precious")
    for force in (False, True):
        with pytest.raises(ValueError, match=r"cache"):
            prepare(config_of(tmp_path), progress=False, force=force)
    assert (tmp_path / "cache" / "thesis.tex").read_text() == "precious"


def test_force_replaces_an_altered_cache(tmp_path: Path, log: pa.Table) -> None:
    config = config_of(tmp_path)
    before = files_below(prepare(config, progress=False).folder)
    (tmp_path / "cache" / "train" / "00000" / "ids.npy").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"ids.npy: altered .*--force"):
        prepare(config, progress=False)
    prepare(config, progress=False, force=True)
    assert files_below(tmp_path / "cache") == before


# --- interruption -----------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from torchrec_models.pipelines.config import parse
from torchrec_models.pipelines.data.prepare import prepare
prepare(parse(json.loads(sys.argv[1])), progress=False)
"""


def start(raw: dict) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(raw)])


def partials(folder: Path) -> list[Path]:
    return list(folder.glob("cache.partial-*"))


def wait_for(condition: Any, process: subprocess.Popen) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.001)


def test_killed_prepare_is_never_finished_and_is_completed_byte_for_byte(tmp_path: Path) -> None:
    table = click_log(20_000, seed=4).table
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=500)
    expected = files_below(prepare(config_of(tmp_path, cache=str(tmp_path / "whole")), progress=False).folder)
    raw = raw_config(tmp_path)

    num_shards_at_kill = []
    draw = random.Random(1)
    for reached in (0, 8):  # kill at another depth each time
        process = start(raw)
        wait_for(lambda: len(list(tmp_path.glob("cache.partial-*/cache/*/?????"))) > reached, process)  # noqa: B023
        time.sleep(draw.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "cache").exists(), "the kill came too late: the work was done"
        with pytest.raises(ValueError, match="no cache at"):
            Cache.open(tmp_path / "cache")
        with pytest.raises(ValueError, match="not a finished cache"):
            Cache.open(partials(tmp_path)[0] / "cache")
        num_shards_at_kill.append(len(list(tmp_path.glob("cache.partial-*/cache/*/?????"))))
    assert num_shards_at_kill == sorted(num_shards_at_kill) and num_shards_at_kill[-1] > num_shards_at_kill[0]

    kept = next(tmp_path.glob("cache.partial-*/cache/train/00000/ids.npy"))
    inode = kept.stat().st_ino
    prepare(parse(raw), progress=False)
    assert (tmp_path / "cache/train/00000/ids.npy").stat().st_ino == inode, "a finished shard was written again"
    assert files_below(tmp_path / "cache") == expected
    assert partials(tmp_path) == []


def test_a_shard_altered_after_the_kill_is_written_again(tmp_path: Path, log: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files_below(prepare(config_of(tmp_path, cache=str(tmp_path / "whole")), progress=False).folder)
    interrupt_before_the_manifest(tmp_path, monkeypatch)
    path = partials(tmp_path)[0] / "cache" / "train" / "00001" / "dense.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert files_below(prepare(config_of(tmp_path), progress=False).folder) == whole


def interrupt_before_the_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("torchrec_models.pipelines.data.build.write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(config_of(folder), progress=False)


def test_a_torn_journal_and_altered_transforms_start_anew(tmp_path: Path, log: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files_below(prepare(config_of(tmp_path, cache=str(tmp_path / "whole")), progress=False).folder)
    interrupt_before_the_manifest(tmp_path, monkeypatch)
    journal = partials(tmp_path)[0] / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    assert files_below(prepare(config_of(tmp_path), progress=False).folder) == whole

    shutil.rmtree(tmp_path / "cache")
    interrupt_before_the_manifest(tmp_path, monkeypatch)
    fitted = partials(tmp_path)[0] / "cache" / "transforms" / "transforms.json"
    fitted.write_text(fitted.read_text().replace("standard", "Standard"))
    assert files_below(prepare(config_of(tmp_path), progress=False).folder) == whole


def test_two_processes_do_not_prepare_one_cache(tmp_path: Path, log: pa.Table) -> None:
    import fcntl

    from torchrec_models.pipelines.data.fingerprint import files_of, fingerprint_of, settings_of

    config = config_of(tmp_path)
    fingerprint = fingerprint_of({"settings": settings_of(config), "files": files_of(config)})
    partial = tmp_path / f"cache.partial-{fingerprint[:12]}"
    partial.mkdir()
    with (partial / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is preparing this cache"):
            prepare(config, progress=False)
    prepare(config, progress=False)


def test_a_full_disk_keeps_finished_shards(tmp_path: Path, log: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full from the 8th shard on; when there is room again, the first seven are kept."""
    whole = files_below(prepare(config_of(tmp_path, cache=str(tmp_path / "whole")), progress=False).folder)
    real_open, real_write, opened = os.open, os.write, []

    def open_counted(path: Any, *args: Any, **kwargs: Any) -> int:
        descriptor = real_open(path, *args, **kwargs)
        if Path(path).name == "dense.npy" and args[0] & os.O_CREAT:
            opened.append(descriptor)
        return descriptor

    def write(descriptor: int, data: Any) -> int:
        if len(opened) == 8 and descriptor == opened[-1]:
            raise OSError(28, "No space left on device")
        return real_write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_counted)
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match=r"No space left on device: '.*dense.npy'"):
            prepare(config_of(tmp_path), progress=False)
    inodes = {p: p.stat().st_ino for p in tmp_path.glob("cache.partial-*/cache/*/?????/ids.npy")}
    assert len(inodes) >= 4
    cache = prepare(config_of(tmp_path), progress=False)
    assert files_below(cache.folder) == whole
    for path, inode in inodes.items():
        assert cache.folder.joinpath(*path.parts[-3:]).stat().st_ino == inode


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path, log: pa.Table) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="locked"):
        prepare(config_of(tmp_path, cache=str(locked / "cache")), progress=False)


def test_a_file_in_the_way_of_the_cache_is_named(tmp_path: Path, log: pa.Table) -> None:
    (tmp_path / "blocker").write_text("")
    with pytest.raises(OSError, match="blocker"):
        prepare(config_of(tmp_path, cache=str(tmp_path / "blocker" / "cache")), progress=False)


# --- data that does not fit -------------------------------------------------------------------------------------------


def refused(tmp_path: Path, table: pa.Table, change: dict | None = None, **data: Any) -> str:
    pq.write_table(table, tmp_path / "log.parquet")
    raw = raw_config(tmp_path, **data)
    for key, value in (change or {}).items():
        raw[key] = value
    with pytest.raises(ValueError) as error:
        prepare(parse(raw), progress=False)
    assert not (tmp_path / "cache").exists()
    assert not partials(tmp_path), "nothing of a run that must fail again is kept"
    return str(error.value)


def with_value(table: pa.Table, column: str, row: int, value: Any, kind: pa.DataType | None = None) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values, kind))


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("label", None, r"column 'label', data row 3001: the label 'label' is missing; .*labels.label.null: mask"),
        ("label", 2, r"column 'label', data row 3001: the label 'label' is 2, and a binary label is 0 or 1; .*above"),
        ("price", float("nan"), r"column 'price', data row 3001: .*fill"),
        ("price", float("inf"), r"column 'price', data row 3001: .*clip"),
        ("amount", -0.5, r"column 'amount', data row 3001: the weight is -0.5; a weight is a finite number >= 0"),
        ("amount", None, r"column 'amount', data row 3001: the weight is missing"),
        ("amount", float("inf"), r"column 'amount', data row 3001: the weight is inf"),
        ("time", None, r"column 'time', data row 3001: the value is missing, and data.split goes by this column"),
    ],
)
def test_a_bad_value_is_named_by_file_column_and_row(tmp_path: Path, log: pa.Table, column: str, value: Any, expected: str) -> None:
    log = log.append_column("amount", log["price"])
    text = refused(tmp_path, with_value(log, column, 3000, value), weight="amount")
    assert str(tmp_path / "log.parquet") in text
    assert re.search(expected, text), text


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"by": "time", "column": "time", "valid_from": 10**9}, r"split 'valid' got no row .* check data.split.valid_from"),
        ({"by": "time", "column": "time", "valid_from": -1}, r"split 'train': |split 'train' got no row"),
        ({"by": "random", "valid": 1e-9, "test": 0.5}, r"split 'valid' got no row .*check data.split.valid"),
        ({"by": "column", "column": "device", "train": ["phone", "tablet"], "valid": ["desktop"]}, r"split 'test' got no row"),
    ],
)
def test_an_empty_split_speaks_up(tmp_path: Path, log: pa.Table, split: dict, expected: str) -> None:
    log = log.filter(pa.compute.is_valid(log["device"]))
    assert re.search(expected, refused(tmp_path, log, split=split))


def test_an_empty_file_speaks_up(tmp_path: Path, log: pa.Table) -> None:
    pq.write_table(log.slice(0, 0), tmp_path / "empty.parquet")
    text = refused(tmp_path, log, split=None, valid=str(tmp_path / "empty.parquet"))
    assert "empty.parquet" in text and "no rows" in text


def test_a_slice_may_not_take_the_name_of_another_side_column(tmp_path: Path, log: pa.Table) -> None:
    text = refused(tmp_path, log.append_column("group", log["device"]), slices=["group"])
    assert "data.slices: column 'group' has the name under which data.group ('user') is kept" in text


def test_a_whole_column_of_another_type_is_refused(tmp_path: Path, log: pa.Table) -> None:
    text = refused(tmp_path, log.set_column(8, "label", pa.array(["yes"] * NUM_ROWS)))
    assert "column 'label', data row 1: 'yes' is not a number" in text


@pytest.mark.parametrize("split", [None, {"by": "random", "valid": 0.2, "test": 0.1, "seed": 5}])
def test_the_cache_does_not_depend_on_the_number_of_workers(tmp_path: Path, log: pa.Table, split: dict | None) -> None:
    """Nor on batches: 16 MiB among three workers are many small ones."""
    pq.write_table(pa.concat_tables([log] * 12), tmp_path / "log.parquet", row_group_size=3000)
    caches = {
        workers: prepare(
            config_of(tmp_path, split=split, cache=str(tmp_path / str(workers)), memory_budget_mib=budget_mib),
            progress=False,
            workers=workers,
        )
        for workers, budget_mib in ((1, 512), (2, 512), (3, 16))
    }
    expected = files_below(caches[1].folder)
    for workers in (2, 3):
        found = files_below(caches[workers].folder)
        assert found == expected and caches[workers].fingerprint == caches[1].fingerprint


@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_bad_row_is_named_whoever_meets_it(tmp_path: Path, log: pa.Table, workers: int) -> None:
    table = pa.concat_tables([with_value(log, "price", 4000, float("inf"), pa.float64()) for _ in range(4)])
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=1000)
    config = config_of(tmp_path, memory_budget_mib=16)
    with pytest.raises(ValueError, match=r"log.parquet: column 'price', data row 4001: inf does not become a finite"):
        prepare(config, progress=False, workers=workers)
    assert not partials(tmp_path) and not [t for t in threading.enumerate() if t.name.startswith(("prepare", "decode", "finish"))]


def test_prepare_is_repeatable_and_does_not_depend_on_the_memory_budget(tmp_path: Path, log: pa.Table) -> None:
    one = prepare(config_of(tmp_path, cache=str(tmp_path / "one")), progress=False)
    other = prepare(config_of(tmp_path, cache=str(tmp_path / "other"), memory_budget_mib=16), progress=False)
    assert one.manifest["splits"] == other.manifest["splits"]
    assert torch.equal(one.split("train").read(0, 0, 5).ids, other.split("train").read(0, 0, 5).ids)


@pytest.mark.parametrize("ids", [{"by": "vocabulary", "min_count": 3}, {"by": "hash", "margin": 1.5}], ids=["vocabulary", "margin"])
def test_long_texts_are_cut_once_and_nothing_of_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: dict) -> None:
    """The pass that writes takes the pieces of the pass that learned; resumed, it reads the text again; to the same bytes."""
    generator = np.random.default_rng(1)
    texts = [",".join(map(str, generator.zipf(1.3, n) % 5000)) for n in generator.integers(0, 60, 20_000)]
    history = [None if i % 7 == 3 else text for i, text in enumerate(texts)]
    shops = [f"shop {i}" for i in generator.integers(0, 9, 20_000)]  # which only the pass that writes reads, as a dictionary
    table = pa.table({"label": generator.integers(0, 2, 20_000), "history": history, "shop": shops})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=700)
    features = {"history": {"kind": "sequence", "separator": ",", "max_len": 20, "ids": ids}}
    features["shop"] = {"kind": "categorical", "ids": {"by": "hash", "buckets": 20}}

    def config(name: str) -> RunConfig:
        paths = {"train": str(tmp_path / "log.parquet"), "cache": str(tmp_path / name)}
        data = paths | {"rows_per_shard": 6000, "memory_budget_mib": 16}
        return parse({"data": data, "features": features, "labels": {"label": {}}, "model": {"name": "deepfm"}})

    kept = []
    real_keep = Pieces.keep
    monkeypatch.setattr(Pieces, "keep", lambda self, *rest: (kept.append(rest[0]), real_keep(self, *rest)))
    once = files_below(prepare(config("once"), progress=False, workers=2).folder)
    assert set(kept) == {"history"} and not list(tmp_path.glob("once*/pieces"))
    num_batches = len(kept)
    assert num_batches > 1

    with monkeypatch.context() as patch:
        patch.setattr("torchrec_models.pipelines.data.build.write_stores", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(config("resumed"), progress=False)
    assert len(list(tmp_path.glob("resumed.partial-*/pieces/*/*"))) == num_batches
    assert files_below(prepare(config("resumed"), progress=False, workers=1).folder) == once
    assert len(kept) == 2 * num_batches


@pytest.mark.parametrize("text", ["12,7,,3", "ab,c,ab,999999999"])
def test_pieces_of_few_long_texts_are_kept_too(tmp_path: Path, text: str) -> None:
    """Texts that their writer stored whole, and too few of them for our C: what is kept is as pyarrow cuts it."""
    repeated = [text, None, ",".join([text] * 100), ""]
    pq.write_table(pa.table({"label": [0, 1, 0, 1], "history": repeated}), tmp_path / "log.parquet", use_dictionary=False)
    paths = {"train": str(tmp_path / "log.parquet"), "cache": str(tmp_path / "cache")}
    features = {"history": {"kind": "sequence", "separator": ",", "max_len": 500, "ids": {"by": "vocabulary"}}}
    config = parse({"data": paths, "features": features, "labels": {"label": {}}, "model": {"name": "deepfm"}})
    cache = prepare(config, progress=False)
    vocabulary = Transforms.load(cache.folder / "transforms").tables["history"]
    assert isinstance(vocabulary, Vocabulary)
    (values, offsets), *_ = cache.split("train").read(0, 0, 4).lists
    expected = [[piece for piece in (row or "").split(",") if piece] for row in repeated]
    found = [vocabulary.values[row - 1].as_py() for row in values.tolist()]
    assert found == [piece for row in expected for piece in row] and offsets.diff().tolist() == [len(row) for row in expected]


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
