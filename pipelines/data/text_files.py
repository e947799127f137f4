"""CSV and TSV files as streams of record batches."""

import csv
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.csv as pacsv

from .files import FileInfo, Part
from .parquet_files import check_columns

_FIRST_LINE_BYTES = 1 << 20
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars", " ": "spaces"}


@dataclass(frozen=True, eq=False)
class TextFiles:
    """Wanted columns of delimited text: UTF-8, with one header line or with given names, compressed or not (by suffix).

    CSV fields may be quoted with `"`; TSV fields are taken as they stand, as logs write them.

    Attributes:
        column_names: per file; an empty list where its first line is a header.
    """

    files: list[FileInfo]
    schema: pa.Schema
    separator: str
    column_names: list[list[str]]
    null_values: list[str]
    _block_bytes: int

    @classmethod
    def open(
        cls,
        files: list[FileInfo],
        columns: list[str],
        *,
        separator: str,
        column_names: list[str],
        extra_fields: Literal["error", "ignore"],
        null_values: list[str],
        types: Mapping[str, pa.DataType],
        memory_budget_bytes: int,
    ) -> "TextFiles":
        """Read every first line.

        Args:
            column_names: for files without a header line; empty: the first line names the columns.
            extra_fields: whether lines may go on behind the last of `column_names`.

        Raises:
            ValueError: naming the file, for a wrong separator, missing columns, and files that are not text.
        """
        names = []
        for info in files:
            fields = _first_fields(info.path, separator)
            if column_names:
                num_extra = max(len(fields) - len(column_names), 0) if extra_fields == "ignore" else 0
                _check_named(info.path, fields[: len(fields) - num_extra], column_names, separator)
                check_columns(info.path, column_names, columns)
                names.append([*column_names, *(f"extra field {i + 1}" for i in range(num_extra))])
            else:
                if len(fields) == 1 and fields != columns:
                    hint = _other_separator(fields[0], separator)
                    raise ValueError(
                        f"{info.path}: one column found when cut at {_SEPARATORS[separator]}: {fields[0][:80]!r}{hint}"
                    )
                check_columns(info.path, fields, columns)
                names.append([])
        schema = pa.schema([pa.field(n, types.get(n, pa.string())) for n in columns])
        block_bytes = min(max(memory_budget_bytes // 16, 1 << 16), 1 << 24)
        return cls(files, schema, separator, names, null_values, block_bytes)

    def only(self, columns: list[str]) -> "TextFiles":
        """The same files, fewer columns."""
        return replace(self, schema=pa.schema([self.schema.field(name) for name in columns]))

    @property
    def parts(self) -> list[Part]:
        """The files, which can only be read from their start to their end."""
        return [Part(i, 0, None, file.size_bytes) for i, file in enumerate(self.files)]

    def streams(self, part: Part) -> list[Callable[[], Generator[pa.RecordBatch, None, None]]]:
        return [lambda: self.batches(part.file)]

    def batches(self, index: int) -> Generator[pa.RecordBatch, None, None]:
        """Stream one file.

        Raises:
            ValueError: naming file and data row, for lines with too many or few fields and values that do not fit their type.
        """
        path, names = self.files[index].path, self.column_names[index]
        quoted = self.separator == ","
        bad: list[pacsv.InvalidRow] = []

        def note(row: pacsv.InvalidRow) -> str:
            bad.append(row)
            return "error"

        try:
            reader = pacsv.open_csv(
                path,
                pacsv.ReadOptions(use_threads=False, column_names=names or None, block_size=self._block_bytes),
                pacsv.ParseOptions(
                    delimiter=self.separator,
                    quote_char='"' if quoted else False,
                    double_quote=quoted,
                    newlines_in_values=quoted,
                    invalid_row_handler=note,
                ),
                pacsv.ConvertOptions(
                    column_types={f.name: f.type for f in self.schema},
                    include_columns=self.schema.names,
                    null_values=self.null_values,
                    strings_can_be_null=True,
                ),
            )
            yield from (batch for batch in reader if batch.num_rows)
        except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
            raise self._explained(path, names, error, bad) from None

    def _explained(self, path: str, names: list[str], error: Exception, bad: list[pacsv.InvalidRow]) -> ValueError:
        header = 0 if names else 1
        if bad:
            row = bad[0]
            return ValueError(
                f"{path}: data row {row.number - header}: {row.actual_columns} fields where {row.expected_columns} are expected: "
                f"{row.text[:80]!r}"
            )
        text = str(error)
        match = re.search(r"In CSV column #(\d+): Row #(\d+): CSV conversion error to (\S+): (.*)", text, re.DOTALL)
        if match:
            column, row_number, type, what = match.groups()
            names = names or _first_fields(path, self.separator)
            wanted = "a number" if type in ("double", "int64") else "UTF-8 text"
            what = what.replace("invalid value ", "").strip()
            return ValueError(
                f"{path}: column {names[int(column)]!r}, data row {int(row_number) - header}: {what} is not {wanted}; "
                f"if it means missing, add it to data.null_values"
            )
        if "straddling object" in text:
            return ValueError(
                f"{path}: a line is longer than {self._block_bytes} bytes, or a quote is never closed; raise memory_budget_mib"
            )
        return ValueError(f"{path}: cannot be read as text: {text}")


def _first_fields(path: str, separator: str) -> list[str]:
    try:
        with pa.input_stream(path, compression="detect") as stream:
            head = stream.read(_FIRST_LINE_BYTES)
    except OSError as error:
        raise ValueError(f"{path}: cannot be decompressed ({error})") from None
    if head.startswith(b"PAR1"):
        raise ValueError(f"{path}: this is a Parquet file; set data.format: parquet")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in head[:4096]:
        raise ValueError(f"{path}: not UTF-8 text (UTF-16, or a binary file); convert it to UTF-8")
    lines = [line for line in re.split(rb"\r\n|\n|\r", head.removeprefix(b"\xef\xbb\xbf")) if line]
    if not lines:
        raise ValueError(f"{path}: the file holds no line")
    try:
        text = lines[0].decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: the first line is not UTF-8 text ({error.reason} at byte {error.start}); convert it to UTF-8"
        ) from None
    if separator == ",":
        return next(csv.reader([text]))
    return text.split(separator)


def _other_separator(line: str, separator: str) -> str:
    counts = {s: line.count(s) for s in _SEPARATORS if s != separator}
    best = max(counts, key=lambda s: counts[s])
    if not counts[best]:
        return "; does it need data.column_names?"
    formats = {",": "set data.format: csv", "\t": "set data.format: tsv"}
    return f"; it holds {counts[best]} {_SEPARATORS[best]}: {formats.get(best, 'convert the file to CSV, TSV or Parquet')}"


def _check_named(path: str, fields: list[str], names: list[str], separator: str) -> None:
    if fields == names:
        raise ValueError(f"{path}: the first line repeats data.column_names: it is a header; leave column_names out")
    if len(fields) != len(names):
        hint = _other_separator(fields[0], separator) if len(fields) == 1 else ""
        more = "; set data.extra_fields: ignore to read the first ones" if len(fields) > len(names) else ""
        given = f"data row 1 has {len(fields)} fields when cut at {_SEPARATORS[separator]}"
        raise ValueError(f"{path}: {given}, and data.column_names has {len(names)} names{hint}{more}")
