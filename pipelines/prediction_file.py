"""Predictions to Parquet or CSV, in the order of the rows."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
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


class PredictionFile:
    """Writes batches of predictions; nothing bears the final name before the last row is on disk.

    Args:
        tasks: names of the prediction columns.
        id_name: the column that identifies rows; empty writes `row`, their position.
        enabled: false writes nothing (processes other than the first).
    """

    def __init__(self, out: Path, tasks: list[str], id_name: str, *, enabled: bool = True) -> None:
        self.out, self.tasks, self.id_name, self.enabled = out, tasks, id_name, enabled
        self.partial = out.with_name(out.name + ".partial")
        self._sink: pq.ParquetWriter | pa.csv.CSVWriter | None = None

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
        columns = {self.id_name or "row": ids} | {t: pa.array(scores_NT[:, i]) for i, t in enumerate(self.tasks)}
        table = pa.table(columns)
        if self._sink is None:
            make = pq.ParquetWriter if self.out.suffix == ".parquet" else pa.csv.CSVWriter
            self._sink = make(str(self.partial), table.schema)
        self._sink.write_table(table)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._sink is not None:
            self._sink.close()
            if kind is None:
                os.replace(self.partial, self.out)
            else:
                self.partial.unlink()
