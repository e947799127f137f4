"""The loader: every row once, in an order that only data, seed and epoch decide, in equal batches, with the right contents."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchrec_models.batch import Batch
from torchrec_models.pipelines.data import order
from torchrec_models.pipelines.data.loader import GatherKind, Loader
from torchrec_models.pipelines.data.order import Run
from torchrec_models.pipelines.data.read_ahead import read_ahead
from torchrec_models.pipelines.data.rows import BatchBuilder, Rows
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.data.synthetic import random_cache, random_rows
from torchrec_models.pipelines.data.window_reader import WindowReader
from torchrec_models.schema import Feature, Schema, Table, Task

NUM_ROWS = 1003
BOTH = pytest.mark.parametrize("small_blocks", ["kept", "streamed"], indirect=True)
STREAMED = pytest.mark.parametrize("small_blocks", ["streamed"], indirect=True)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Many blocks and windows in few rows; "streamed": the split counts as too large to keep."""
    monkeypatch.setattr(order, "BLOCK_ROWS", 16)
    monkeypatch.setattr(order, "NUM_LANES", 4)
    monkeypatch.setattr(order, "WINDOW_ROWS", 64)
    monkeypatch.setattr(order, "WHOLE_BYTES", 0 if getattr(request, "param", "kept") == "streamed" else order.WHOLE_BYTES)


@pytest.fixture
def cache(tmp_path: Path, schema: Schema, small_blocks: None) -> Cache:
    return random_cache(tmp_path / "cache", schema, {"train": NUM_ROWS, "valid": 10}, rows_per_shard=300)


def row_ids(batches: Iterator[Batch]) -> list[int]:
    return torch.cat([batch.row_id for batch in batches]).tolist()


