"""Native code and stock operators give the same bits; memory is used again only when nobody refers to it."""

import gc
import logging
import shutil
from pathlib import Path

import pytest
import torch

from torchrec_models.batch import Batch
from torchrec_models.pipelines.data import native, order, records
from torchrec_models.pipelines.data.buffers import BufferPool
from torchrec_models.pipelines.data.gather import BatchGather, NativeGather, OpenWindow, Segment, StockGather
from torchrec_models.pipelines.data.loader import Loader
from torchrec_models.pipelines.data.order import Run
from torchrec_models.pipelines.data.rows import Rows
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.data.stores import Join
from torchrec_models.pipelines.data.synthetic import random_cache, random_rows
from torchrec_models.pipelines.data.window_reader import WindowReader
from torchrec_models.schema import Feature, Schema, Table

ID_DTYPES = pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> native.Native:
    return native.load(tmp_path_factory.mktemp("native"))


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    found = {name: getattr(batch, name) for name in ("dense", "labels", "weights", "row_id")}
    for name in ("sparse", "sequence"):
        keyed = getattr(batch, name)
        found |= {f"{name}.values": keyed.values(), f"{name}.lengths": keyed.lengths()}
    return found


def assert_same_bits(left: Batch, right: Batch) -> None:
    assert left.sparse.keys() == right.sparse.keys() and left.sequence.keys() == right.sequence.keys()
    other = tensors(right)
    for name, tensor in tensors(left).items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


def window(gather: BatchGather, schema: Schema, num_rows: int, *, seed: int) -> OpenWindow:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(0, num_rows, (2 * num_rows,), generator=generator)  # repeats are allowed
    return OpenWindow(gather.of_rows(random_rows(schema, num_rows, seed=seed), torch.arange(100, 100 + num_rows)), index)


def only(*features: Feature) -> Schema:
    tables = (Table(name="a", num_rows=9, dim=2),) if any(f.table for f in features) else ()
    return Schema(features=features, tables=tables)


SCHEMAS = {
    "no ids": only(Feature(name="x", kind="numeric")),
    "one id": only(Feature(name="a", kind="categorical", table="a")),
    "one list": only(Feature(name="h", kind="sequence", table="a", max_len=3)),
    "mixed": None,
}


@ID_DTYPES
@pytest.mark.parametrize("kind", SCHEMAS)
def test_native_and_stock_give_the_same_bits(compiled: native.Native, schema: Schema, kind: str, id_dtype: torch.dtype) -> None:
    which = SCHEMAS[kind] or schema
    gathers: list[BatchGather] = [
        NativeGather(which, Join(which, ()), compiled, id_dtype=id_dtype, pin_memory=False),
        StockGather(which, Join(which, ()), id_dtype=id_dtype, pin_memory=False),
    ]
    windows = [(window(gather, which, 50, seed=1), window(gather, which, 7, seed=2)) for gather in gathers]
    for parts in (
        [(0, 0, 100)],
        [(0, 13, 14)],
        [(0, 90, 100), (1, 0, 14), (0, 3, 9)],
        [(0, 0, 5), (None, 0, 4)],
    ):
        ours, stock = (
            gather([Segment(of[1].last_again(3, 4) if at is None else of[at], start, stop) for at, start, stop in parts])
            for gather, of in zip(gathers, windows)
        )
        assert_same_bits(ours, stock)


@ID_DTYPES
@pytest.mark.parametrize("kind", SCHEMAS)
@pytest.mark.parametrize("num_rows", [1, 3, 16, 33])
def test_several_batches_at_once_are_those_made_one_by_one(
    compiled: native.Native, schema: Schema, kind: str, id_dtype: torch.dtype, num_rows: int
) -> None:
    which = SCHEMAS[kind] or schema
    native_one = NativeGather(which, Join(which, ()), compiled, id_dtype=id_dtype, pin_memory=False)
    stock = StockGather(which, Join(which, ()), id_dtype=id_dtype, pin_memory=False)
    opened, other = (window(gather, which, 50, seed=1) for gather in (native_one, stock))
    together = native_one.several(Segment(opened, 1, 1 + 3 * num_rows), num_batches=3)
    stock_together = stock.several(Segment(other, 1, 1 + 3 * num_rows), num_batches=3)
    assert len(together) == len(stock_together) == 3
    for number, (batch, of_stock) in enumerate(zip(together, stock_together)):
        first = 1 + number * num_rows
        assert_same_bits(batch, stock([Segment(other, first, first + num_rows)]))
        assert_same_bits(of_stock, batch)
        for name, tensor in tensors(batch).items():
            assert not tensor.numel() or (tensor.is_contiguous() and tensor.data_ptr() % 64 == 0), name


