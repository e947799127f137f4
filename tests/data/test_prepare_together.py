"""Several processes that make one cache: byte for byte what one makes, whatever is divided; and what happens when one stops.

The many kinds of data are divided among threads, which talk through a real store as processes do; real processes do the rest.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from torchrec_models.pipelines.config import parse
from torchrec_models.pipelines.data.files import Part
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.shares import dealt
from torchrec_models.pipelines.data.synthetic import click_log
from torchrec_models.pipelines.replicas import ReplicaFailed, Replicas

NUM_ROWS = 6000
CATEGORICAL: dict[str, Any] = {"kind": "categorical", "dim": 4}
FEATURES: dict[str, Any] = {
    "user": CATEGORICAL,
    "item": CATEGORICAL,
    "device": CATEGORICAL,
    "age": {"kind": "numeric", "steps": [{"fill": "median"}, "standard"]},
    "price": {"kind": "numeric", "steps": ["log1p", "standard", {"quantile": 8}]},
    "dear": {**CATEGORICAL, "column": "price", "ids": {"by": "bucketize", "num_buckets": 7}},
}
LISTS: dict[str, Any] = {
    "tags": {**CATEGORICAL, "max_len": 3},
    "history": {"kind": "sequence", "table": "item", "max_len": 5},
}


def write_log(folder: Path, *, num_files: int = 5) -> pa.Table:
    """Files of growing size, the last one larger than the others together, in row groups of 300."""
    table = click_log(NUM_ROWS, seed=4).table
    texts = [None if i % 7 == 3 else ",".join(map(str, ids)) for i, ids in enumerate(table["history"].to_pylist())]
    table = table.append_column("text", pa.array(texts))
    first = 0
    for i in range(num_files):
        rows = NUM_ROWS - first if i + 1 == num_files else 300 + 150 * i
        pq.write_table(table.slice(first, rows), folder / f"log-{i}.parquet", row_group_size=300)
        flat = table.slice(first, rows).drop_columns(["tags", "history"])
        pacsv.write_csv(flat, folder / f"log-{i}.csv")
        first += rows
    return table


def raw_config(folder: Path, *, features: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    given = {"train": str(folder / "*.parquet"), "rows_per_shard": 700, "memory_budget_mib": 16, "slices": ["device"], **data}
    return {
        "data": {"cache": str(folder / "cache"), **given},
        "features": FEATURES | LISTS if features is None else features,
        "labels": {"label": {}},
        "model": {"name": "deepfm"},
    }


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def together(raw: dict[str, Any], *, num: int, workers: int = 1) -> list[BaseException | None]:
    """`prepare` by so many at once; what each raised."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    raised: list[BaseException | None] = [None] * num

    def work(rank: int) -> None:
        own = dist.TCPStore("127.0.0.1", store.port, is_master=False)
        try:
            prepare(parse(raw), progress=False, workers=workers, replicas=Replicas(own, rank, num))
        except BaseException as error:
            raised[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


LIST_TEXT = {"kind": "sequence", "column": "text", "separator": ",", "max_len": 6, "dim": 4}
MET_BEFORE = {"kind": "covisitation", "user": "user", "item": "item", "time": "time", "window": 5}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "all rows, and a text that is cut once": ({}, {**FEATURES, "text": LIST_TEXT}),
    "by time, shards larger than a share": (
        {"split": {"by": "time", "column": "time", "valid_from": 30_000, "test_from": 50_000}, "rows_per_shard": 2500},
        None,
    ),
    "at random": ({"split": {"by": "random", "valid": 0.2, "test": 0.1}, "rows_per_shard": 290}, None),
    "text files at random": ({"train": "*.csv", "split": {"by": "random", "valid": 0.2, "test": 0.1}}, FEATURES),
    "folds of groups, stratified": ({"split": {"by": "fold", "num_folds": 3, "group": "user", "stratify": "label"}}, None),
    "files of their own": ({"train": "log-[0-3].parquet", "valid": "log-4.parquet", "test": "log-0.parquet"}, None),
    "what is counted over all rows": (
        {"split": {"by": "time", "column": "time", "valid_from": 30_000}},
        {**FEATURES, "met": MET_BEFORE},
    ),
    "buckets by the number of distinct values": (
        {"split": {"by": "random", "valid": 0.2}},
        {"item": {**CATEGORICAL, "ids": {"by": "hash", "margin": 1.5}}, "history": LISTS["history"], "text": LIST_TEXT},
    ),
    "nothing to learn": ({"train": "*.csv"}, {"user": {**CATEGORICAL, "ids": {"by": "hash", "buckets": 50}}}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_cache_does_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Files larger than a part are divided between row groups: here they are cut into parts of 600 rows."""
    monkeypatch.setattr("torchrec_models.pipelines.data.parquet_files._LEAST_PART_ROWS", 600)
    write_log(tmp_path)
    data, features = CASES[case]
    data = {key: str(tmp_path / value) if key in ("train", "valid", "test") else value for key, value in data.items()}

    def config(name: str) -> dict[str, Any]:
        return raw_config(tmp_path, features=features, cache=str(tmp_path / name), **data)

    one = prepare(parse(config("one")), progress=False, workers=2)
    expected = files_below(one.folder)
    assert len(expected) > 8
    for num in (2, 5):
        assert together(config(str(num)), num=num, workers=num % 3) == [None] * num
        assert files_below(tmp_path / str(num)) == expected
    assert not list(tmp_path.glob("*.partial-*"))


def test_stores_are_written_once_and_their_keys_are_read_by_all(tmp_path: Path) -> None:
    table = write_log(tmp_path)
    users = pa.table({"id": np.arange(200), "x": np.random.default_rng(0).normal(size=200), "kind": np.arange(200) % 7})
    pq.write_table(users, tmp_path / "store-users.parquet")
    stores = {"users": {"files": str(tmp_path / "store-users.parquet"), "key": "id", "column": "user"}}
    features = {
        "x": {"kind": "numeric", "store": "users", "steps": ["standard"]},
        "kind": {**CATEGORICAL, "store": "users", "table": "kind"},
        "age": FEATURES["age"],
        "device": {**CATEGORICAL},
    }

    def config(name: str) -> dict[str, Any]:
        data = {"train": str(tmp_path / "log-*.parquet"), "stores": stores, "cache": str(tmp_path / name)}
        return raw_config(tmp_path, features=features, **data)

    one = prepare(parse(config("one")), progress=False)
    assert one.stores[0].num_rows == 200 and one.split("train").num_rows == table.num_rows
    assert together(config("three"), num=3) == [None] * 3
    assert files_below(tmp_path / "three") == files_below(one.folder)


def test_a_wrong_value_stops_all_and_nothing_is_left(tmp_path: Path) -> None:
    write_log(tmp_path)
    last = pq.read_table(tmp_path / "log-4.parquet")
    label = last["label"].to_pylist()
    label[2000] = 3
    pq.write_table(last.set_column(last.column_names.index("label"), "label", pa.array(label)), tmp_path / "log-4.parquet")
    raised = together(raw_config(tmp_path), num=3)
    wrong = [error for error in raised if isinstance(error, ValueError)]
    told = [error for error in raised if isinstance(error, ReplicaFailed)]
    assert len(wrong) == 1 and len(told) == 2
    assert "log-4.parquet" in str(wrong[0]) and "data row 2001: the label 'label' is 3" in str(wrong[0])
    for error in told:
        assert str(error).startswith("process ") and str(error).endswith(str(wrong[0]))
    assert not (tmp_path / "cache").exists() and not list(tmp_path.glob("cache.partial-*"))


def test_processes_that_see_other_files_are_refused(tmp_path: Path) -> None:
    write_log(tmp_path)
    other = raw_config(tmp_path, rows_per_shard=800)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    raised: dict[int, BaseException] = {}

    def work(rank: int, raw: dict[str, Any]) -> None:
        own = dist.TCPStore("127.0.0.1", store.port, is_master=False)
        try:
            prepare(parse(raw), progress=False, replicas=Replicas(own, rank, 2))
        except (ValueError, ReplicaFailed) as error:
            raised[rank] = error

    threads = [threading.Thread(target=work, args=args) for args in ((0, raw_config(tmp_path)), (1, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "settings.data.rows_per_shard: was 700, now 800" in str(raised[1])
    assert isinstance(raised[0], ReplicaFailed) and "does not see what the first one sees" in str(raised[0])


def test_parts_are_dealt_evenly_and_in_order() -> None:
    parts = [Part(i, 0, size, size) for i, size in enumerate([10, 10, 10, 10, 40, 0])]
    assert dealt(parts, 1) == [range(6)]
    assert dealt(parts, 2) == [range(4), range(4, 6)]
    many = dealt(parts, 9)
    assert [i for share in many for i in share] == list(range(6)) and len(many) == 9


# --- real processes ---------------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
from torchrec_models.pipelines.config import parse
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.replicas import replicas
prepare(parse(json.loads(sys.argv[1])), progress=False, workers=1, replicas=replicas(silence_seconds=4))
"""


def start(raw: dict[str, Any], *, num: int) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(raw)]
    return [
        subprocess.Popen(command, env={**os.environ, **place, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(num)
    ]


def shards(folder: Path) -> dict[Path, int]:
    """Finished ones, with their inodes."""
    return {path.relative_to(folder): path.stat().st_ino for path in folder.glob("*/?????/ids.npy")}


def test_a_killed_process_ends_the_others_and_a_later_run_goes_on(tmp_path: Path) -> None:
    write_log(tmp_path, num_files=2)
    raw = raw_config(tmp_path, rows_per_shard=80)  # so many shards that the kill comes among them
    whole = prepare(parse(raw_config(tmp_path, rows_per_shard=80, cache=str(tmp_path / "whole"))), progress=False)
    running = start(raw, num=2)
    while not (written := list(tmp_path.glob("cache.partial-*/cache/train/0002?"))) and all(p.poll() is None for p in running):
        time.sleep(0.005)
    assert written, [process.communicate()[1] for process in running]
    running[1].send_signal(signal.SIGKILL)
    _, text = running[0].communicate()
    running[1].communicate()
    assert running[0].returncode == 1
    assert "ReplicaFailed: process 2 of 2 has not been heard for 4 s: it died, or it hangs" in text
    assert not (tmp_path / "cache").exists()

    (work,) = tmp_path.glob("cache.partial-*/cache")
    told = "".join(path.read_text() for path in work.parent.glob("journal*.jsonl"))
    kept = {path: inode for path, inode in shards(work).items() if f'"name": "{path.parent.name}"' in told}
    assert any(path.parent.name > "00010" for path in kept), "of the second process, too"
    again = start(raw, num=2)
    told = "".join(process.communicate()[1] for process in again)
    assert [process.returncode for process in again] == [0, 0], told
    assert files_below(tmp_path / "cache") == files_below(whole.folder)
    assert kept.items() <= shards(tmp_path / "cache").items(), "a finished shard was written again"
