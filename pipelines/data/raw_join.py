"""Raw rows with the raw columns of their stores beside them: what a bundle is given, which has no stores."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ..config import QueryConfig, RunConfig
from .sources import open_source
from .store_files import Keys, StoreSource
from .values import Place, one_array


class RawJoin:
    """Appends columns `<store>.<column>` to rows of the data. Whole stores are held in memory.

    Args:
        columns: that are wanted; stores without any of them are not read.

    Raises:
        ValueError: as `StoreSource.open` and `Keys.of`.
    """

    def __init__(self, config: RunConfig, columns: list[str]) -> None:
        self._stores: list[tuple[Keys, pa.Table]] = []
        for name in config.data.stores:
            if wanted := [column for column in columns if column.startswith(f"{name}.")]:
                source = StoreSource.open(config, name)
                table = pa.Table.from_batches([part.batch for part in source.batches()]).select(wanted)
                self._stores.append((Keys.of(source), table.unify_dictionaries().combine_chunks()))
        self.columns = [column for _, table in self._stores for column in table.column_names]
        self.ids = [keys.column for keys, _ in self._stores]

    def __call__(self, batch: pa.RecordBatch, *, where: str, first_row: int) -> pa.Table:
        """The rows whose ids all stores know."""
        joined, known = pa.Table.from_batches([batch]), np.ones(batch.num_rows, bool)
        for keys, table in self._stores:
            number = keys.rows(one_array(batch.column(keys.column)), Place(where, keys.column, first_row))
            known &= number > 0
            found = table.take(pa.array((number - 1).clip(min=0)))  # any row for unknown ids: they are dropped
            for name in found.column_names:
                joined = joined.append_column(name, found.column(name))
        return joined if known.all() else joined.filter(pa.array(known))


def joined_rows(config: RunConfig, paths: list[str] | QueryConfig, columns: list[str]) -> Iterator[pa.Table]:
    """Rows of the data with these columns, some of which may be of stores; rows with ids that a store lacks are left out.

    Raises:
        ValueError: as `open_source`, and as `RawJoin`.
    """
    join = RawJoin(config, columns)
    own = [column for column in columns if column not in join.columns]
    for part in open_source(config, paths, columns=[*own, *join.ids]).batches():
        yield join(part.batch, where=part.path, first_row=part.first_row).select(columns)
