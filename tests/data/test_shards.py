"""The cache on disk: what is written comes back, and anything unfinished or altered is refused by name."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from torchrec_models.pipelines.data.checksums import FileEntry, checksum_of_json
from torchrec_models.pipelines.data.manifest import write_manifest
from torchrec_models.pipelines.data.rows import Rows
from torchrec_models.pipelines.data.shard_writer import ShardWriter
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.data.synthetic import random_cache, random_rows
from torchrec_models.schema import Schema


def assert_rows_equal(left: Rows, right: Rows) -> None:
    for name in ("dense", "ids", "labels", "weights"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    assert len(left.lists) == len(right.lists)
    for (values, offsets), (other_values, other_offsets) in zip(left.lists, right.lists):
        assert torch.equal(values, other_values) and torch.equal(offsets, other_offsets)


def sidecars(num_rows: int) -> pa.Table:
    return pa.table({"group": [None if i % 7 == 0 else f"u{i % 5}" for i in range(num_rows)], "timestamp": list(range(num_rows))})


def write(folder: Path, schema: Schema, rows: Rows, pieces: list[int], rows_per_shard: int) -> Cache:
    """Rows written in pieces of the given sizes."""
    side = sidecars(rows.num_rows)
    writer = ShardWriter(folder / "train", schema, side.schema, rows_per_shard=rows_per_shard)
    start = 0
    for size in pieces:
        writer.append(rows.slice(start, start + size), side.slice(start, size))
        start += size
    assert start == rows.num_rows
    writer.close()
    write_manifest(folder, schema=schema, shards={"train": writer.shards}, fingerprint="f", inputs={}, versions={})
    return Cache.open(folder)


def test_what_is_written_comes_back(tmp_path: Path, schema: Schema) -> None:
    rows = random_rows(schema, 1000, seed=3)
    rows.weights[10, 0] = 0
    cache = write(tmp_path / "cache", schema, rows, [1, 299, 450, 250], rows_per_shard=300)
    split = cache.split("train")
    assert [shard.num_rows for shard in split.shards] == [300, 300, 300, 100]
    assert split.num_rows == 1000
    assert_rows_equal(Rows.cat([split.read(i, 0, s.num_rows) for i, s in enumerate(split.shards)]), rows)
    assert_rows_equal(split.read(1, 17, 40), rows.slice(317, 340))
    np.testing.assert_array_equal(split.labels(), rows.labels.numpy())
    np.testing.assert_array_equal(split.weights(), rows.weights.numpy())
    assert split.column("group").to_pylist() == sidecars(1000)["group"].to_pylist()
    expected = np.average(rows.labels[:, 0].numpy(), weights=rows.weights[:, 0].numpy())
    assert split.label_mean["click"] == pytest.approx(expected, rel=1e-9)
    assert cache.schema == schema
    cache.verify()


def test_files_are_plain_npy(tmp_path: Path, schema: Schema) -> None:
    rows = random_rows(schema, 50)
    write(tmp_path / "cache", schema, rows, [50], rows_per_shard=50)
    shard = tmp_path / "cache" / "train" / "00000"
    np.testing.assert_array_equal(np.load(shard / "dense.npy"), rows.dense.numpy())
    np.testing.assert_array_equal(np.load(shard / "ids.npy"), rows.ids.numpy())
    np.testing.assert_array_equal(np.load(shard / "list_001.offsets.npy"), rows.lists[1][1].numpy())


def test_files_do_not_depend_on_the_pieces(tmp_path: Path, schema: Schema) -> None:
    rows = random_rows(schema, 700)
    one = write(tmp_path / "one", schema, rows, [700], rows_per_shard=256)
    other = write(tmp_path / "other", schema, rows, [3, 97, 255, 256, 89], rows_per_shard=256)
    assert one.manifest == other.manifest


def test_a_split_without_features_of_a_kind(tmp_path: Path) -> None:
    from torchrec_models.schema import Feature, Task

    schema = Schema(features=(Feature(name="x", kind="numeric"),), tasks=(Task(name="y"),))
    cache = random_cache(tmp_path / "cache", schema, {"train": 5})
    rows = cache.split("train").read(0, 1, 4)
    assert rows.ids.shape == (3, 0) and rows.lists == () and rows.dense.shape == (3, 1)


@pytest.mark.parametrize("name", ["dense.npy", "ids.npy", "list_000.values.npy", "labels.npy", "sidecars.arrow"])
def test_one_flipped_byte_is_refused_by_name(tmp_path: Path, schema: Schema, name: str) -> None:
    random_cache(tmp_path / "cache", schema, {"train": 300}, rows_per_shard=100)
    path = tmp_path / "cache" / "train" / "00001" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    cache = Cache.open(tmp_path / "cache")  # compares sizes only
    with pytest.raises(ValueError, match=rf"00001/{name}: altered after it was prepared .*--force"):
        cache.verify()


def test_a_truncated_file_is_refused_when_opened(tmp_path: Path, schema: Schema) -> None:
    random_cache(tmp_path / "cache", schema, {"train": 300})
    path = tmp_path / "cache" / "train" / "00000" / "ids.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"ids.npy: altered after it was prepared \(\d+ bytes, expected \d+\)"):
        Cache.open(tmp_path / "cache")
    path.unlink()
    with pytest.raises(ValueError, match=r"ids.npy: missing"):
        Cache.open(tmp_path / "cache")


def test_a_folder_that_is_not_a_finished_cache_is_refused(tmp_path: Path, schema: Schema) -> None:
    with pytest.raises(ValueError, match=r"no cache at .*trm prepare"):
        Cache.open(tmp_path / "nowhere")
    random_cache(tmp_path / "cache", schema, {"train": 3})
    manifest = tmp_path / "cache" / "manifest.json"
    text = manifest.read_text()

    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"manifest.json: truncated or altered"):
        Cache.open(tmp_path / "cache")

    manifest.write_text(text.replace('"num_rows": 3', '"num_rows": 4'))
    with pytest.raises(ValueError, match=r"manifest.json: altered"):
        Cache.open(tmp_path / "cache")

    manifest.unlink()
    with pytest.raises(ValueError, match=r"not a finished cache"):
        Cache.open(tmp_path / "cache")


def test_an_older_format_is_refused_with_what_to_do(tmp_path: Path, schema: Schema) -> None:
    random_cache(tmp_path / "cache", schema, {"train": 3})
    path = tmp_path / "cache" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format_version": 0}
    del manifest["checksum"]
    path.write_text(json.dumps(manifest | {"checksum": checksum_of_json(manifest)}))
    with pytest.raises(ValueError, match=r"cache format 0, this version reads format 1; prepare again with --force"):
        Cache.open(tmp_path / "cache")


def test_a_split_or_column_that_is_not_there_says_what_is(tmp_path: Path, schema: Schema) -> None:
    cache = write(tmp_path / "cache", schema, random_rows(schema, 9), [9], rows_per_shard=9)
    with pytest.raises(ValueError, match=r"no split 'valid'; it has: train"):
        cache.split("valid")
    with pytest.raises(ValueError, match=r"no column 'grp'; kept: group, timestamp"):
        cache.split("train").column("grp")


def test_a_new_writer_goes_on_behind_finished_shards(tmp_path: Path, schema: Schema) -> None:
    rows, side = random_rows(schema, 50), sidecars(50)
    whole = write(tmp_path / "whole", schema, rows, [50], rows_per_shard=20)
    first = ShardWriter(tmp_path / "cache" / "train", schema, side.schema, rows_per_shard=20)
    first.append(rows.slice(0, 35), side.slice(0, 35))  # and dies here: one shard, one .tmp
    assert sorted(p.name for p in (tmp_path / "cache" / "train").iterdir()) == ["00000", "00001.tmp"]
    second = ShardWriter(tmp_path / "cache" / "train", schema, side.schema, rows_per_shard=20, finished=tuple(first.shards))
    assert second.num_rows == 20
    second.append(rows.slice(20, 50), side.slice(20, 30))
    second.close()
    assert [s.to_json() for s in second.shards] == [s.to_json() for s in whole.split("train").shards]


def test_a_full_disk_is_reported_with_the_path(tmp_path: Path) -> None:
    script = f"""
