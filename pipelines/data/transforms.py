"""Fitted transforms: raw Arrow columns in, model inputs out. The same object at training, at prediction and in a bundle.

On disk: `transforms.json` (the schema and each feature's and table's fitted state) and `vocabularies/<table>.arrow`
(one column, value i is row i + 1). Runs in exported bundles too: standard library, numpy, pyarrow and the schema only.
"""

import difflib
import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from torchrec_models.schema import Schema

from .covisitation_state import CovisitationState, load_states, save_states, with_states
from .dense import encode_columns
from .ids import Buckets, Hash, Identity, IdTransform, Vocabulary
from .numeric import Step, apply_steps, apply_steps_to_value, step_from_dict, step_to_dict, to_float
from .plain_values import Undecided, plain_list, plain_pieces
from .values import Place, explode, is_cut, is_list, is_text, kind_of, of_feature, one_array

FORMAT_VERSION = 1
_TABLES: dict[str, type[IdTransform]] = {"vocabulary": Vocabulary, "hash": Hash, "bucketize": Buckets, "identity": Identity}


@dataclass(frozen=True, kw_only=True)
class NumericTransform:
    """One float per row, through `steps` in order."""

    column: str
    steps: tuple[Step, ...] = ()

    def encode(self, column: pa.Array, place: Place) -> np.ndarray:
        """[N] float32, finite."""
        return apply_steps(self.steps, to_float(column, place), place)

    def encode_value(self, value: Any) -> float:
        """`encode` of one plain value, not yet rounded to 32 bits; see plain_values.py."""
        return apply_steps_to_value(self.steps, value)


