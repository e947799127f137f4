"""Fit the transforms that a config asks for, from a stream of training rows, and make the schema."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..config import RunConfig
from ..config.data import (
    BucketIds,
    CovisitationConfig,
    FloatConfig,
    HashIds,
    IdentityIds,
    IdsConfig,
    SequenceConfig,
    VocabularyIds,
    raw_columns,
    store_of,
)
from ..config.errors import nearest
from .fit_hash import HashFit
from .fit_ids import VocabularyFit
from .fit_numeric import Learnable, NumericFit
from .ids import Buckets, Hash, Identity, IdTransform
from .numeric import to_float
from .statistics import RowSample
from .transforms import IdsTransform, NumericTransform, Transforms
from .values import Kind, Place, is_list, is_text, kind_of, numbers, one_array

EXACT_ROWS = 1_000_000
"""Medians and quantiles come from all rows up to this many; past it from a uniform sample of this many."""
_BYTES_PER_SAMPLED_ROW = 32  # value and priority, and as much again before the sample shrinks
_MOST_ROWS = 2**31 - 1  # ids are int32


@dataclass
class Lesson:
    """What some rows teach: by numeric feature, and by table."""

    numeric: dict[str, list[Learnable]] = field(default_factory=dict)
    counted: list[tuple[str, pa.Table]] = field(default_factory=list)
    sketched: list[tuple[str, np.ndarray]] = field(default_factory=list)
    sampled: list[tuple[str, np.ndarray]] = field(default_factory=list)


class Fitter:
    """Streams training rows `num_passes` times (`update` for each batch, then `end_pass`), and ends with `Transforms`.

    Memory is bounded by the distinct values of vocabularies, and by half of `data.memory_budget_mib` for row samples.

    Args:
        config: features, tables, labels, retrieval.
        arrow_schema: the raw columns' types.

    Raises:
        ValueError: for columns that are missing or of a type that their feature cannot take; all of them at once.
    """

    def __init__(self, config: RunConfig, arrow_schema: pa.Schema) -> None:
        self._config = config
        computed = {name for name, f in config.features.items() if isinstance(f, CovisitationConfig)}
        self._columns = {n: n if n in computed else raw_columns(n, f)[0] for n, f in config.features.items()}
        self._stores = {name: store_of(feature) for name, feature in config.features.items()}
        self._types = {f.name: f.type for f in arrow_schema}
        self._types |= {name: pa.float32() for name, f in config.features.items() if isinstance(f, CovisitationConfig)}
        problems = [f"features.{name}: {p}" for name in config.features if (p := self._problem(name))]
        self._tables = config.table_configs()
        problems += [f"tables.{name}: more than 2^31 - 1 rows" for name, t in self._tables.items() if _too_large(t.ids)]
        if problems:
            raise ValueError("the data does not fit the config:\n" + "\n".join(f"  {p}" for p in problems))
        self._ids = {n: self._ids_transform(n) for n, f in config.features.items() if not isinstance(f, FloatConfig)}
        numeric = {n: f.steps for n, f in config.features.items() if isinstance(f, FloatConfig)}
        sampled = [n for n, t in self._tables.items() if isinstance(t.ids, BucketIds) and t.ids.num_buckets]
        num_samples = len(sampled) + sum(NumericFit.num_samples(steps) for steps in numeric.values())
        budget_bytes = config.data.memory_budget_mib * 2**20 // 2
        sample_rows = min(EXACT_ROWS, budget_bytes // (_BYTES_PER_SAMPLED_ROW * max(num_samples, 1)))
        self._numeric = {name: NumericFit(name, steps, sample_rows=sample_rows) for name, steps in numeric.items()}
        self._samples = {name: RowSample(sample_rows) for name in sampled}
        self._vocabularies = {
            n: VocabularyFit(n, t.ids, kind=self._kind(n)) for n, t in self._tables.items() if isinstance(t.ids, VocabularyIds)
        }
        self._hashes = {
            n: HashFit(n, t.ids, kind=self._kind(n)) for n, t in self._tables.items() if isinstance(t.ids, HashIds) and t.ids.margin
        }
        self._learned = frozenset((*self._vocabularies, *self._hashes, *self._samples))
        learns_ids = bool(self._learned)
        self.num_passes: int = max([int(learns_ids), *(fit.num_passes for fit in self._numeric.values())])
        """How often the training rows must be streamed; 0 where nothing is learned from them."""
        self._pass = 0

    def _problem(self, name: str) -> str:
        """Why the feature cannot read its column, or nothing."""
        feature, column = self._config.features[name], self._columns[name]
        if column not in self._types:
            return f"no column {column!r}{nearest(column, self._types)}"
        type = self._types[column]
        many = isinstance(feature, SequenceConfig) or (not isinstance(feature, FloatConfig) and feature.max_len > 1)
        try:
            kind = kind_of(type.value_type if is_list(type) else type)
        except ValueError as error:
            return f"column {column!r}: {error}"
        if isinstance(feature, FloatConfig):
            if is_list(type) or (kind == "string" and not is_text(type)):
                return f"column {column!r} has type {type}, where one number per row is needed"
            return ""
        if not many:
            return f"column {column!r} holds lists ({type}); set max_len above 1, or use kind: sequence" if is_list(type) else ""
        if is_list(type):
            return f"separator {feature.separator!r} has no effect, column {column!r} holds lists" if feature.separator else ""
        if kind is not None and not is_text(type):
            return f"column {column!r} has type {type}, where lists or separated text are needed"
        return "" if feature.separator or kind is None else f"column {column!r} is text; set separator, for example separator: ' '"

    def _ids_transform(self, name: str) -> IdsTransform:
        feature = self._config.features[name]
        assert not isinstance(feature, FloatConfig)
        return IdsTransform(
            column=self._columns[name],
            table=self._config.table_of(name),
            many=isinstance(feature, SequenceConfig) or feature.max_len > 1,
            max_len=feature.max_len,
            separator=feature.separator,
            keep=feature.keep,
            aligned_with=feature.aligned_with if isinstance(feature, SequenceConfig) else "",
        )

    def _kind(self, table: str) -> Kind:
        """Numbers, unless a column of the table is text (or nothing but nulls)."""
        types = [self._types[i.column] for i in self._ids.values() if i.table == table]
        kinds = {kind_of(t.value_type if is_list(t) else t) for t in types}
        return "number" if kinds - {None} == {"number"} else "string"

    def columns(self, store: str = "") -> list[str]:
        """Raw columns of the log, or of a store, that the coming pass learns from."""
        names = [name for name, fit in self._numeric.items() if fit.num_passes > self._pass]
        if not self._pass:
            names += [name for name, i in self._ids.items() if i.table in self._learned]
        return list(dict.fromkeys(self._columns[name] for name in names if self._stores[name] == store))

    def update(self, batch: pa.RecordBatch, *, where: str, first_row: int, rows: np.ndarray | None = None, store: str = "") -> None:
        """`learn` of `look_at`."""
        self.learn(self.look_at(batch, where=where, first_row=first_row, rows=rows, store=store))

    def look_at(
        self,
        batch: pa.RecordBatch,
        *,
        where: str,
        first_row: int,
        rows: np.ndarray | None = None,
        store: str = "",
        on_cut: Callable[[str, pa.Array, pa.Array, np.ndarray], None] | None = None,
    ) -> Lesson:
        """What training rows, or rows of a store, have to teach; any thread may do this. Other arguments as in `Transforms.encode`.

        Args:
            on_cut: told of each column of many values: its name, the column, the values, and their offsets.

        Raises:
            ValueError: for values that cannot be learned from (file, column, 1-based data row).
        """
        lesson = Lesson()
        for name, fit in self._numeric.items():
            if fit.num_passes > self._pass and self._stores[name] == store:
                place = Place(where, self._columns[name], first_row, rows)
                with _naming(name):
                    lesson.numeric[name] = fit.learnable(to_float(one_array(batch.column(place.column)), place), place)
        for name, ids in self._ids.items():
            if not self._pass and self._stores[name] == store and ids.table in self._learned:
                place = Place(where, ids.column, first_row, rows)
                with _naming(name):
                    values, offsets = ids.flat(raw := one_array(batch.column(ids.column)), place)
                    if offsets is not None and on_cut is not None:
                        on_cut(ids.column, raw, values, offsets)
                    self._look_at_ids(ids, values, place if offsets is None else place.with_offsets(offsets), lesson)
        return lesson

    def _look_at_ids(self, ids: IdsTransform, values: pa.Array, place: Place, lesson: Lesson) -> None:
        if ids.table in self._vocabularies:
            lesson.counted.append((ids.table, self._vocabularies[ids.table].counted(values, place)))
        elif ids.table in self._hashes:
            lesson.sketched.append((ids.table, self._hashes[ids.table].sketched(values, place)))
        else:
            number, missing = numbers(values, place)
            number = number[~missing].astype(np.float64)
            lesson.sampled.append((ids.table, number[np.isfinite(number)]))

    def start_part(self, number: int) -> None:
        """What is learned from now on comes from this part of the rows (see files.Part)."""
        for fit in self._numeric.values():
            fit.start_part(number)
        for sample in self._samples.values():
            sample.start_part(number)

    def state(self, *, of_earlier_passes: bool = False) -> Iterator[tuple[dict[str, Any], pa.Table]]:
        """What this pass has learned so far, for the `merge` of another: keys that JSON can hold, and tables.

        Args:
            of_earlier_passes: and what those have learned that is no step of a number (see `fitted_steps`).
        """
        for name, fit in self._numeric.items():
            for key, table in fit.state():
                yield {"numeric": name, **key}, table
        if of_earlier_passes or not self._pass:
            for name, vocabulary in self._vocabularies.items():
                for key, table in vocabulary.state():
                    yield {"vocabulary": name, **key}, table
            for name, hashed in self._hashes.items():
                yield {"hash": name}, hashed.state()
            for name, sample in self._samples.items():
                yield {"sample": name}, sample.state()

    def merge(self, key: dict[str, Any], table: pa.Table) -> None:
        """Learn what another has learned from its parts of the rows; in any order."""
        if "numeric" in key:
            self._numeric[key["numeric"]].merge(key, table)
        elif "vocabulary" in key:
            self._vocabularies[key["vocabulary"]].merge(key, table)
        elif "hash" in key:
            self._hashes[key["hash"]].merge(table)
        else:
            self._samples[key["sample"]].merge(table)

    def fitted_steps(self) -> dict[str, list[dict[str, Any]]]:
        """Numeric feature -> steps that the passes so far have fixed, as JSON."""
        return {name: fit.fitted_steps() for name, fit in self._numeric.items()}

    def take_steps(self, steps: dict[str, list[dict[str, Any]]], *, num_passes: int = 1) -> None:
        """`end_pass` for one who has not learned everything: with the `fitted_steps` of one who has.

        Args:
            num_passes: that are over, with these steps.
        """
        for name, fit in self._numeric.items():
            fit.take_steps(steps[name])
        self._pass += num_passes

    def learn(self, lesson: Lesson) -> None:
        """Learn what `look_at` found; in the order of the rows."""
        for name, learnable in lesson.numeric.items():
            self._numeric[name].add(learnable)
        for table, counted in lesson.counted:
            self._vocabularies[table].add(counted)
        for table, registers in lesson.sketched:
            self._hashes[table].add(registers)
        for table, sampled in lesson.sampled:
            self._samples[table].update(sampled)

    def end_pass(self) -> None:
        """Call after all training rows went through `update` once.

        Raises:
            ValueError: where a statistic has nothing to be learned from.
        """
        for fit in self._numeric.values():
            fit.end_pass()
        self._pass += 1

    def finish(self) -> Transforms:
        """The fitted transforms, and the schema within."""
        assert self._pass >= self.num_passes, f"{self._pass} of {self.num_passes} passes done"
        tables = {name: self._id_transform(name) for name in self._tables}
        features: dict[str, NumericTransform | IdsTransform] = {}
        for name in self._config.features:
            fit = self._numeric.get(name)
            features[name] = NumericTransform(column=self._columns[name], steps=fit.finish()) if fit else self._ids[name]
        schema = self._config.model_schema({name: transform.num_rows for name, transform in tables.items()})
        return Transforms(schema_dict=schema.to_dict(), features=features, tables=tables)

    def _id_transform(self, table: str) -> IdTransform:
        ids = self._tables[table].ids
        if isinstance(ids, VocabularyIds):
            return self._vocabularies[table].finish()
        if table in self._hashes:
            return self._hashes[table].finish()
        if isinstance(ids, HashIds):
            return Hash(null=ids.null, buckets=ids.buckets, seed=ids.seed, kind=self._kind(table))
        if isinstance(ids, IdentityIds):
            return Identity(null=ids.null, size=ids.num_rows)
        boundaries = tuple(ids.boundaries)
        if table in self._samples:
            sample = self._samples[table]
            if not sample.seen:
                raise ValueError(f"tables.{table}: every training value is missing, so num_buckets cannot be learned")
            cuts = sample.quantiles(np.arange(1, ids.num_buckets) / ids.num_buckets)
            boundaries = tuple(np.unique(cuts).tolist())
        return Buckets(null=ids.null, boundaries=boundaries)


@contextmanager
def _naming(feature: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"feature {feature!r}: {error}") from None


def _too_large(ids: IdsConfig) -> bool:
    return (isinstance(ids, HashIds) and ids.buckets >= _MOST_ROWS) or (isinstance(ids, IdentityIds) and ids.num_rows > _MOST_ROWS)
