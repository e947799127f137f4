"""Long separated text, cut into pieces by the pass that learns its ids and kept on disk for the pass that writes.

Most of the time of both passes goes into decoding such a column and cutting it; this does it once. The files take no more room than
the shards that replace them: each is deleted when it has been read. They do not pass through the page cache, where they took a
quarter of all the time.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from ..config import RunConfig
from ..config.data import HashIds, SequenceConfig, VocabularyIds, raw_columns
from . import direct_files
from .c_arguments import int32_array
from .packed import num_words, packed, unpacked
from .sources import Source, SourceBatch, uses
from .values import one_array

_ALIGNMENT_BYTES = 8
_TEXT = "text"


class _Kept(NamedTuple):
    """What lies in a file: [num_values] numbers, then [num_offsets] int64, then, if `is_text`, the texts that are numbered.

    `missing`: a bit per row, 1 where there was no text; None where there always was.
    """

    num_values: int
    bits: int
    num_offsets: int
    is_text: bool
    missing: np.ndarray | None


class Pieces:
    """The cut columns of the training rows, a file per column and batch.

    Args:
        folder: made if there is something to keep.
    """

    def __init__(self, folder: Path, columns: Collection[str]) -> None:
        self.columns = frozenset(columns)
        self._folder = folder
        self._numbers = {column: i for i, column in enumerate(sorted(columns))}
        self._kept: dict[tuple[str, int], _Kept] = {}
        self.first_part = 0
        """Nothing was kept of the parts before it: an interrupted run learned from them."""
        if columns:
            folder.mkdir(parents=True)

    @classmethod
    def of(cls, config: RunConfig, source: Source, folder: Path) -> "Pieces":
        """For those columns that only one feature reads, by ids that are learned from every row of the files."""
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
            ids = tables[config.table_of(name)].ids
            learned = isinstance(ids, VocabularyIds) or (isinstance(ids, HashIds) and bool(ids.margin))
            if alone and learned and pa.types.is_string(source.arrow_schema.field(column).type):
                columns.append(column)
        return cls(folder, columns)

    def _path(self, column: str, global_row: int) -> Path:
        return self._folder / f"{self._numbers[column]}-{global_row}.arrow"

    def keep(self, column: str, global_row: int, raw: pa.Array, values: pa.Array, offsets: np.ndarray) -> None:
        """Puts the pieces of a batch aside. Any thread may do this.

        Args:
            raw: [N] what was cut.
            values: [n] as `values.explode` gives them.
            offsets: [N + 1] int64.

        Raises:
            OSError: with the path, if the disk refuses.
        """
        rest = [offsets.tobytes()]
        if not pa.types.is_int32(values.type):
            values = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, pa.schema({_TEXT: values.dictionary.type})) as writer:
                writer.write(pa.record_batch({_TEXT: values.dictionary}))
            rest.append(sink.getvalue().to_pybytes())
            values = values.indices
        words, bits = packed(values.to_numpy())
        missing = np.packbits(raw.is_null().to_numpy(zero_copy_only=False)) if raw.null_count else None
        self._kept[column, global_row] = _Kept(len(values), bits, len(offsets), len(rest) > 1, missing)
        padding = bytes(-words.nbytes % _ALIGNMENT_BYTES)
        direct_files.write(self._path(column, global_row), words.view(np.uint8), padding + b"".join(rest))

    def restored(self, batch: SourceBatch) -> SourceBatch:
        """The batch with the columns that were kept; their files are gone then. Any thread may do this."""
        found, missing = batch.batch, dict(batch.missing)
        for column in self.columns:
            if (kept := self._kept.pop((column, batch.global_row), None)) is None:
                continue
            assert kept.num_offsets == found.num_rows + 1, (column, kept, found.num_rows)
            path = self._path(column, batch.global_row)
            values, offsets = _read(path, kept)
            path.unlink()
            if kept.missing is not None:
                missing[column] = np.unpackbits(kept.missing, count=found.num_rows).view(bool)
            found = found.append_column(column, pa.LargeListArray.from_arrays(pa.array(offsets), values))
        return replace(batch, batch=found, missing=missing)


def _read(path: Path, kept: _Kept) -> tuple[pa.Array, np.ndarray]:
    num_bytes, first = path.stat().st_size, 4 * num_words(kept.num_values, kept.bits)
    data = int32_array(-(-num_bytes // 4)).view(np.uint8)[:num_bytes]
    direct_files.read(path, data, num_direct=first)
    values = pa.array(unpacked(data[:first].view(np.int32), kept.num_values, kept.bits))
    first += -first % _ALIGNMENT_BYTES
    offsets = data[first : first + kept.num_offsets * 8].view(np.int64)
    if kept.is_text:
        text = pa.ipc.open_stream(pa.py_buffer(data[first + offsets.nbytes :].tobytes())).read_all()[_TEXT]
        values = pa.DictionaryArray.from_arrays(values, one_array(text), safe=False)
    return values, offsets
