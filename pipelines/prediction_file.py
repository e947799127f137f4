"""Predictions to Parquet or CSV, in the order of the rows."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq


def check_output(out: Path) -> None:
    """Raises ValueError for a name that is neither .parquet nor .csv."""
    if out.suffix not in (".parquet", ".csv"):
        raise ValueError(f"output {out}: give a name that ends in .parquet or .csv")


def check_not_input(out: Path, inputs: list[str]) -> None:
    """Raises ValueError where the output would replace one of the files that are read."""
    if any(out.resolve() == Path(path).resolve() for path in inputs):
        raise ValueError(f"output {out}: is one of the inputs and would replace it; give another name")


class _Csv:
    """Text with a header; quotes stand only where a name or a value needs them."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self._file: BinaryIO = path.open("wb")
        header = io.StringIO()
        csv.writer(header, lineterminator="\n").writerow(columns)
        self._file.write(header.getvalue().encode())

    def write_table(self, table: pa.Table) -> None:
        ids = table.column(0)
        can_be_odd = pa.types.is_binary(ids.type) or pa.types.is_large_binary(ids.type)
        if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
            can_be_odd = bool(pc.any(pc.match_substring_regex(ids, '[",\r\n]|^$')).as_py())
        options = pa.csv.WriteOptions(include_header=False, quoting_style="needed" if can_be_odd else "none")
        pa.csv.write_csv(table, self._file, options)

    def close(self) -> None:
        self._file.close()


class PredictionFile:
    """Writes batches of predictions; nothing bears the final name before the last row is on disk.

    Args:
        tasks: names of the predictions.
        id_name: the column that identifies rows; empty writes `row`, their position.
        columns: names for the file's columns, that of the row id first; none: `id_name` (or `row`) and `tasks`.
        enabled: false writes nothing (processes other than the first).

    Raises:
        ValueError: for a wrong number of `columns`, and for a name given twice.
    """

    def __init__(self, out: Path, tasks: list[str], id_name: str, *, columns: Sequence[str] = (), enabled: bool = True) -> None:
        usual = [id_name or "row", *tasks]
        self.out, self.columns, self.enabled = out, list(columns) or usual, enabled
        if len(self.columns) != len(usual) or len(set(self.columns)) < len(usual) or not all(self.columns):
            given, wanted = ",".join(self.columns), ",".join(usual)
            raise ValueError(f"columns: given {given!r}; must be {len(usual)} different names, to stand for {wanted}")
        self.partial = out.with_name(out.name + ".partial")
        self._sink: pq.ParquetWriter | _Csv | None = None

    def __enter__(self) -> "PredictionFile":
        if self.enabled:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, ids: pa.Array | pa.ChunkedArray | None, scores_NT: np.ndarray, *, first_row: int) -> None:
        """N rows.

        Args:
            ids: of the rows; None where they go by position.
            first_row: 0-based position of the first of them.
        """
        if ids is None:
            ids = pa.array(np.arange(first_row, first_row + len(scores_NT)))
        if pa.types.is_dictionary(ids.type):
            ids = ids.cast(ids.type.value_type)
        table = pa.table([ids, *(pa.array(scores) for scores in scores_NT.T)], names=self.columns)
        if self._sink is None:
            is_parquet = self.out.suffix == ".parquet"
            self._sink = pq.ParquetWriter(str(self.partial), table.schema) if is_parquet else _Csv(self.partial, self.columns)
        self._sink.write_table(table)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._sink is not None:
            self._sink.close()
            if kind is None:
                os.replace(self.partial, self.out)
            else:
                self.partial.unlink()
