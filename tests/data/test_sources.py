import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_flow import run_config

from torchrec_models.pipelines.data.sources import Source, open_source, wanted_columns

BUDGET_BYTES = 64 * 2**20


def open_files(paths: list, columns: list[str], **options: Any) -> Source:
    options = {"format": "auto", "column_names": [], "null_values": [""], "memory_budget_bytes": BUDGET_BYTES, **options}
    return Source.open([str(p) for p in paths], columns=columns, **options)


def read(source: Source) -> pa.Table:
    batches = list(source.batches())
    row, file_rows = 0, dict.fromkeys((f.path for f in source.files), 0)
    for batch in batches:
        assert (batch.global_row, batch.first_row) == (row, file_rows[batch.path])
        row += batch.batch.num_rows
        file_rows[batch.path] += batch.batch.num_rows
        assert batch.batch.schema.equals(source.arrow_schema)
    return pa.Table.from_batches([b.batch for b in batches])


@pytest.fixture
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "user": pa.array([f"u{i}" for i in rng.integers(0, 50, 1000)]),
            "item": rng.integers(0, 9, 1000),
            "price": rng.normal(size=1000),
            "history": [list(range(i % 4)) if i % 5 else None for i in range(1000)],
        }
    )


@pytest.mark.parametrize("row_group_size", [1, 100, 1000])
def test_parquet_comes_back_whole(tmp_path: Path, table: pa.Table, row_group_size: int) -> None:
    table = table.slice(0, 300)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=row_group_size)
    source = open_files([tmp_path / "a.parquet"], ["item", "history", "user"])
    assert source.num_rows == 300
    assert read(source).equals(table.select(["item", "history", "user"]))