@BOTH
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 64, 333, NUM_ROWS, 5000])
def test_every_row_exactly_once(cache: Cache, shuffle: bool, batch_size: int) -> None:
    loader = Loader(cache, "train", batch_size=batch_size, shuffle=shuffle)
    batches = list(loader.epoch(0))
    assert len(batches) == loader.num_batches == -(-NUM_ROWS // batch_size)
    assert sorted(row_ids(iter(batches))) == list(range(NUM_ROWS))
    assert all(batch.num_rows == batch_size for batch in batches[:-1])
    if not shuffle:
        assert row_ids(iter(batches)) == list(range(NUM_ROWS))


@BOTH
def test_the_order_is_a_function_of_seed_and_epoch(cache: Cache) -> None:
    def seen(seed: int, epoch: int) -> list[int]:
        return row_ids(Loader(cache, "train", batch_size=100, shuffle=True, seed=seed).epoch(epoch))

    first = seen(1, 0)
    assert seen(1, 0) == first
    assert seen(1, 1) != first
    assert seen(2, 0) != first
    assert first != list(range(NUM_ROWS))
    loader = Loader(cache, "train", batch_size=100, shuffle=True, seed=1)
    assert [row_ids(loader.epoch(e)) for e in (1, 0)] == [seen(1, 1), first]


def test_a_small_split_is_permuted_as_a_whole_and_a_large_one_over_all_blocks(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = torch.tensor(row_ids(Loader(cache, "train", batch_size=100, shuffle=True).epoch(0)))
    monkeypatch.setattr(order, "WHOLE_BYTES", 0)
    streamed = torch.tensor(row_ids(Loader(cache, "train", batch_size=100, shuffle=True).epoch(0)))
    for seen in (kept, streamed):
        assert abs(seen[: NUM_ROWS // 2].float().mean() - NUM_ROWS / 2) < 100  # neither half of the split comes first
    assert len(kept[:64].div(16, rounding_mode="floor").unique()) > 20  # of 63
    for window in (0, 128, 640):  # every fourth row is of one lane, whose 16 rows of a window lie in neighbouring blocks
        for lane in range(4):
            assert (
                len(streamed[window + lane : window + 64 : 4].div(16, rounding_mode="floor").unique()) <= 6
            )  # random rows: about 14


def streamed_epoch(cache: Cache, batch_size: int, *, rank: int, world_size: int) -> Loader:
    return Loader(cache, "train", batch_size=batch_size, shuffle=True, seed=3, rank=rank, world_size=world_size)


@STREAMED
@pytest.mark.parametrize(("world_size", "share"), [(1, 1), (2, 1 / 2), (4, 1 / 4), (3, 1), (6, 1 / 2), (8, 1 / 4)])
def test_ranks_read_their_own_lanes_only(cache: Cache, world_size: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 lanes: W ranks read W / gcd(W, 4) times what they use, and a few rows that are left over."""
    read: list[int] = []
    original = WindowReader.fixed

    def counting(self: WindowReader, runs: Sequence[Run]) -> tuple[Tensor, ...]:
        read.append(sum(run.num_rows for run in runs))
        return original(self, runs)

    monkeypatch.setattr(WindowReader, "fixed", counting)
    for rank in range(world_size):
        read.clear()
        list(streamed_epoch(cache, 48, rank=rank, world_size=world_size).epoch(0))
        assert NUM_ROWS * share - 4 <= sum(read) <= NUM_ROWS * share + 4


@STREAMED
def test_the_order_does_not_depend_on_the_batch_size(cache: Cache) -> None:
    first = row_ids(streamed_epoch(cache, 96, rank=0, world_size=1).epoch(0))
    assert row_ids(streamed_epoch(cache, 7, rank=0, world_size=1).epoch(0)) == first


@BOTH
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_order_does_not_depend_on_the_number_of_ranks(cache: Cache, world_size: int) -> None:
    one = [b.row_id for b in Loader(cache, "train", batch_size=96, shuffle=True, seed=5).epoch(2)]
    ranks = [
        list(Loader(cache, "train", batch_size=96, shuffle=True, seed=5, rank=rank, world_size=world_size, pad=True).epoch(2))
        for rank in range(world_size)
    ]
    together = [torch.stack([b.row_id for b in step], dim=1).flatten() for step in zip(*ranks)]  # rank r has every W-th row
    assert [ids[ids >= 0].tolist() for ids in together] == [ids.tolist() for ids in one]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_rows=st.integers(1, 200),
    per_rank=st.integers(1, 40),
    world_size=st.integers(1, 5),
    shuffle=st.booleans(),
    whole_bytes=st.sampled_from([0, 1 << 30]),
    mode=st.sampled_from(["keep", "drop", "pad"]),
)
def test_ranks_get_equal_batches(
    tmp_path_factory: pytest.TempPathFactory,
    small_blocks: None,
    num_rows: int,
    per_rank: int,
    world_size: int,
    shuffle: bool,
    whole_bytes: int,
    mode: str,
) -> None:
    order.WHOLE_BYTES = whole_bytes  # small_blocks puts it back
    schema = Schema(features=(Feature(name="x", kind="numeric"),), tasks=(Task(name="y"),))
    cache = random_cache(tmp_path_factory.mktemp("cache") / "c", schema, {"train": num_rows}, rows_per_shard=70)
    batch_size = per_rank * world_size
    how = {"pad": True} if mode == "pad" else {"last_batch": mode}
    rest = num_rows % batch_size
    lost = {"keep": rest % world_size, "drop": rest, "pad": 0}[mode]
    try:
        loaders = [
            Loader(cache, "train", batch_size=batch_size, rank=r, world_size=world_size, shuffle=shuffle, **how)
            for r in range(world_size)
        ]
    except ValueError as error:
        assert lost == num_rows and "gives no batch" in str(error)
        return
    per_rank_batches = [list(loader.epoch(0)) for loader in loaders]
    assert {len(batches) for batches in per_rank_batches} == {loaders[0].num_batches}
    for step in zip(*per_rank_batches):
        assert len({batch.num_rows for batch in step}) == 1
    seen = [i for batches in per_rank_batches for batch in batches for i in batch.row_id.tolist() if i >= 0]
    assert len(seen) == len(set(seen)) == num_rows - lost
    for batch in (b for batches in per_rank_batches for b in batches):
        assert torch.equal(batch.weights[:, 0] == 0, batch.row_id == -1)


@BOTH
@pytest.mark.parametrize("world_size", [1, 2])
def test_start_batch_equals_skipping(cache: Cache, world_size: int) -> None:
    loader = Loader(cache, "train", batch_size=50, shuffle=True, rank=world_size - 1, world_size=world_size)
    whole = list(loader.epoch(3))
    for start in (1, 7, loader.num_batches - 1, loader.num_batches):
        rest = list(loader.epoch(3, start_batch=start))
        assert len(rest) == loader.num_batches - start
        for skipped, expected in zip(rest, whole[start:]):
            assert_batches_equal(skipped, expected)


def assert_batches_equal(left: Batch, right: Batch) -> None:
    for name in ("dense", "labels", "weights", "row_id"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    for name in ("sparse", "sequence"):
        one, other = getattr(left, name), getattr(right, name)
        assert one.keys() == other.keys() and one.stride() == other.stride()
        assert torch.equal(one.values(), other.values()) and torch.equal(one.lengths(), other.lengths())


@BOTH
@pytest.mark.parametrize("kind", ["native", "stock"])
@pytest.mark.parametrize("batch_size", [2, 14])
@pytest.mark.parametrize("pad", [False, True])
def test_batches_made_together_are_those_made_alone(
    cache: Cache, kind: GatherKind, batch_size: int, pad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of 64 rows: some batches lie in two; both ranks; from the start and from the middle."""

    def of_rank(rank: int) -> Loader:
        return Loader(cache, "train", batch_size=batch_size, rank=rank, world_size=2, shuffle=True, gather=kind, pad=pad)

    together = [of_rank(rank) for rank in range(2)]
    monkeypatch.setattr("torchrec_models.pipelines.data.loader._BATCHES_TOGETHER", 1)
    for rank, several in enumerate(together):
        alone = of_rank(rank)
        for start in (0, 17):
            sizes = [len(group) for group in several._groups(3, start)]
            assert 3 < max(sizes) <= 8 and sum(sizes) == several.num_batches - start
            assert all(len(group) == 1 for group in alone._groups(3, start))
            pairs = zip(alone.epoch(3, start_batch=start), several.epoch(3, start_batch=start), strict=True)
            for batch, other in pairs:
                assert_batches_equal(batch, other)


def naive_ids(rows: Rows, schema: Schema, feature: Feature, row: int) -> list[int]:
    """One feature's ids of one row, looked up the slow and obvious way."""
    if feature.kind == "categorical" and feature.max_len == 1:
        singles = [f.name for f in schema.features if f.kind == "categorical" and f.max_len == 1]
        return [int(rows.ids[row, singles.index(feature.name)])]
    names = [f.name for f in schema.features if f.kind == "sequence" or (f.kind == "categorical" and f.max_len > 1)]
    values, offsets = rows.lists[names.index(feature.name)]
    return values[int(offsets[row]) : int(offsets[row + 1])].tolist()


@BOTH
@pytest.mark.parametrize("gather", ["stock", "native"])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_contents_equal_a_naive_oracle(cache: Cache, schema: Schema, gather: GatherKind, id_dtype: torch.dtype) -> None:
    split = cache.split("train")
    rows = Rows.cat([split.read(i, 0, shard.num_rows) for i, shard in enumerate(split.shards)])
    how = {"gather": gather, "id_dtype": id_dtype}
    for batch in Loader(cache, "train", batch_size=200, shuffle=True, rank=1, world_size=2, **how).epoch(0):
        picked = batch.row_id.tolist()
        assert torch.equal(batch.dense, rows.dense[picked]) and torch.equal(batch.labels, rows.labels[picked])
        assert batch.sparse.keys() == ["user", "tags", "top_tag"]
        assert batch.sequence.keys() == ["item", "history"]
        for keyed, features in ((batch.sparse, schema.pooled), (batch.sequence, schema.jagged)):
            expected = [naive_ids(rows, schema, feature, row) for feature in features for row in picked]
            assert keyed.lengths().tolist() == [len(ids) for ids in expected]
            assert keyed.values().tolist() == [i for ids in expected for i in ids]
            assert keyed.values().dtype == keyed.lengths().dtype == id_dtype and keyed.stride() == len(picked)
            for feature in features:
                dense = keyed[feature.name].to_dense()
                assert [ids.tolist() for ids in dense] == [naive_ids(rows, schema, feature, row) for row in picked]


def test_batches_do_not_share_memory_with_the_kept_rows(cache: Cache) -> None:
    loader = Loader(cache, "train", batch_size=NUM_ROWS)
    before = [t.clone() for t in (next(iter(loader.epoch(0))).dense,)]
    batch = next(iter(loader.epoch(0)))
    batch.dense.zero_()
    assert torch.equal(next(iter(loader.epoch(0))).dense, before[0])


@pytest.mark.parametrize(
    "features",
    [
        (Feature(name="x", kind="numeric"),),
        (Feature(name="a", kind="categorical", table="a"),),
        (Feature(name="h", kind="sequence", table="a", max_len=3),),
    ],
    ids=["no ids", "no dense, no sequence", "no pooled"],
)
def test_a_batch_without_some_part_survives_to(tmp_path: Path, features: tuple[Feature, ...]) -> None:
    tables = (Table(name="a", num_rows=5, dim=2),) if features[0].table else ()
    schema = Schema(features=features, tables=tables)  # no tasks, as in retrieval
    batch = next(iter(Loader(random_cache(tmp_path / "c", schema, {"train": 7}), "train", batch_size=4).epoch(0)))
    moved = batch.to(torch.device("cpu"))
    assert_batches_equal(batch, moved)
    assert moved.num_rows == moved.sparse.stride() == moved.sequence.stride() == 4
    assert moved.labels.shape == (4, 0) and moved.weights.shape == (4, 1)


def test_padding_repeats_a_row_with_weight_zero(cache: Cache) -> None:
    ranks = [list(Loader(cache, "valid", batch_size=16, rank=r, world_size=4, pad=True).epoch(0)) for r in range(4)]
    assert [[b.row_id.tolist() for b in batches] for batches in ranks] == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]], [[9, -1, -1]]]
    assert ranks[3][0].weights.tolist() == [[1, 1], [0, 0], [0, 0]]


def test_a_rank_without_any_row_gets_padding_only(tmp_path: Path, schema: Schema) -> None:
    cache = random_cache(tmp_path / "cache", schema, {"test": 1})
    batches = [next(iter(Loader(cache, "test", batch_size=4, rank=r, world_size=2, pad=True).epoch(0))) for r in range(2)]
    assert [b.row_id.tolist() for b in batches] == [[0], [-1]]
    assert batches[1].weights.sum() == 0


@STREAMED
def test_an_error_while_reading_reaches_the_consumer(cache: Cache) -> None:
    loader = Loader(cache, "train", batch_size=100)
    path = cache.folder / "train" / "00002" / "dense.npy"
    path.write_bytes(path.read_bytes()[:-40])
    batches = loader.epoch(0)
    with pytest.raises(ValueError, match=r"00002/dense.npy: ended early"):
        list(batches)


def test_a_kept_split_is_verified(cache: Cache) -> None:
    path = cache.folder / "train" / "00002" / "ids.npy"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"00002/ids.npy: altered"):
        next(iter(Loader(cache, "train", batch_size=100).epoch(0)))


@STREAMED
def test_closing_early_stops_the_threads(cache: Cache) -> None:
    def running() -> set[str]:
        return {t.name for t in threading.enumerate()} & {"loader-train-0", "reader-train"}

    batches = Loader(cache, "train", batch_size=10).epoch(0)
    next(batches)
    assert running() == {"loader-train-0", "reader-train"}
    batches.close()
    assert running() == set()


def test_read_ahead_stays_within_its_depth_and_raises_in_place() -> None:
    made = []

    def produce() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i
        raise RuntimeError("from the thread")

    items = read_ahead(produce, depth=2, name="test")
    assert next(items) == 0
    assert len(made) <= 5  # 1 used, 2 ready, 1 in hand, 1 being made
    assert [next(items) for _ in range(9)] == list(range(1, 10))
    with pytest.raises(RuntimeError, match="from the thread"):
        next(items)


def test_what_cannot_work_is_refused(cache: Cache) -> None:
    with pytest.raises(ValueError, match=r"batch_size 100 .* cannot be divided among 3 ranks; try 99"):
        Loader(cache, "train", batch_size=100, world_size=3)
    with pytest.raises(ValueError, match=r"no split 'test'; it has: train, valid"):
        Loader(cache, "test", batch_size=10)
    with pytest.raises(ValueError, match=r"has 10 rows and gives no batch; it needs at least batch_size 16 rows"):
        Loader(cache, "valid", batch_size=16, last_batch="drop")
    with pytest.raises(ValueError, match="choose one"):
        Loader(cache, "valid", batch_size=16, last_batch="drop", pad=True)


def test_take_and_cat_agree_with_plain_indexing(schema: Schema) -> None:
    rows = random_rows(schema, 40)
    index = torch.tensor([3, 3, 39, 0, 17])
    taken = rows.take(index)
    build = BatchBuilder(schema)
    parts = Rows.cat([rows.take(index[i : i + 1]) for i in range(5)])
    assert_batches_equal(build(taken, index), build(parts, index))
    assert rows.take(index[:0]).num_rows == 0


@BOTH
@pytest.mark.parametrize("start_batch", [0, 5, 16])
def test_epochs_in_a_row_are_the_epochs_one_by_one(cache: Cache, start_batch: int) -> None:
    loader = Loader(cache, "train", batch_size=64, shuffle=True)
    assert loader.num_batches == 16
    expected = [ids for epoch in (3, 4, 5) for ids in (batch.row_id.tolist() for batch in loader.epoch(epoch))][start_batch:]
    assert [batch.row_id.tolist() for batch in loader.epochs(range(3, 6), start_batch=start_batch)] == expected


def test_epochs_that_are_dropped_leave_no_thread(cache: Cache) -> None:
    before = threading.active_count()
    batches = Loader(cache, "train", batch_size=64, shuffle=True).epochs(range(100))
    for _ in range(14):  # two epochs are under way
        next(batches)
    assert threading.active_count() == before + 2
    batches.close()
    assert threading.active_count() == before