@dataclass(frozen=True, kw_only=True)
class IdsTransform:
    """Ids of one feature: exactly one per row (`many` false), or up to `max_len` per row.

    Args:
        separator: cuts text into values; empty where the column holds lists.
        keep: the end that survives `max_len`.
        aligned_with: another sequence, which must have as many values in every row, before either is cut; empty: none.
    """

    column: str
    table: str
    many: bool = False
    max_len: int = 1
    separator: str = ""
    keep: Literal["first", "last"] = "first"
    aligned_with: str = ""

    def flat(self, column: pa.Array, place: Place) -> tuple[pa.Array, np.ndarray | None]:
        """Single values and, for many, their offsets [N + 1] int64.

        Raises:
            ValueError: for a list where one value is needed, and the reverse.
        """
        column_type = column.type
        try:
            kind_of(column_type.value_type if is_list(column_type) else column_type)
        except ValueError as error:
            raise place.column_error(str(error)) from None
        if not self.many:
            if is_list(column_type):
                raise place.column_error(
                    f"the column holds lists ({column_type}); the feature takes one value: set max_len above 1"
                )
            return column, None
        if pa.types.is_null(column_type):
            return column.slice(0, 0), np.zeros(len(column) + 1, np.int64)
        if self.separator and is_cut(column_type) and not column.offset:
            return column.values, column.offsets.to_numpy().copy()  # torch wants to be able to write
        if self.separator and not is_text(column_type):
            raise place.column_error(f"separator {self.separator!r} needs a text column, and this one has type {column_type}")
        if not self.separator and not is_list(column_type):
            hint = "set separator" if is_text(column_type) else "use kind: categorical with max_len: 1"
            raise place.column_error(f"the feature takes lists, and the column has type {column_type}; {hint}")
        return explode(column, separator=self.separator, max_len=self.max_len, keep=self.keep)

    def num_values(self, column: pa.Array, place: Place) -> np.ndarray:
        """[N] values in each row, of which `flat` keeps up to `max_len`."""
        _, offsets = replace(self, max_len=sys.maxsize).flat(column, place)
        assert offsets is not None
        return np.diff(offsets)

    def list_finder(self, table: IdTransform) -> Callable[[Any], list[int]]:
        """A function from one plain value (a list, separated text, None) to what `flat` and `table.encode` give for it."""
        known, as_text, separator, max_len = table.known, table.reads_text, self.separator, self.max_len
        row_if_known = known.get
        kept = slice(max_len) if self.keep == "first" else slice(-max_len, None)

        def rows_of(value: Any) -> list[int]:
            if as_text and type(value) is list and len(value) <= max_len:
                try:
                    found = list(map(row_if_known, value))
                except TypeError:  # a list in the list
                    raise Undecided from None
                if None not in found:
                    return found  # type: ignore[return-value]
            return [known[one] for one in plain_list(value, as_text=as_text)[kept]]

        def rows_of_pieces(value: Any) -> list[int]:
            return [known[one] for one in plain_pieces(value, separator=separator, as_text=as_text)[kept]]

        return rows_of_pieces if separator else rows_of


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """N rows as model inputs.

    Attributes:
        dense: [N, D] float32, columns as in `schema.dense`.
        ids: per categorical and sequence feature (values [n] int32, offsets [N + 1] int64); offsets are None for a
            single-valued categorical, which has exactly one id per row.
    """

    dense: np.ndarray
    ids: dict[str, tuple[np.ndarray, np.ndarray | None]]
    num_rows: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Transforms:
    """Every feature's and every table's fitted transform.

    Args:
        schema_dict: `Schema.to_dict()`.
        features: by name, in schema order.
        tables: id transforms by table name.
        states: of covisitation features, where the rows to encode come after the log: their columns are computed. Without a
            state the rows carry the column, as they do while a cache is prepared.
    """

    schema_dict: dict[str, Any]
    features: dict[str, NumericTransform | IdsTransform]
    tables: dict[str, IdTransform] = field(default_factory=dict)
    states: Mapping[str, CovisitationState] = field(default_factory=dict)

    @cached_property
    def schema(self) -> Schema:
        return Schema.from_dict(self.schema_dict)

    @cached_property
    def columns(self) -> dict[str, str]:
        """Feature name to the column it reads."""
        return {name: feature.column for name, feature in self.features.items()}

    @cached_property
    def raw_columns(self) -> list[str]:
        """The columns that rows must have, each once."""
        needed = (self.states[name].columns if name in self.states else [column] for name, column in self.columns.items())
        return list(dict.fromkeys(column for columns in needed for column in columns))

    def part(self, features: Collection[str]) -> "Transforms":
        """Transforms of some features alone."""
        schema = self.schema
        kept = tuple(f for f in schema.features if f.name in features)
        tables = {f.table for f in kept if f.table}
        part = Schema(features=kept, tables=tuple(t for t in schema.tables if t.name in tables))
        return Transforms(
            schema_dict=part.to_dict(),
            features={f.name: self.features[f.name] for f in kept},
            tables={name: table for name, table in self.tables.items() if name in tables},
            states={f.name: self.states[f.name] for f in kept if f.name in self.states},
        )

    def num_rows(self, table: str) -> int:
        return self.tables[table].num_rows

    def encode(
        self, batch: pa.Table | pa.RecordBatch, *, where: str = "", first_row: int = 0, rows: np.ndarray | None = None
    ) -> Encoded:
        """Raw rows to model inputs. Columns that no feature reads are ignored.

        Args:
            where: the file, for errors.
            first_row: 0-based number in the file of the batch's first row, for errors.
            rows: [N] 0-based numbers in the file, for errors, when the rows do not follow one another.

        Raises:
            ValueError: for missing columns, and for values that the transforms cannot take (file, column, 1-based data row).
        """
        self._check_columns(batch.column_names, where)
        assert rows is None or not self.states, "rows after the log follow one another"
        batch = with_states(self.states, batch, where=where, first_row=first_row)
        arrays = {name: one_array(batch.column(name)) for name in dict.fromkeys(self.columns.values())}
        dense = np.empty((batch.num_rows, len(self.schema.dense)), np.float32)
        ids: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        numeric = [feature for feature in self.features.values() if isinstance(feature, NumericTransform)]
        written = encode_columns({i: (arrays[f.column], f.steps) for i, f in enumerate(numeric)}, dense)
        position = 0
        for name, feature in self.features.items():
            place = Place(where, feature.column, first_row, rows)
            try:
                if isinstance(feature, NumericTransform):
                    if position not in written:
                        dense[:, position] = feature.encode(arrays[feature.column], place)
                    position += 1
                else:
                    values, offsets = feature.flat(arrays[feature.column], place)
                    at = place if offsets is None else place.with_offsets(offsets)
                    ids[name] = (self.tables[feature.table].encode(values, at), offsets)
                    self._check_aligned(feature, arrays, place)
            except ValueError as error:
                raise of_feature(error, name) from None
        return Encoded(dense=dense, ids=ids, num_rows=batch.num_rows)

    def _check_aligned(self, feature: IdsTransform, arrays: dict[str, pa.Array], place: Place) -> None:
        if not feature.aligned_with:
            return
        other = self.features[feature.aligned_with]
        assert isinstance(other, IdsTransform)
        found = feature.num_values(arrays[feature.column], place)
        expected = other.num_values(arrays[other.column], replace(place, column=other.column))
        different = np.flatnonzero(found != expected)
        if len(different):
            row = int(different[0])
            raise place.error(
                row, f"{found[row]} values, and column {other.column!r} has {expected[row]}; they are to be of the same events"
            )

    def _check_columns(self, given: list[str], where: str) -> None:
        missing = sorted(set(self.raw_columns) - set(given))
        if missing:
            close = difflib.get_close_matches(missing[0], given, 1)
            hint = f"; did you mean {close[0]!r} for {missing[0]!r}?" if close else ""
            raise ValueError(f"{where or 'input'}: missing columns {', '.join(missing)}; there are: {', '.join(given)}{hint}")
        twice = sorted(c for c in self.raw_columns if given.count(c) > 1)
        if twice:
            raise ValueError(f"{where or 'input'}: columns given twice: {', '.join(twice)}")

    def to_json(self) -> dict[str, Any]:
        """Everything but the vocabularies' values, as JSON data."""
        features = {}
        for name, feature in self.features.items():
            if isinstance(feature, NumericTransform):
                features[name] = {"kind": "numeric", "column": feature.column, "steps": [step_to_dict(s) for s in feature.steps]}
            else:
                features[name] = {"kind": "ids", **asdict(feature)}
        tables = {}
        for name, table in self.tables.items():
            state = {k: v for k, v in vars(table).items() if k in table.__dataclass_fields__ and not isinstance(v, pa.Array)}
            by = next(by for by, kind in _TABLES.items() if type(table) is kind)
            tables[name] = {"by": by, "num_rows": table.num_rows, **state}
        return {"format_version": FORMAT_VERSION, "schema": self.schema_dict, "features": features, "tables": tables}

    def save(self, folder: str | Path) -> None:
        """Write `transforms.json`, `vocabularies/` and, of states, `covisitation/`."""
        folder = Path(folder)
        (folder / "vocabularies").mkdir(parents=True, exist_ok=True)
        for name, table in self.tables.items():
            if isinstance(table, Vocabulary):
                batch = pa.record_batch({"value": table.values})
                with pa.OSFile(str(_vocabulary_path(folder, name)), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                    writer.write(batch)
        save_states(self.states, folder)
        (folder / "transforms.json").write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path, *, after_log: bool = False) -> "Transforms":
        """Read what `save` wrote.

        Args:
            after_log: whether it is to encode rows that come after the log that covisitation features were counted on.

        Raises:
            ValueError: where files are missing or of another format version.
        """
        folder = Path(folder)
        path = folder / "transforms.json"
        try:
            raw = json.loads(path.read_text())
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file; `trm prepare` writes it, and so does `trm export`") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON ({error}); the file is damaged") from None
        if raw.get("format_version") != FORMAT_VERSION:
            found = raw.get("format_version")
            raise ValueError(f"{path}: format version {found}; this release reads {FORMAT_VERSION}; prepare again")
        features = {name: _feature_from_dict(state) for name, state in raw["features"].items()}
        tables = {name: _table_from_dict(folder, name, state) for name, state in raw["tables"].items()}
        states = load_states(folder) if after_log else {}
        return cls(schema_dict=raw["schema"], features=features, tables=tables, states=states)


def _vocabulary_path(folder: Path, table: str) -> Path:
    return folder / "vocabularies" / f"{quote(table, safe=' ')}.arrow"


def _feature_from_dict(raw: dict[str, Any]) -> NumericTransform | IdsTransform:
    state = {k: v for k, v in raw.items() if k != "kind"}
    if raw["kind"] == "numeric":
        return NumericTransform(column=state["column"], steps=tuple(step_from_dict(s) for s in state["steps"]))
    return IdsTransform(**state)


def _table_from_dict(folder: Path, name: str, raw: dict[str, Any]) -> IdTransform:
    state: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k not in ("by", "num_rows")}
    if raw["by"] == "vocabulary":
        path = _vocabulary_path(folder, name)
        try:
            with pa.OSFile(str(path)) as source:
                state["values"] = one_array(pa.ipc.open_file(source).read_all().column("value"))
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path}: the vocabulary of table {name!r} cannot be read ({error})") from None
    table = _TABLES[raw["by"]](**state)
    if table.num_rows != raw["num_rows"]:
        counts = f"{raw['num_rows']} rows in transforms.json and {table.num_rows} in its vocabulary"
        raise ValueError(f"{folder}: table {name!r} has {counts}; the files do not belong together")
    return table
