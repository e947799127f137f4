"""Rows from files (Parquet, delimited text, what a query gave), streamed as Arrow record batches that know their file and row."""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa

from ..config import QueryConfig, RunConfig
from ..config.data import BucketIds, CovisitationConfig, FloatConfig, raw_columns, store_of
from ..config.splits import split_columns
from .files import FileInfo, Part, find_files, no_rows
from .parallel import joined
from .parquet_files import ParquetFiles
from .text_files import TextFiles


@dataclass(frozen=True, eq=False)
class SourceBatch:
    """Some rows of one file.

    Attributes:
        path: the file.
        first_row: 0-based number of the first row in that file (a header line is not a row).
        global_row: 0-based number of the first row over the whole source.
        part: number of the part; all rows are of one.
        missing: column -> [N] bool, of columns whose arrays do not tell any more.
    """

    batch: pa.RecordBatch
    path: str
    first_row: int
    global_row: int
    part: int = 0
    missing: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Source:
    """The wanted columns of a list of files, in a fixed order of files and rows.

    Attributes:
        arrow_schema: the wanted columns.
        files: in reading order.
        parts: of all files, in reading order.
        computed: further columns of all rows, [num_rows] each, that `batches` appends.
    """

    arrow_schema: pa.Schema
    files: list[FileInfo]
    parts: list[Part]
    _reader: ParquetFiles | TextFiles
    computed: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        paths: list[str],
        *,
        format: Literal["auto", "parquet", "csv", "tsv"],
        column_names: list[str],
        null_values: list[str],
        columns: list[str],
        memory_budget_bytes: int,
        extra_fields: Literal["error", "ignore"] = "error",
        text_types: Mapping[str, pa.DataType] | None = None,
        dictionary_columns: Collection[str] = (),
    ) -> "Source":
        """Find the files and check that all hold the wanted columns, with types that agree.

        Args:
            paths: files, globs or folders. A folder is searched deeply; names that begin with `.` or `_` are skipped.
            format: `auto` goes by the suffix: .parquet, .csv, .tsv, the latter two also .gz, .bz2, .zst.
            column_names: for text without a header line.
            null_values: text that means missing, in text files.
            columns: the columns to read.
            memory_budget_bytes: for decoded rows; batches of Parquet take about a thirty-second, of text a sixteenth.
            extra_fields: of text files whose lines go on behind the last of `column_names`.
            text_types: types of text columns; others are read as text, which no file can contradict. A column that is float64
                there may hold integers in one Parquet file and floats in another.
            dictionary_columns: text columns of Parquet to hand out dictionary-encoded (faster to map to ids).

        Raises:
            ValueError: naming the file, for files that do not exist, are damaged, lack columns or disagree about types.
        """
        files, found = find_files(paths, format)
        columns = list(dict.fromkeys(columns))
        if found == "parquet":
            if column_names:
                raise ValueError(f"data.column_names: has no effect on Parquet files ({files[0].path}); leave it out")
            parquet = ParquetFiles.open(
                files,
                columns,
                memory_budget_bytes=memory_budget_bytes,
                dictionary_columns=dictionary_columns,
                number_columns={name for name, type in (text_types or {}).items() if pa.types.is_floating(type)},
            )
            return cls(parquet.schema, files, parquet.parts, parquet)
        text = TextFiles.open(
            files,
            columns,
            separator="," if found == "csv" else "\t",
            column_names=column_names,
            extra_fields=extra_fields,
            null_values=null_values,
            types=text_types or {},
            memory_budget_bytes=memory_budget_bytes,
        )
        return cls(text.schema, files, text.parts, text)

    @property
    def num_rows(self) -> int | None:
        """Of all files; None where only reading tells (text)."""
        return self.num_rows_of(range(len(self.parts)))

    def num_rows_of(self, parts: range) -> int | None:
        """Of some parts, if they are counted."""
        total = 0
        for i in parts:
            if (num_rows := self.parts[i].num_rows) is None:
                return None
            total += num_rows
        return total

    @property
    def is_text(self) -> bool:
        return isinstance(self._reader, TextFiles)

    def counted(self, num_rows: Sequence[int]) -> "Source":
        """The same rows, for one who knows how many each part has."""
        return replace(self, parts=[replace(part, num_rows=rows) for part, rows in zip(self.parts, num_rows, strict=True)])

    def count_part(self, part: Part) -> int:
        """Its rows, found by reading it."""
        return sum(batch.num_rows for stream in self._reader.streams(part) for batch in stream())

    def only(self, columns: Collection[str]) -> "Source":
        """The same rows, fewer columns."""
        reader = self._reader.only([name for name in self._reader.schema.names if name in columns])
        computed = {name: values for name, values in self.computed.items() if name in columns}
        return replace(
            self, arrow_schema=pa.schema([f for f in self.arrow_schema if f.name in columns]), _reader=reader, computed=computed
        )

    def batches(self, parts: range | None = None, *, rows_before: int | None = None, num_threads: int = 0) -> Iterator[SourceBatch]:
        """Stream the rows of all files, or of some neighbouring parts.

        Args:
            parts: their numbers.
            rows_before: in the parts before these; None where they are counted.
            num_threads: that read ahead; 0 reads in the caller's thread.

        Raises:
            ValueError: naming file and data row, for damaged files and text that does not fit its column; if there are no rows
                (of all files).
        """
        wanted = range(len(self.parts)) if parts is None else parts
        global_row = self.num_rows_of(range(wanted.start)) if rows_before is None else rows_before
        assert global_row is not None, "parts before these are not counted"
        first_row, last_index = 0, -1
        with closing(joined(self._streams(wanted), num_threads=num_threads)) as batches:
            for index, batch in batches:
                part = self.parts[index]
                if index != last_index:
                    first_row, last_index = part.first_row, index
                for name, values in self.computed.items():
                    batch = batch.append_column(name, pa.array(values[global_row : global_row + batch.num_rows]))
                yield SourceBatch(batch, self.files[part.file].path, first_row, global_row, index)
                first_row += batch.num_rows
                global_row += batch.num_rows
        if parts is None and global_row == 0:
            raise no_rows(self.files)

    def _streams(self, parts: range) -> Iterator[Callable[[], Generator[tuple[int, pa.RecordBatch], None, None]]]:
        def numbered(index: int, stream: Callable[[], Generator]) -> Generator[tuple[int, pa.RecordBatch], None, None]:
            for batch in stream():
                yield index, batch

        for index in parts:
            for stream in self._reader.streams(self.parts[index]):
                yield partial(numbered, index, stream)


