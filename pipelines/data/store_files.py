"""Reading the files of feature stores, encoding their rows, and finding the row of an id."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..config import RunConfig
from ..config.data import FloatConfig, StoreConfig, raw_columns, store_of
from .ids import Vocabulary
from .rows import Rows
from .sources import Source, SourceBatch
from .stores import Join, Store, reference, stored_schema
from .transforms import Transforms
from .values import Place, kind_of, numbers, one_array, shown, strings

KEYS = "keys.arrow"


def store_features(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """Store -> its features, in the order of the config."""
    return {store: tuple(n for n, f in config.features.items() if store_of(f) == store) for store in config.data.stores}


@dataclass(frozen=True, eq=False)
class StoreSource:
    """The files of a store. Columns are called `<store>.<column>`, as transforms call them."""

    name: str
    config: StoreConfig
    source: Source

    @classmethod
    def open(cls, config: RunConfig, name: str) -> "StoreSource":
        """Raises ValueError, naming store and file, for files that are missing, damaged, or lack a column."""
        store = config.data.stores[name]
        features = {n: f for n, f in config.features.items() if store_of(f) == name}
        columns = {n: raw_columns(n, f)[0].removeprefix(f"{name}.") for n, f in features.items()}
        numeric = [columns[n] for n, f in features.items() if isinstance(f, FloatConfig)]
        categorical = [columns[n] for n, f in features.items() if not isinstance(f, FloatConfig)]
        try:
            source = Source.open(
                store.files,
                format="auto",
                column_names=[],
                null_values=config.data.null_values,
                columns=[store.key, *numeric, *categorical],
                memory_budget_bytes=config.data.memory_budget_mib * 2**20,
                text_types=dict.fromkeys(set(numeric) - {store.key, *categorical}, pa.float64()),
                dictionary_columns=set(categorical) - {store.key, *numeric},
            )
        except ValueError as error:
            raise ValueError(f"data.stores.{name}: {error}") from None
        return cls(name, store, source)

    @property
    def arrow_schema(self) -> pa.Schema:
        return pa.schema([field.with_name(f"{self.name}.{field.name}") for field in self.source.arrow_schema])

    @property
    def key(self) -> str:
        return f"{self.name}.{self.config.key}"

    def batches(self) -> Iterator[SourceBatch]:
        for part in self.source.batches():
            named = part.batch.rename_columns([f"{self.name}.{column}" for column in part.batch.schema.names])
            yield replace(part, batch=named)


def open_stores(config: RunConfig) -> list[StoreSource]:
    return [StoreSource.open(config, name) for name in config.data.stores]


def with_stores(schema: pa.Schema, sources: Sequence[StoreSource]) -> pa.Schema:
    """The columns of the data, and of its stores."""
    return pa.schema([*schema, *(field for source in sources for field in source.arrow_schema)])


class Keys:
    """The ids of a store, in the order of its rows."""

    def __init__(self, store: str, config: StoreConfig, values: pa.Array) -> None:
        self.store = store
        self.column = config.column or config.key
        self.values = values
        self._refuses = config.unknown == "error"
        self._rows = Vocabulary(values=values, null="oov")

    @classmethod
    def of(cls, source: StoreSource) -> "Keys":
        """Read from the store's files.

        Raises:
            ValueError: naming file and row, for ids that are missing or stand in two rows.
        """
        parts, places = [], []
        kind = kind_of(source.arrow_schema.field(source.key).type)
        for batch in source.batches():
            place = Place(batch.path, source.config.key, batch.first_row)
            values = one_array(batch.batch.column(source.key))
            if kind == "number":
                number, missing = numbers(values, place)
                part = pa.array(number, mask=missing)
            else:
                part = strings(values, place)
            if part.null_count:
                raise place.error(pc.index(part.is_null(), True).as_py(), f"the id of store {source.name!r} is missing")
            parts.append(part)
            places.append(place)
        if len({part.type for part in parts}) > 1:  # some files hold integers, others fractions
            parts = [part.cast(pa.float64()) for part in parts]
        values = pa.concat_arrays(parts)
        if pc.count_distinct(values).as_py() < len(values):
            first = np.full(len(values), False)
            first[np.unique(values.dictionary_encode().indices.to_numpy(), return_index=True)[1]] = True
            again, ends = int(np.flatnonzero(~first)[0]), np.cumsum([len(part) for part in parts])
            at = int(ends.searchsorted(again, side="right"))
            text = f"the id {shown(values[again])} stands in store {source.name!r} twice; keep one row of each id"
            raise places[at].error(again - (int(ends[at]) - len(parts[at])), text)
        return cls(source.name, source.config, values)

    @classmethod
    def load(cls, store: str, config: StoreConfig, path: Path) -> "Keys":
        with pa.OSFile(str(path)) as file:
            return cls(store, config, one_array(pa.ipc.open_file(file).read_all().column("key")))

    def save(self, path: Path) -> None:
        batch = pa.record_batch({"key": self.values})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write(batch)

    def rows(self, ids: pa.Array, place: Place) -> np.ndarray:
        """[N] int32 row numbers; 0 for ids that are missing or not in the store.

        Raises:
            ValueError: for the first of those, naming file and row, if the config says `unknown: error`.
        """
        found = self._rows.encode(ids, place)
        if self._refuses and not found.all():
            index = int((found == 0).argmax())
            text = f"{shown(ids[index])} is not in store {self.store!r}"
            raise place.error(index, f"{text}; add it there, or set data.stores.{self.store}.unknown: oov")
        return found


def encode_store(source: StoreSource, transforms: Transforms, features: Sequence[str], *, num_rows: int) -> Store:
    """The store's rows, behind a row 0 of means, in memory.

    Args:
        features: that are read from the store.
        num_rows: of the store, row 0 not counted.

    Raises:
        ValueError: for values that the transforms cannot take (file, column, row).
    """
    part = transforms.part(features)
    categorical = [f.name for f in part.schema.categorical]
    dense = np.zeros((1 + num_rows, len(part.schema.dense)), np.float32)
    ids = np.zeros((1 + num_rows, len(categorical)), np.int32)
    row = 1
    for batch in source.batches():
        try:
            encoded = part.encode(batch.batch, where=batch.path, first_row=batch.first_row)
        except ValueError as error:
            raise ValueError(f"data.stores.{source.name}: {error}") from None
        stop = row + encoded.num_rows
        dense[row:stop] = encoded.dense
        for column, name in enumerate(categorical):
            ids[row:stop, column] = encoded.ids[name][0]
        row = stop
    if num_rows:
        dense[0] = dense[1:].mean(axis=0, dtype=np.float64)
    return Store(source.name, tuple(f.name for f in part.schema.features), torch.from_numpy(dense), torch.from_numpy(ids))


class LogEncoder:
    """Raw rows of the data to rows of `stored_schema`: its own features, and the row numbers in stores.

    Attributes:
        schema: of the rows made.
        columns: raw columns that are read.
    """

    def __init__(self, transforms: Transforms, keys: Sequence[Keys], features: Mapping[str, Sequence[str]]) -> None:
        elsewhere = {name for names in features.values() for name in names}
        own = [name for name in transforms.features if name not in elsewhere]
        self._own = transforms.part(own) if keys else transforms
        self._keys = tuple(keys)
        self.schema = stored_schema(transforms.schema, features)
        self.columns = list(dict.fromkeys([*self._own.raw_columns, *(k.column for k in keys)]))

    def __call__(
        self,
        batch: pa.Table | pa.RecordBatch,
        *,
        where: str = "",
        first_row: int = 0,
        rows: np.ndarray | None = None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Rows:
        """Arguments as in `Transforms.encode` and `Rows.from_encoded`.

        Raises:
            ValueError: for values that the transforms cannot take, and unknown ids where they are refused (file, column, row).
        """
        encoded = self._own.encode(batch, where=where, first_row=first_row, rows=rows)
        for keys in self._keys:
            if keys.column not in batch.schema.names:
                raise ValueError(f"{where or 'input'}: missing column {keys.column!r}, the ids of store {keys.store!r}")
            found = keys.rows(one_array(batch.column(keys.column)), Place(where, keys.column, first_row, rows))
            encoded.ids[reference(keys.store)] = (found, None)
        return Rows.from_encoded(self.schema, encoded, labels=labels, weights=weights)


def read_stores(config: RunConfig, transforms: Transforms) -> tuple[LogEncoder, Join]:
    """For rows that are in no cache: what encodes them and what joins them, from the stores' files as they are now.

    Raises:
        ValueError: for files that are missing or damaged, ids that stand in two rows, values that the transforms cannot take.
    """
    features = store_features(config)
    stores, all_keys = [], []
    for source in open_stores(config):
        all_keys.append(Keys.of(source))
        stores.append(encode_store(source, transforms, features[source.name], num_rows=len(all_keys[-1].values)))
    return LogEncoder(transforms, all_keys, features), Join(transforms.schema, stores)
