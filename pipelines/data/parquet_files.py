"""Parquet files as streams of record batches, decoded a few rows at a time whatever the row groups' size."""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from ..config.errors import nearest
from .files import FileInfo, Part, no_rows
from .values import Place, cast, is_text

_PROBE_ROWS = 1024
_MOST_ROWS = 1 << 18
_LEAST_PART_ROWS = 1 << 18
_LEAST_ROWS = 256
_SHARE_OF_BUDGET = 32
_LEAST_BUFFER_BYTES, _MOST_BUFFER_BYTES = 1 << 14, 1 << 16  # of a column; long pages are read without
_LONG_TEXT_BYTES = 64  # to make a dictionary of such texts costs as much again as to read them
_DAMAGED = (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError)


@dataclass(frozen=True, eq=False)
class ParquetFiles:
    """Wanted columns of Parquet files whose types agree.

    Attributes:
        schema: of the batches; integers or floats of several widths meet at 64 bits.
        group_rows: per file, of each row group.
    """

    files: list[FileInfo]
    schema: pa.Schema
    group_rows: list[list[int]]
    _memory_budget_bytes: int
    _dictionary_columns: list[str]
    _sized_by: list[str]
    _rows_of: dict[str, int] = field(default_factory=dict)  # per file: of a batch

    @classmethod
    def open(
        cls,
        files: list[FileInfo],
        columns: list[str],
        *,
        memory_budget_bytes: int,
        dictionary_columns: Collection[str],
        number_columns: Collection[str],
    ) -> "ParquetFiles":
        """Read every footer.

        Args:
            number_columns: may hold integers in one file and floats in another, as pandas writes integers beside nulls.

        Raises:
            ValueError: naming the file, for damaged files, missing columns and types that differ.
        """
        types: dict[str, pa.DataType] = {}
        first_with: dict[str, str] = {}
        group_rows = []
        for info in files:
            file = _open(info.path)
            check_columns(info.path, file.schema_arrow.names, columns)
            for name in columns:
                type = file.schema_arrow.field(name).type
                if name not in types or pa.types.is_null(types[name]):
                    types[name], first_with[name] = type, info.path
                    continue
                unified = _unified(types[name], type, is_number=name in number_columns)
                if unified is None:
                    raise ValueError(
                        f"{info.path}: column {name!r} has type {type}, and type {types[name]} in {first_with[name]}; "
                        f"write all files with one type"
                    )
                types[name] = unified
            group_rows.append([file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)])
        if not any(map(sum, group_rows)):
            raise no_rows(files)
        coded = [n for n in columns if n in dictionary_columns and _is_string(types[n]) and not _gave_up(files[0].path, n)]
        fields = [pa.field(n, pa.dictionary(pa.int32(), pa.string()) if n in coded else types[n]) for n in columns]
        return cls(files, pa.schema(fields), group_rows, memory_budget_bytes, coded, columns)

    def only(self, columns: list[str]) -> "ParquetFiles":
        """The same files in the same batches, fewer columns."""
        return replace(self, schema=pa.schema([self.schema.field(name) for name in columns]))

    @property
    def parts(self) -> list[Part]:
        """Whole row groups, a quarter of a million rows or more where the file goes on for as long."""
        out = []
        for file, rows in enumerate(self.group_rows):
            first_row = num_rows = first = 0
            for group, more in enumerate(rows):
                num_rows += more
                if num_rows and (num_rows >= _LEAST_PART_ROWS or group == len(rows) - 1):
                    out.append(Part(file, first_row, num_rows, num_rows, range(first, group + 1)))
                    first_row, num_rows, first = first_row + num_rows, 0, group + 1
        return out

    def streams(self, part: Part) -> list[Callable[[], Generator[pa.RecordBatch, None, None]]]:
        """The part in stretches of whole row groups, to be streamed one after the other or at once.

        Raises:
            ValueError: naming the file, where it has changed; the streams raise it with the data row, where it is damaged.
        """
        path, expected = self.files[part.file].path, sum(self.group_rows[part.file])
        metadata = _open(path).metadata
        if metadata.num_rows != expected:
            raise ValueError(f"{path}: {metadata.num_rows} rows, where there were {expected}; the file has changed")
        most_rows = self._batch_rows(path)
        streams: list[Callable[[], Generator[pa.RecordBatch, None, None]]] = []
        groups: list[int] = []
        first_row, num_rows = part.first_row, 0
        for group in part.groups:
            groups.append(group)
            num_rows += metadata.row_group(group).num_rows
            if num_rows >= most_rows or group == part.groups[-1]:
                num_batches = -(-num_rows // most_rows)
                batch_rows = -(-num_rows // num_batches)
                streams.append(partial(self._stream, path, metadata, groups, first_row, num_rows, batch_rows))
                groups, first_row, num_rows = [], first_row + num_rows, 0
        return streams

    def _stream(
        self, path: str, metadata: pq.FileMetaData, groups: list[int], first_row: int, num_rows: int, batch_rows: int
    ) -> Generator[pa.RecordBatch, None, None]:
        columns = self.schema.names
        share = self._memory_budget_bytes // (_SHARE_OF_BUDGET * max(len(columns), 1))
        buffer_bytes = min(max(share, _LEAST_BUFFER_BYTES), _MOST_BUFFER_BYTES)
        row = first_row
        try:
            file = _open(path, dictionary_columns=self._dictionary_columns, buffer_bytes=buffer_bytes, metadata=metadata)
            batches = file.iter_batches(batch_rows, row_groups=groups, columns=columns, use_threads=False)
            for batch in _of_equal_size(batches, batch_rows):
                yield self._conform(batch, path, row)
                row += batch.num_rows
        except _DAMAGED as error:
            raise ValueError(f"{path}: the Parquet file is damaged after data row {row}: {error}") from None
        if row != first_row + num_rows:
            raise ValueError(
                f"{path}: {row} rows read where the footer promises {first_row + num_rows}; the file changed or is damaged"
            )

    def _batch_rows(self, path: str) -> int:
        """Rows whose decoded size is a fair share of the memory budget, by a look at the first ones."""
        if path in self._rows_of:
            return self._rows_of[path]
        try:
            probe = next(_open(path).iter_batches(_PROBE_ROWS, columns=self._sized_by), None)
        except _DAMAGED as error:
            raise ValueError(f"{path}: the Parquet file is damaged after data row 0: {error}") from None
        if probe is None or not probe.num_rows:
            return _PROBE_ROWS
        row_bytes = max(sum(_bytes_per_row(column) for column in probe.columns), 1.0)
        self._rows_of[path] = int(min(max(self._memory_budget_bytes / _SHARE_OF_BUDGET / row_bytes, _LEAST_ROWS), _MOST_ROWS))
        return self._rows_of[path]

    def _conform(self, batch: pa.RecordBatch, path: str, row: int) -> pa.RecordBatch:
        batch = batch.select(self.schema.names)
        if batch.schema.equals(self.schema):
            return batch
        arrays = [
            a if a.type.equals(f.type) else cast(a, f.type, Place(path, f.name, row), f"of type {f.type}")
            for a, f in zip(batch.columns, self.schema)
        ]
        return pa.record_batch(arrays, schema=self.schema)


def _open(
    path: str, *, dictionary_columns: list[str] | None = None, buffer_bytes: int = 0, metadata: pq.FileMetaData | None = None
) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(
            path,
            metadata=metadata,
            read_dictionary=dictionary_columns,
            buffer_size=buffer_bytes,
            pre_buffer=False,
            page_checksum_verification=True,
        )
    except _DAMAGED as error:
        raise ValueError(
            f"{path}: not a Parquet file, or a damaged one ({error}); for text files set data.format: csv or tsv"
        ) from None


def _of_equal_size(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows, `num_rows` at a time, whichever columns are read: every pass gets the same batches.

    Arrow ends a batch where a row group ends, if a column in it is dictionary-encoded.
    """
    waiting: list[pa.RecordBatch] = []
    missing = num_rows
    for batch in batches:
        waiting.append(batch)
        missing -= batch.num_rows
        assert missing >= 0, (batch.num_rows, num_rows)
        if not missing:
            yield _joined(waiting)
            waiting, missing = [], num_rows
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()[0]


def check_columns(path: str, given: list[str], wanted: list[str]) -> None:
    """Every wanted column must be there, once.

    Raises:
        ValueError: naming the missing columns, the nearest names and what there is.
    """
    missing = [n for n in wanted if n not in given]
    if missing:
        asked = ", ".join(f"{n!r}{nearest(n, given)}" for n in missing)
        listed = ", ".join(given[:40]) + (f" and {len(given) - 40} more" if len(given) > 40 else "")
        raise ValueError(f"{path}: no column {asked}; columns: {listed}")
    twice = [n for n in wanted if given.count(n) > 1]
    if twice:
        raise ValueError(f"{path}: the column name {twice[0]!r} stands there {given.count(twice[0])} times; rename one")


def _bytes_per_row(column: pa.Array) -> float:
    """Of a dictionary-encoded column, that of its plain values: the dictionary belongs to more rows than these."""
    if pa.types.is_dictionary(column.type):
        return column.indices.nbytes / len(column) + column.dictionary.nbytes / max(len(column.dictionary), 1)
    return column.nbytes / len(column)


def _gave_up(path: str, column: str) -> bool:
    """Whether the texts of a column differ so much that its writer stored them whole (judged by the first row group)."""
    metadata = _open(path).metadata
    if not metadata.num_row_groups:
        return False
    group = metadata.row_group(0)
    chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column)
    return chunk.total_uncompressed_size > _LONG_TEXT_BYTES * max(group.num_rows, 1)


def _is_string(type: pa.DataType) -> bool:
    type = type.value_type if pa.types.is_dictionary(type) else type
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def _unified(one: pa.DataType, other: pa.DataType, *, is_number: bool) -> pa.DataType | None:
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        one, other = (t.value_type if pa.types.is_dictionary(t) else t for t in (one, other))
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        return pa.int64()
    if all(pa.types.is_floating(type) or (is_number and pa.types.is_integer(type)) for type in (one, other)):
        return pa.float64()
    return pa.string() if is_text(one) and is_text(other) else None
