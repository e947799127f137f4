"""Feature stores against rows of one file in which everything stands: equal batches, however read; ids that a store lacks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from torchrec_models.batch import Batch
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.cli import main
from torchrec_models.pipelines.data import native, order
from torchrec_models.pipelines.data.loader import GatherKind, Loader
from torchrec_models.pipelines.data.prepare import check_data, open_prepared, prepare
from torchrec_models.pipelines.data.shards import Cache

NUM_PAIRS, NUM_NOTICES, NUM_FIRMS = 500, 30, 20
STORES = {"notices": ("notice_id", NUM_NOTICES), "firms": ("firm_id", NUM_FIRMS)}


def write(folder: Path) -> dict[str, pa.Table]:
    """Two stores, and pairs of their ids as text with a number, a category and a list of their own."""
    random = np.random.default_rng(0)
    tables = {}
    for name, (key, count) in STORES.items():
        columns: dict[str, Any] = {key: [f"{name[0]}{i:03d}" for i in random.permutation(count)]}
        columns |= {f"n_{i}": random.random(count).astype(np.float32) for i in (1, 2, 3)}
        columns |= {f"c_{i}": [f"v{v}" for v in random.integers(0, 5, count)] for i in (1, 2)}
        tables[name] = pa.table(columns)
    pairs: dict[str, Any] = {key: tables[n][key].take(pa.array(random.integers(0, c, NUM_PAIRS))) for n, (key, c) in STORES.items()}
    pairs |= {"hour": random.integers(0, 24, NUM_PAIRS), "price": random.random(NUM_PAIRS), "bid": random.integers(0, 2, NUM_PAIRS)}
    pairs["tags"] = [list(range(n)) for n in random.integers(0, 4, NUM_PAIRS)]
    tables["pairs"] = pa.table(pairs)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return tables


HASH = {"kind": "categorical", "dim": 4, "ids": {"by": "hash", "buckets": 50}}
OWN = {"hour": HASH, "price": {"kind": "numeric"}, "tags": {**HASH, "max_len": 4}}
# own features and those of both stores in each other's midst
FEATURES: dict[str, dict[str, Any]] = {
    "firms_n_1": {"kind": "numeric", "store": "firms"},
    "notices_n_1": {"kind": "numeric", "store": "notices", "steps": ["log1p"]},
    "notices_n_2": {"kind": "numeric", "store": "notices"},
    "notices_c_1": {**HASH, "store": "notices"},
    **OWN,
    "size": {"kind": "numeric", "store": "firms", "column": "n_3"},
    "firms_c_1": {**HASH, "store": "firms"},
    "notices_n_3": {"kind": "numeric", "store": "notices"},
    "notices_c_2": {**HASH, "store": "notices"},
    "firm": {**HASH, "column": "firm_id"},
    "firms_n_2": {"kind": "numeric", "store": "firms"},
}


def raw(folder: Path, **changes: Any) -> dict[str, Any]:
    stores = {name: {"files": str(folder / f"{name}.parquet"), "key": key} for name, (key, _) in STORES.items()}
    return {
        "run": str(folder / "run"),
        "data": {"train": str(folder / "pairs.parquet"), "cache": str(folder / "cache"), "stores": stores, "rows_per_shard": 200},
        "features": FEATURES,
        "labels": {"bid": {}},
        "model": {"name": "deepfm"},
        **changes,
    }


def parsed(folder: Path, *overrides: str, **changes: Any) -> C.RunConfig:
    return C.parse(raw(folder, **changes), overrides=overrides)


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, pa.Table]:
    return write(tmp_path)


def of_joined_file(folder: Path, tables: dict[str, pa.Table]) -> Cache:
    """The same rows, from one file in which everything stands."""
    joined = tables["pairs"]
    for name, (key, _) in STORES.items():
        at = [tables[name][key].to_pylist().index(value) for value in tables["pairs"][key].to_pylist()]
        for column in tables[name].column_names[1:]:
            joined = joined.append_column(f"{name}_{column}", tables[name][column].take(pa.array(at)))
    joined = joined.append_column("size", joined["firms_n_3"])
    pq.write_table(joined, folder / "joined.parquet")
    features = {name: {k: v for k, v in f.items() if k != "store" and name != "size"} for name, f in FEATURES.items()}
    features["size"] = {"kind": "numeric"}
    data = {"train": str(folder / "joined.parquet"), "cache": str(folder / "joined"), "rows_per_shard": 200}
    return prepare(C.parse(raw(folder, data=data, features=features)), progress=False)


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    out = {name: getattr(batch, name) for name in ("dense", "labels", "weights", "row_id")}
    for name, kjt in (("sparse", batch.sparse), ("sequence", batch.sequence)):
        out |= {f"{name} values": kjt.values(), f"{name} lengths": kjt.lengths()}
    return out


def same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs):
        assert a.sparse.keys() == b.sparse.keys()
        for name, value in tensors(a).items():
            assert torch.equal(value, tensors(b)[name]), name


@pytest.mark.parametrize("gather", ["native", "stock"])
@pytest.mark.parametrize("whole_bytes", [0, 2**30], ids=["streamed", "kept"])
def test_batches_are_those_of_joined_rows(
    tmp_path: Path, tables: dict[str, pa.Table], monkeypatch: pytest.MonkeyPatch, gather: GatherKind, whole_bytes: int
) -> None:
    if gather == "native" and native.native_gather() is None:
        pytest.skip("no C compiler here")
    monkeypatch.setattr(order, "WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(order, "WINDOW_ROWS", 64)
    monkeypatch.setattr(order, "BLOCK_ROWS", 16)
    cache, joined = prepare(parsed(tmp_path), progress=False), of_joined_file(tmp_path, tables)
    assert [f.name for f in cache.schema.features] == [*FEATURES]
    options: dict[str, Any]
    for options in ({"shuffle": True, "seed": 3}, {}, {"id_dtype": torch.int32}, {"rank": 1, "world_size": 3, "pad": True}):
        # 60 rows a step over ranks; batches span windows, shards and the end of the split
        ours, theirs = (list(Loader(c, "train", batch_size=60, gather=gather, **options).epoch(1)) for c in (cache, joined))
        same(ours, theirs)
    read, expected = (c.split("train").read(1, 10, 90) for c in (cache, joined))
    assert torch.equal(read.dense, expected.dense) and torch.equal(read.ids, expected.ids)


def test_a_cache_holds_each_store_once_and_a_few_bytes_per_pair(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    cache = prepare(parsed(tmp_path), progress=False)
    notices, firms = cache.stores
    assert (notices.num_rows, firms.num_rows) == (NUM_NOTICES, NUM_FIRMS) and notices.unknown_rows == {"train": 0}
    dense, ids = np.load(notices.folder / "dense.npy"), np.load(notices.folder / "ids.npy")
    assert dense.shape == (1 + NUM_NOTICES, 3) and dense.dtype == np.float32 and ids.shape == (1 + NUM_NOTICES, 2)
    np.testing.assert_array_equal(dense[1:, 1], tables["notices"]["n_2"])
    np.testing.assert_allclose(dense[0], dense[1:].mean(0), rtol=1e-6)
    shard = cache.split("train").shards[0]
    assert np.load(shard.folder / "ids.npy").shape == (200, 2 + 2), "hour and firm, and two row numbers"
    assert np.load(shard.folder / "dense.npy").shape == (200, 1)
    mapped = cache.split("train").join.stores[0].dense
    assert mapped.data_ptr() == notices.store.dense.data_ptr(), "all readers of a cache share one mapping"


def test_unknown_ids_are_counted_and_get_row_0(
    tmp_path: Path, tables: dict[str, pa.Table], capsys: pytest.CaptureFixture[str]
) -> None:
    ids = tables["pairs"]["notice_id"].to_pylist()
    ids[3], ids[7], ids[499] = None, "unheard-of", "unheard-of"
    pq.write_table(tables["pairs"].set_column(0, "notice_id", pa.array(ids)), tmp_path / "pairs.parquet")
    config = parsed(tmp_path)
    cache = prepare(config, progress=False)
    assert cache.stores[0].unknown_rows == {"train": 3} and cache.stores[1].unknown_rows == {"train": 0}
    batch = next(Loader(cache, "train", batch_size=NUM_PAIRS).epoch(0))
    position = [f.name for f in cache.schema.dense].index("notices_n_2")
    mean = tables["notices"]["n_2"].to_numpy().mean(dtype=np.float64)
    assert batch.dense[[3, 7, 499], position].tolist() == pytest.approx([mean] * 3)
    assert batch.sparse["notices_c_1"].values()[[3, 7, 499]].tolist() == [0, 0, 0]
    assert batch.sparse["notices_c_1"].values()[[2, 4, 498]].min() > 0
    assert main(["data", "inspect", str(tmp_path / "cache")]) == 0
    assert "notice_id; train 3" in capsys.readouterr().out


def test_unknown_ids_can_be_refused(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    ids = tables["pairs"]["notice_id"].to_pylist()
    ids[7] = "unheard-of"
    pq.write_table(tables["pairs"].set_column(0, "notice_id", pa.array(ids)), tmp_path / "pairs.parquet")
    message = r"pairs.parquet: column 'notice_id', data row 8: 'unheard-of' is not in store 'notices'; add it there, or set"
    with pytest.raises(ValueError, match=message):
        prepare(parsed(tmp_path, "data.stores.notices.unknown=error"), progress=False)


def test_a_store_of_other_ids_is_refused(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    with pytest.raises(
        ValueError, match=r"data.stores.notices: it knows the id of no row .* do its key and the data's column 'firm_id'"
    ):
        prepare(parsed(tmp_path, "data.stores.notices.column=firm_id"), progress=False)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (5, None, r"firms.parquet: column 'firm_id', data row 6: the id of store 'firms' is missing"),
        (5, "f003", r"firms.parquet: column 'firm_id', data row \d+: the id 'f003' stands in store 'firms' twice"),
    ],
)
def test_each_id_of_a_store_stands_there_once(
    tmp_path: Path, tables: dict[str, pa.Table], at: int, value: str | None, message: str
) -> None:
    ids = tables["firms"]["firm_id"].to_pylist()
    ids[at] = value
    pq.write_table(tables["firms"].set_column(0, "firm_id", pa.array(ids, pa.string())), tmp_path / "firms.parquet")
    with pytest.raises(ValueError, match=message):
        prepare(parsed(tmp_path), progress=False)


def test_values_that_a_store_holds_are_checked_like_others(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    number = tables["firms"]["n_1"].to_pylist()
    number[4] = None
    pq.write_table(tables["firms"].set_column(1, "n_1", pa.array(number)), tmp_path / "firms.parquet")
    with pytest.raises(ValueError, match=r"feature 'firms_n_1': .*firms.parquet: column 'firms.n_1', data row 5: .*missing"):
        prepare(parsed(tmp_path), progress=False)


def test_numbers_can_be_ids(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    """A store whose key is written as integers, pairs that write them with a point, as pandas does beside nulls."""
    keys = tables["notices"]["notice_id"].to_pylist()
    store = tables["notices"].set_column(0, "notice_id", pa.array([int(key[1:]) for key in keys]))
    pq.write_table(store, tmp_path / "notices.parquet")
    ids = [float(value[1:]) for value in tables["pairs"]["notice_id"].to_pylist()]
    pq.write_table(tables["pairs"].set_column(0, "notice_id", pa.array(ids)), tmp_path / "pairs.parquet")
    cache = prepare(parsed(tmp_path), progress=False)
    assert cache.stores[0].unknown_rows == {"train": 0}
    same(*(list(Loader(c, "train", batch_size=100).epoch(0)) for c in (cache, of_joined_file(tmp_path, write(tmp_path)))))


def test_transforms_are_fitted_on_the_rows_of_stores(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    vocabulary = {"kind": "categorical", "dim": 4}
    features = {
        "notices_n_1": {"kind": "numeric", "store": "notices", "steps": ["standard"]},
        "notices_c_1": {**vocabulary, "store": "notices"},
        "firms_c_1": {**vocabulary, "dim": None, "store": "firms", "table": "notices_c_1"},
        "hour": vocabulary,
    }
    del features["firms_c_1"]["dim"]
    cache = prepare(parsed(tmp_path, features=features), progress=False)
    dense = np.load(cache.stores[0].folder / "dense.npy")[1:]
    assert dense.mean() == pytest.approx(0, abs=1e-6) and dense.std() == pytest.approx(1, abs=1e-5)
    found = set(cache.transforms.tables["notices_c_1"].values.to_pylist())  # type: ignore[attr-defined]
    assert found == {*tables["notices"]["c_1"].to_pylist(), *tables["firms"]["c_1"].to_pylist()}, "of both stores"


def test_a_store_that_changed_makes_the_cache_out_of_date(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    config = parsed(tmp_path)
    prepare(config, progress=False)
    open_prepared(config)
    pq.write_table(tables["firms"].slice(0, 19), tmp_path / "firms.parquet")
    with pytest.raises(ValueError, match=r"files.stores.firms"):
        open_prepared(config)


def test_an_altered_store_is_found(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    cache = prepare(parsed(tmp_path), progress=False)
    path = cache.stores[1].folder / "dense.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"stores/firms/dense\.npy: altered"):
        next(Loader(Cache.open(cache.folder), "train", batch_size=10).epoch(0))
    path.unlink()
    with pytest.raises(ValueError, match=r"stores/firms/dense\.npy: missing"):
        Cache.open(cache.folder)


def test_mistakes_are_told_at_once(tmp_path: Path) -> None:
    features = {
        "a": {"kind": "numeric", "store": "notice"},
        "b": {**HASH, "store": "notices", "max_len": 3},
        "c": {"kind": "categorical", "store": "notices", "ids": {"by": "identity", "num_rows": 9}},
        "row in notices": {"kind": "numeric"},
    }
    with pytest.raises(C.ConfigError) as found:
        parsed(tmp_path, features=features)
    text = str(found.value)
    for line in (
        "features.a.store: given 'notice'; no such store; there are: notices, firms; did you mean 'notices'?",
        "features.b.max_len: given 3; a store holds one id per column",
        "features.c.ids: an identity table has no row for ids that store 'notices' lacks; set data.stores.notices.unknown: error",
        "features.row in notices: the cache keeps row numbers of the store under this name",
        "data.stores.firms: no feature reads it",
    ):
        assert line in text, text


def test_files_of_stores_are_looked_at_by_trm_check(tmp_path: Path, tables: dict[str, pa.Table]) -> None:
    check_data(parsed(tmp_path))
    with pytest.raises(ValueError, match=r"data.stores.firms: .*no column 'firm'.*did you mean 'firm_id'"):
        check_data(parsed(tmp_path, "data.stores.firms.key=firm"))
    (tmp_path / "firms.parquet").unlink()
    with pytest.raises(ValueError, match=r"data.stores.firms: .*firms.parquet"):
        check_data(parsed(tmp_path))
