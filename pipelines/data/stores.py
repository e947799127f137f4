"""Feature stores: what is known of each id, once. Shards hold row numbers of stores; batches are joined by them, files never.

    <cache>/stores/<name>/dense.npy   [1 + S, D] float32     row-major: what one id needs lies together
                          ids.npy     [1 + S, K] int32
                          keys.arrow  the S ids; key i is row i + 1

Row 0 stands for ids that the store lacks: the mean of each number, and row 0 of each table.

A cache with stores holds rows of `stored_schema`: the data's own features, and per store one column of row numbers, behind the
other ids. `Join` makes rows of the model's schema of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchrec_models.schema import Feature, Schema, Table

from .rows import Rows, single_valued

OWN = -1  # where a value is, if it is in no store


def reference(store: str) -> str:
    """The name of a column of row numbers, among the features of `stored_schema`."""
    return f"row in {store}"


def stored_schema(schema: Schema, features: Mapping[str, Sequence[str]]) -> Schema:
    """What shards hold of rows of `schema`.

    Args:
        features: store -> the features that are read from it.
    """
    if not features:
        return schema
    elsewhere = {name for names in features.values() for name in names}
    own = tuple(f for f in schema.features if f.name not in elsewhere)
    references = tuple(Feature(name=name, kind="categorical", table=name) for name in map(reference, features))
    tables = {f.table: schema.table(f.table) for f in own if f.table}
    tables |= {f.table: Table(name=f.table, num_rows=1, dim=1) for f in references}
    return Schema(features=own + references, tables=tuple(tables.values()), tasks=schema.tasks)


@dataclass(frozen=True, eq=False)
class Store:
    """The rows of a store, in memory or mapped into it.

    Attributes:
        features: names of the model's schema, in its order.
        dense: [1 + S, D] float32, of the numeric ones.
        ids: [1 + S, K] int32, of the categorical ones.
    """

    name: str
    features: tuple[str, ...]
    dense: Tensor
    ids: Tensor


class Run(NamedTuple):
    """Neighbouring numbers of a joined row that lie side by side in one place.

    Attributes:
        place: index of the store, or OWN.
        start: the first column there.
        to: the first column in the joined row.
    """

    place: int
    start: int
    to: int
    num_columns: int


class Join:
    """Rows of a model's schema out of rows of `stored_schema`.

    Attributes:
        dense: where the numbers of a joined row are, from left to right.
        singles: (place, column) of each single id of a joined row.
        references: per store, the column of `Rows.ids` that holds its row numbers.
    """

    def __init__(self, schema: Schema, stores: Sequence[Store]) -> None:
        self.stores = tuple(stores)
        own = stored_schema(schema, {store.name: store.features for store in stores})
        place_of = {name: place for place, store in enumerate(stores) for name in store.features}
        num_seen: dict[int, int] = {}

        def located(features: Sequence[Feature]) -> list[tuple[int, int]]:
            num_seen.clear()
            found = []
            for feature in features:
                place = place_of.get(feature.name, OWN)
                found.append((place, num_seen.get(place, 0)))
                num_seen[place] = found[-1][1] + 1
            return found

        self.dense: list[Run] = []
        for to, (place, start) in enumerate(located(schema.dense)):
            if self.dense and self.dense[-1].place == place:
                self.dense[-1] = self.dense[-1]._replace(num_columns=self.dense[-1].num_columns + 1)
            else:
                self.dense.append(Run(place, start, to, 1))
        self.singles = located(single_valued(schema))
        columns = [f.name for f in single_valued(own)]
        self.references = tuple(columns.index(reference(store.name)) for store in stores)

    def __call__(self, rows: Rows) -> Rows:
        """[N] rows; those given are not changed, and are returned themselves where there are no stores."""
        if not self.stores:
            return rows
        number = [rows.ids[:, column].long() for column in self.references]
        dense = [rows.dense, *(store.dense.index_select(0, at) for store, at in zip(self.stores, number))]
        ids = [rows.ids, *(store.ids.index_select(0, at) for store, at in zip(self.stores, number))]
        runs = [dense[run.place + 1][:, run.start : run.start + run.num_columns] for run in self.dense]
        firsts = [sum(part.shape[1] for part in ids[:place]) for place in range(len(ids))]
        order = torch.tensor([firsts[place + 1] + column for place, column in self.singles], dtype=torch.int64)
        return Rows(
            dense=torch.cat(runs, dim=1) if runs else rows.dense,
            ids=torch.cat(ids, dim=1).index_select(1, order),
            lists=rows.lists,
            labels=rows.labels,
            weights=rows.weights,
        )