import resource, pyarrow as pa
from torchrec_models.schema import Feature, Schema, Task
from torchrec_models.pipelines.data.shard_writer import ShardWriter
from torchrec_models.pipelines.data.synthetic import random_rows
from pathlib import Path
schema = Schema(features=tuple(Feature(name=f"x{{i}}", kind="numeric") for i in range(100)), tasks=(Task(name="y"),))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
writer = ShardWriter(Path({str(tmp_path)!r}) / "train", schema, pa.schema([]), rows_per_shard=10_000)
try:
    writer.append(random_rows(schema, 2000), pa.table({{}}))
    writer.close()  # what fits into the buffers is not written before
except OSError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "File too large" in out and str(tmp_path / "train" / "00000.tmp" / "dense.npy") in out


def test_caches_of_earlier_releases_are_checked_by_their_own_kind(tmp_path: Path) -> None:
    """BLAKE2b-128 of "abc" by coreutils' `b2sum -l 128`; XXH3-128 is what xxhash 4.1.0 gives."""
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert FileEntry.of(path) == FileEntry(3, "xxh3:06b05ab6733a618578af5f94892f3950")
    FileEntry(3, "cf4ab791c62b8d2b2109c90275287816").check(path)
    path.write_bytes(b"abd")
    for checksum in ("cf4ab791c62b8d2b2109c90275287816", "xxh3:06b05ab6733a618578af5f94892f3950"):
        with pytest.raises(ValueError, match="altered after it was prepared"):
            FileEntry(3, checksum).check(path)