def wanted_columns(config: RunConfig) -> list[str]:
    """Every raw column that preparing a run reads."""
    data = config.data
    columns = [column for name, f in config.features.items() if not store_of(f) for column in raw_columns(name, f)]
    columns += [store.column or store.key for store in data.stores.values()]
    columns += [label.column or name for name, label in config.labels.items()]
    columns += [c for c in (data.weight, data.group, data.timestamp, data.row_id, *data.slices) if c]
    columns += split_columns(data.split)
    return list(dict.fromkeys(columns))


def open_source(config: RunConfig, paths: list[str] | QueryConfig, *, columns: list[str] | None = None) -> Source:
    """`paths` read as the config says, with every column (or just `columns`) in the type that its use needs.

    Of a query, the rows that `prepare` has read and kept (see snapshots.py). Text columns that only serve as numbers (numeric
    features, labels, weight, buckets) come as float64, everything else as text: ids keep their leading zeros, and no file's
    content changes a type.
    """
    data, of_query = config.data, isinstance(paths, QueryConfig)
    if isinstance(paths, QueryConfig):
        from .snapshots import open_snapshot  # which needs torch; a bundle reads its rows by this module without it

        paths = [str(open_snapshot(config, paths))]
    return Source.open(
        paths,
        format="parquet" if of_query else data.format,
        column_names=[] if of_query else data.column_names,
        null_values=data.null_values,
        columns=wanted_columns(config) if columns is None else columns,
        memory_budget_bytes=data.memory_budget_mib * 2**20,
        extra_fields=data.extra_fields,
        text_types=_text_types(config),
        dictionary_columns=_dictionary_columns(config),
    )


def uses(config: RunConfig) -> tuple[set[str], set[str], set[str]]:
    """Raw columns by use: as numbers; as ids; as they are (written beside the shards, or read by the split)."""
    data, tables = config.data, config.table_configs()
    as_numbers = {label.column or name for name, label in config.labels.items()} | ({data.weight} - {""})
    as_ids = {store.column or store.key for store in data.stores.values()}
    as_they_are = {data.group, data.timestamp, data.row_id, *data.slices, *split_columns(data.split)} - {""}
    for name, feature in config.features.items():
        if store_of(feature):
            continue
        if isinstance(feature, CovisitationConfig):
            as_ids |= {feature.user, feature.item}
            as_numbers |= {feature.events} - {""}
            as_they_are.add(feature.time)
            continue
        number = isinstance(feature, FloatConfig) or (
            isinstance(tables[config.table_of(name)].ids, BucketIds) and not feature.separator
        )
        (as_numbers if number else as_ids).add(feature.column or name)
    return as_numbers, as_ids, as_they_are


def _text_types(config: RunConfig) -> dict[str, pa.DataType]:
    as_numbers, as_ids, as_they_are = uses(config)
    return dict.fromkeys(as_numbers - as_ids - as_they_are, pa.float64())


def _dictionary_columns(config: RunConfig) -> set[str]:
    as_numbers, as_ids, as_they_are = uses(config)
    return as_ids - as_numbers - as_they_are