def test_a_split_that_is_packed_in_parts_gives_the_same_bits(
    tmp_path: Path, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept split of many rows is read and packed some at a time; here in 15 parts, over borders of shards."""
    monkeypatch.setattr(records, "_PACK_ROWS", 7)
    cache = random_cache(tmp_path / "cache", schema, {"train": 100}, rows_per_shard=30)
    ours, stock = (Loader(cache, "train", batch_size=32, shuffle=True, gather=kind) for kind in ("native", "stock"))
    for batch, other in zip(ours.epoch(0), stock.epoch(0), strict=True):
        assert_same_bits(batch, other)


def test_the_copy_that_few_rows_of_many_take_is_the_other_ones_copy(schema: Schema) -> None:
    """`Rows.take` has two ways for lists, and chooses by the numbers of rows."""
    many = random_rows(schema, 5000)
    few = torch.tensor([4999, 0, 17, 17, 2500])
    every = torch.cat([few, torch.arange(5000)])
    by_positions, by_lists = many.take(few), many.take(every).slice(0, 5)
    for (values, offsets), (other_values, other_offsets) in zip(by_positions.lists, by_lists.lists):
        assert torch.equal(values, other_values) and torch.equal(offsets, other_offsets)


@ID_DTYPES
def test_batches_that_are_kept_are_not_written_over(tmp_path: Path, schema: Schema, id_dtype: torch.dtype) -> None:
    """Only parts of a batch are held, as views, while later batches are made in memory given back by others."""
    cache = random_cache(tmp_path / "cache", schema, {"train": 2000})
    expected = list(Loader(cache, "train", batch_size=50, gather="stock", id_dtype=id_dtype).epoch(0))
    held = []
    for number, batch in enumerate(Loader(cache, "train", batch_size=50, gather="native", id_dtype=id_dtype).epoch(0)):
        if number % 3 == 0:
            held.append((number, batch.dense[1:], batch.sequence.values()[2:]))
    for number, dense, values in held:
        assert torch.equal(dense, expected[number].dense[1:])
        assert torch.equal(values, expected[number].sequence.values()[2:])


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    pool = BufferPool(max_kept=2)
    first = pool.take(10_000)
    address, part = first.data_ptr(), first.view(torch.int32)[5:7].view(2, 1)
    del first
    gc.collect()
    assert pool.take(10_000).data_ptr() != address  # `part` still refers to it
    del part
    taken = [pool.take(9_000) for _ in range(2)]
    assert address in [t.data_ptr() for t in taken]
    assert pool.take(0).numel() == 0


def test_many_batches_go_through_few_blocks(tmp_path: Path, schema: Schema) -> None:
    cache = random_cache(tmp_path / "cache", schema, {"train": 4000})
    addresses = {b.dense.data_ptr() for b in Loader(cache, "train", batch_size=20, gather="native").epoch(0)}
    assert len(addresses) < 40  # of 200 batches


def test_without_a_compiler_the_loader_says_so_and_goes_on(
    cache_of_ten: Cache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    native.native_gather.cache_clear()
    caplog.set_level(logging.INFO)
    try:
        loader = Loader(cache_of_ten, "train", batch_size=5)
        assert "stock operators" in caplog.text and "there is no C compiler (looked for cc, gcc, clang)" in caplog.text
        assert sum(batch.num_rows for batch in loader.epoch(0)) == 10
        with pytest.raises(ValueError, match=r"gather='native' cannot be had here"):
            Loader(cache_of_ten, "train", batch_size=5, gather="native")
    finally:
        native.native_gather.cache_clear()


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\nexit 7\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent))
    with pytest.raises(native.NoNativeCode, match=r"bin/cc could not make .*gather-.*so.*exit status 7"):
        native.load(tmp_path / "library")
    assert list((tmp_path / "library").iterdir()) == []


def test_what_was_compiled_for_all_needs_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in the serve image: the libraries lie beside their sources."""
    for source in (*native._FOLDER.glob("*.[ch]"), *(native._FOLDER.parent / "serving").glob("*.[ch]")):
        shutil.copy(source, tmp_path)
    native.compile_for_all(tmp_path)
    monkeypatch.setenv("PATH", "")
    for source in tmp_path.glob("*.c"):
        native.load_library(tmp_path / "nothing", source.stem, sources=tmp_path)
    (tmp_path / "gather.c").write_text("int other;")
    with pytest.raises(native.NoNativeCode, match="there is no C compiler"):  # another source needs another library
        native.load_library(tmp_path / "nothing", "gather", sources=tmp_path)


@pytest.fixture
def cache_of_ten(tmp_path: Path, schema: Schema) -> Cache:
    return random_cache(tmp_path / "ten", schema, {"train": 10})


def test_runs_over_shard_borders_equal_plain_reading(tmp_path: Path, schema: Schema) -> None:
    split = random_cache(tmp_path / "cache", schema, {"train": 100}, rows_per_shard=30).split("train")
    every = Rows.cat([split.read(i, 0, shard.num_rows) for i, shard in enumerate(split.shards)])
    runs = [Run(25, 40), Run(0, 1), Run(99, 1), Run(3, 0)]
    index = torch.cat([torch.arange(run.first_row, run.first_row + run.num_rows) for run in runs])
    found, expected = WindowReader(split).read(runs), every.take(index)
    for name in ("dense", "ids", "labels", "weights"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for (values, offsets), (other_values, other_offsets) in zip(found.lists, expected.lists):
        assert torch.equal(values, other_values) and torch.equal(offsets, other_offsets)


def test_offsets_that_cannot_be_right_are_refused(tmp_path: Path, schema: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    """A streamed split is not verified, and native code believes offsets: they are checked when they are read."""
    monkeypatch.setattr(order, "WHOLE_BYTES", 0)
    cache = random_cache(tmp_path / "cache", schema, {"train": 40})
    path = cache.folder / "train" / "00000" / "list_001.offsets.npy"
    data = bytearray(path.read_bytes())
    data[128 + 8 * 20 : 128 + 8 * 21] = (10**9).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"list_001.offsets.npy: altered"):
        list(Loader(cache, "train", batch_size=10).epoch(0))