def test_dictionary_columns_hold_the_same_values(tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    large = table.set_column(0, "user", table["user"].cast(pa.large_string()))
    pq.write_table(large, tmp_path / "b.parquet")
    category = table["user"].cast(pa.dictionary(pa.int8(), pa.string()))  # as pandas writes a categorical column
    pq.write_table(table.set_column(0, "user", category), tmp_path / "c.parquet")
    source = open_files([tmp_path], ["user", "item"], dictionary_columns={"user", "item"})
    assert source.arrow_schema.field("user").type == pa.dictionary(pa.int32(), pa.string())
    out = read(source)
    assert out["user"].cast(pa.string()).to_pylist() == table["user"].to_pylist() * 3


def test_a_large_dictionary_does_not_shrink_batches(tmp_path: Path) -> None:
    """It belongs to all rows of the row group, not to those of one batch."""
    pq.write_table(pa.table({"user": [f"user {i}" for i in range(30_000)]}), tmp_path / "a.parquet")
    assert len(list(open_files([tmp_path], ["user"], dictionary_columns={"user"}).batches())) == 1


def test_batches_do_not_depend_on_the_columns(tmp_path: Path, table: pa.Table) -> None:
    """Arrow ends one where a row group ends if a column is dictionary-encoded; what one pass kept of a batch, another one reads."""
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    source = open_files([tmp_path], ["user", "price", "history"], dictionary_columns={"user"}, memory_budget_bytes=2**18)
    sizes = [batch.batch.num_rows for batch in source.batches()]
    assert 1 < len(sizes) < 1000 / 70
    for columns in (["price"], ["user"], ["user", "history"]):
        assert [batch.batch.num_rows for batch in source.only(columns).batches()] == sizes
    assert read(source)["user"].cast(pa.string()).to_pylist() == table["user"].to_pylist()


def test_bytes_are_not_dictionary_encoded(tmp_path: Path, table: pa.Table) -> None:
    """Arrow cannot cast their dictionaries to text; the ids cast their values."""
    pq.write_table(table.set_column(0, "user", table["user"].cast(pa.binary())), tmp_path / "a.parquet")
    source = open_files([tmp_path], ["user"], dictionary_columns={"user"})
    assert read(source)["user"].cast(pa.string()).to_pylist() == table["user"].to_pylist()


def test_a_large_row_group_is_cut_to_the_budget(tmp_path: Path) -> None:
    rows, budget_bytes = 20_000, 16 * 2**20
    wide = pa.table({"text": [str(i) * 200 for i in range(rows)], "key": range(rows)})  # about 1 kB a row, one row group of 19 MB
    pq.write_table(wide, tmp_path / "a.parquet", row_group_size=rows)
    source = open_files([tmp_path], ["key", "text"], memory_budget_bytes=budget_bytes)
    sizes = [b.batch.nbytes for b in source.batches()]
    assert len(sizes) > 10 and max(sizes) < budget_bytes / 8
    assert read(source)["key"].to_pylist() == list(range(rows))


def test_files_folders_and_globs(tmp_path: Path, table: pa.Table) -> None:
    (tmp_path / "day=2" / "deep").mkdir(parents=True)
    for name in ("b.parquet", "a.parquet", "day=2/deep/c.parquet", "_hidden.parquet", ".x.parquet"):
        pq.write_table(table.slice(0, 2), tmp_path / name)
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "readme.md").write_text("not data")

    def names(*paths: str) -> list[str]:
        return [Path(f.path).name for f in open_files([tmp_path / p for p in paths], ["user"]).files]

    assert names(".") == ["a.parquet", "b.parquet", "c.parquet"]
    assert names("[ab].parquet") == ["a.parquet", "b.parquet"]
    assert names("**/c.parquet", "a.parquet") == ["c.parquet", "a.parquet"]
    info = open_files([tmp_path / "a.parquet"], ["user"]).files[0]
    stat = (tmp_path / "a.parquet").stat()
    assert (info.size_bytes, info.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def test_parts_know_the_rows_before_them(tmp_path: Path, table: pa.Table) -> None:
    for name, rows in (("a", 10), ("b", 20), ("c", 5)):
        pq.write_table(table.slice(0, rows), tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}.csv").write_text("x,y\n" + "1,2\n" * rows)
    for pattern, column in (("*.parquet", "item"), ("*.csv", "x")):
        source = open_files([tmp_path / pattern], [column])
        source = source.counted([source.count_part(part) for part in source.parts])
        first = next(source.batches(range(2, 3)))
        assert (first.global_row, first.first_row, first.batch.num_rows, Path(first.path).stem) == (30, 0, 5, "c")


def test_widths_of_one_kind_meet(tmp_path: Path) -> None:
    narrow = pa.table({"i": pa.array([1], pa.int8()), "f": pa.array([0.5], pa.float32()), "n": pa.nulls(1)})
    pq.write_table(narrow, tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": ["x"], "i": pa.array([2**40]), "f": pa.array([0.25])}), tmp_path / "b.parquet")
    out = read(open_files([tmp_path], ["i", "f", "n"]))
    assert out.to_pydict() == {"i": [1, 2**40], "f": [0.5, 0.25], "n": [None, "x"]}


def test_numbers_may_be_integers_in_one_file(tmp_path: Path) -> None:
    """As pandas writes them where one of them is missing. Ids may not: 2^53 + 1 would be another one."""
    pq.write_table(pa.table({"age": [7, 2**53], "user": [1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"age": [1.5, None], "user": [3, 4]}), tmp_path / "b.parquet")
    config = run_config({"age": {"kind": "numeric"}, "user": {"kind": "categorical"}}, train=[str(tmp_path)])
    source = open_source(config, config.data.train, columns=["age", "user"])
    assert read(source).to_pydict() == {"age": [7.0, 2.0**53, 1.5, None], "user": [1, 2, 3, 4]}
    pq.write_table(pa.table({"age": [2**53 + 1], "user": [5]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet: column 'age', data row 1: 9007199254740993 is not"):
        read(open_source(config, config.data.train, columns=["age", "user"]))
    pq.write_table(pa.table({"age": [1], "user": [5.0]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="column 'user' has type double, and type int64"):
        open_source(config, config.data.train, columns=["age", "user"])


@pytest.mark.parametrize(("name", "text"), [
    ("a.csv", 'user,item,price\nu1,7,0.5\n"a, ""b""\nc",007,\n,9,1e3\n'),
    ("a.tsv", 'item\tprice\tuser\n7\t0.5\tu1\n007\t\t"a, b\n9\t1e3\t\n'),
    ("a.csv.gz", "user,item,price\r\nu1,7,0.5\r\nu2,007,\r\n,9,1e3"),
    ("a.csv", "\ufeffuser,item,price\nu1,7,0.5\n\nu2,007,\n,9,1e3\n"),
])  # fmt: skip
def test_text_with_a_header(tmp_path: Path, name: str, text: str) -> None:
    raw = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    out = read(open_files([tmp_path], ["user", "item", "price"], text_types={"price": pa.float64()})).to_pydict()
    assert out["item"] == ["7", "007", "9"]
    assert out["price"] == [0.5, None, 1000.0]
    assert out["user"] == ["u1", {"a.tsv": '"a, b'}.get(name, 'a, "b"\nc' if '"' in text else "u2"), None]


def test_text_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1\tnull\tx\n0\t2\t\n")
    source = open_files([tmp_path / "log.txt"], ["c", "b"], format="tsv", column_names=["a", "b", "c"], null_values=["", "null"])
    assert read(source).to_pydict() == {"c": ["x", None], "b": [None, "2"]}


def test_typed_headers_are_names(tmp_path: Path) -> None:
    (tmp_path / "ml.inter").write_text("user_id:token\titem_id:token\trating:float\n1\t2\t3.5\n")
    source = open_files([tmp_path / "ml.inter"], ["user_id:token", "rating:float"], format="tsv")
    assert read(source).to_pydict() == {"user_id:token": ["1"], "rating:float": ["3.5"]}


def test_text_is_cut_to_the_budget(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{i},{'z' * 100}\n" for i in range(30_000)))
    source = open_files([tmp_path], ["x"], memory_budget_bytes=16 * 2**20)
    batches = list(source.batches())
    assert len(batches) >= 3
    assert read(source)["x"].to_pylist() == [str(i) for i in range(30_000)]


def test_column_order_may_differ_between_text_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("y,x\n4,3\n")
    assert read(open_files([tmp_path], ["x", "y"])).to_pydict() == {"x": ["1", "3"], "y": ["2", "4"]}


def test_open_source_reads_each_column_as_its_use_needs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,zip,age,when,click,unused\nu1,007,30,2024-01-01,1,?\n")
    config = run_config(
        {"user": {"kind": "categorical"}, "zip": {"kind": "categorical"}, "age": {"kind": "numeric"},
         "age_bucket": {"kind": "categorical", "column": "age", "ids": {"by": "bucketize", "boundaries": [1]}}},
        labels=["click"], train=[str(tmp_path / "a.csv")], timestamp="when", group="user",
        split={"by": "time", "column": "when", "valid_from": "2024-02-01"},
    )  # fmt: skip
    source = open_source(config, config.data.train)
    assert source.arrow_schema.names == wanted_columns(config) == ["user", "zip", "age", "click", "when"]
    assert read(source).to_pydict() == {"user": ["u1"], "zip": ["007"], "age": [30.0], "click": [1.0], "when": ["2024-01-01"]}
