"""Long separated text, cut into pieces by the pass that learns a vocabulary and kept on disk for the pass that writes.

Most of the time of both passes goes into decoding such a column and cutting it; this does it once. The files take no more room than
the shards that replace them: each is deleted when it has been read.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from ..config import RunConfig
from ..config.data import SequenceConfig, VocabularyIds, raw_columns
from .durable import naming
from .sources import Source, SourceBatch, uses


class Pieces:
    """The cut columns of the training rows, a file per column and batch.

    Args:
        folder: made if there is something to keep.
    """

    def __init__(self, folder: Path, columns: Collection[str]) -> None:
        self.columns = frozenset(columns)
        self._folder = folder
        self._numbers = {column: i for i, column in enumerate(sorted(columns))}
        if columns:
            folder.mkdir(parents=True)

    @classmethod
    def of(cls, config: RunConfig, source: Source, folder: Path) -> "Pieces":
        """For those columns that only one feature reads, by a vocabulary that is learned from every row of the files."""
        if config.data.split is not None or source.is_text:
            return cls(folder, ())
        as_numbers, as_ids, as_they_are = uses(config)
        tables = config.table_configs()
        readers = [column for name, feature in config.features.items() for column in raw_columns(name, feature)]
        aligned = {f.aligned_with for f in config.features.values() if isinstance(f, SequenceConfig) and f.aligned_with}
        columns = []
        for name, feature in config.features.items():
            if not isinstance(feature, SequenceConfig) or not feature.separator or feature.aligned_with or name in aligned:
                continue
            column = feature.column or name
            alone = readers.count(column) == 1 and column in as_ids - as_numbers - as_they_are
            learned = isinstance(tables[config.table_of(name)].ids, VocabularyIds)
            if alone and learned and pa.types.is_string(source.arrow_schema.field(column).type):
                columns.append(column)
        return cls(folder, columns)

    def _path(self, column: str, global_row: int) -> Path:
        return self._folder / f"{self._numbers[column]}-{global_row}.arrow"

    def keep(self, column: str, global_row: int, values: pa.Array, offsets: np.ndarray) -> None:
        """Puts the pieces of a batch aside. Any thread may do this.

        Raises:
            OSError: with the path, if the disk refuses.
        """
        batch = pa.record_batch({column: pa.LargeListArray.from_arrays(pa.array(offsets), values)})
        path = self._path(column, global_row)
        with naming(path), pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write(batch)

    def restored(self, batch: SourceBatch) -> SourceBatch:
        """The batch with the columns that were kept; their files are gone then."""
        found = batch.batch
        for column in self.columns:
            path = self._path(column, batch.global_row)
            kept = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0).column(0)
            path.unlink()
            assert len(kept) == found.num_rows, (path, len(kept), found.num_rows)
            found = found.append_column(column, kept)
        return replace(batch, batch=found)
