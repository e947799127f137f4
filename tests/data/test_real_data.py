"""Published files, read in place: what they hold is checked against what is known of them. Skipped where they are not."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from data_flow import REAL_DATA, prepare_in_memory, run_config

FRAPPE = ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"]
IPINYOU = [
    "click", "weekday", "hour", "bidid", "timestamp", "logtype", "ipinyouid", "useragent", "IP",
    "region", "city", "adexchange", "domain", "url", "urlid", "slotid", "slotwidth", "slotheight",
    "slotvisibility", "slotformat", "slotprice", "creative", "bidprice", "payprice", "keypage", "advertiser", "usertag",
]  # fmt: skip


def real(name: str) -> str:
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not at ../shared/data beside the repository; it may not be redistributed")
    return str(path)


def test_frappe_ids_are_the_published_tables_ids() -> None:
    """Without a min_count, vocabularies are a renumbering: values and ids correspond one to one."""
    path = real("frappe_x1/train.parquet")
    config = run_config({name: {"kind": "categorical"} for name in FRAPPE}, train=path)
    _, transforms, encoded = prepare_in_memory(config)
    table = pq.read_table(path)
    for name in FRAPPE:
        ids = np.concatenate([e.ids[name][0] for _, _, e in encoded])
        values = transforms.tables[name].values.take(ids - 1)
        assert values.to_pylist() == table[name].to_pylist()
        counts = np.bincount(ids)[1:]
        assert (np.diff(counts) <= 0).all()  # most frequent first


def test_movielens_shares_ids_over_splits_by_hash() -> None:
    path = real("ml1m_loo/train.parquet")
    features = {name: {"kind": "categorical"} for name in ("user", "item", "genre")}
    config = run_config(features, train=path, split={"by": "hash", "column": "user", "valid": 0.05, "test": 0.1})
    _, transforms, encoded = prepare_in_memory(config)
    split = np.concatenate([s for _, s, _ in encoded])
    users = pq.read_table(path, columns=["user"])["user"].to_numpy()
    seen = [set(users[split == code]) for code in range(3)]
    assert sum(map(len, seen)) == len(set(users)) == 6040
    assert transforms.num_rows("user") == len(seen[0]) + 1
    ids = np.concatenate([e.ids["user"][0] for _, _, e in encoded])
    assert (ids[split == 0] > 0).all() and (ids[split > 0] == 0).all()  # fitted on training users only


def test_ipinyou_logs_without_a_header() -> None:
    path = real("ipinyou_2259_sample/train.log.txt")
    config = run_config(
        {**{name: {"kind": "categorical"} for name in ("weekday", "hour", "useragent", "region", "city", "domain", "slotid")},
         "usertag": {"kind": "categorical", "max_len": 60, "separator": ","},
         "slotprice": {"kind": "numeric", "steps": ["log1p", "standard"]}},
        labels=["click"], train=path, format="tsv", column_names=IPINYOU, null_values=["", "null"],
    )  # fmt: skip
    _, transforms, encoded = prepare_in_memory(config)
    lines = [line.rstrip("\n").split("\t") for line in Path(path).read_text().splitlines()]
    assert sum(e.num_rows for _, _, e in encoded) == len(lines) == 8355
    tags = [[t for t in line[26].split(",") if t] if line[26] not in ("", "null") else [] for line in lines]
    names = transforms.tables["usertag"].values.to_pylist()
    decoded = []
    for _, _, one in encoded:
        values, offsets = one.ids["usertag"]
        decoded += [[names[i - 1] for i in values[a:b]] for a, b in itertools.pairwise(offsets)]
    assert decoded == tags
    price = np.array([float(line[20]) for line in lines])
    expected = (np.log1p(price) - np.log1p(price).mean()) / np.log1p(price).std()
    np.testing.assert_allclose(np.concatenate([e.dense[:, 0] for _, _, e in encoded]), expected, rtol=1e-5, atol=1e-5)


def test_criteo_with_missing_values() -> None:
    path = real("criteo_head/train_head_10k.tsv")
    dense, sparse = [f"I{i}" for i in range(1, 14)], [f"C{i}" for i in range(1, 27)]
    steps = [{"fill": "median"}, {"clip": [0, None]}, "log1p", "standard"]
    config = run_config(
        {**{name: {"kind": "numeric", "steps": steps} for name in dense},
         **{name: {"kind": "categorical", "ids": {"by": "vocabulary", "min_count": 10}} for name in sparse}},
        labels=["label"], train=path, format="tsv", column_names=["label", *dense, *sparse],
    )  # fmt: skip
    source, transforms, encoded = prepare_in_memory(config)
    x = np.concatenate([e.dense for _, _, e in encoded])
    assert x.shape == (10_000, 13)
    np.testing.assert_allclose(x.mean(axis=0, dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=0, dtype=np.float64), 1, atol=1e-5)
    missing = sum(pc.sum(b.batch.column("C3").is_null()).as_py() or 0 for b in source.batches())
    ids = np.concatenate([e.ids["C3"][0] for _, _, e in encoded])
    table = transforms.tables["C3"]
    assert missing > 0 and (ids == table.null_id).sum() == missing
    assert np.bincount(ids)[1:].min() >= 10
