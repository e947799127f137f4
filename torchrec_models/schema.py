"""The only description of a model's inputs: which features exist, which table each one reads, what is predicted.

A `Schema` is plain data: no torch, no files, no config syntax. `trm prepare` makes one after fitting the transforms
(that is when table sizes are known), saves it as JSON beside the shards, and checkpoints and bundles carry it along.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

FeatureKind = Literal["categorical", "numeric", "sequence"]
TaskKind = Literal["binary", "regression"]
Side = Literal["", "query", "candidate"]
Pooling = Literal["sum", "mean"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """One embedding table. Row 0 is the out-of-vocabulary row; known ids are 1 .. num_rows - 1.

    Args:
        name: unique among tables.
        num_rows: rows, the out-of-vocabulary row included (identity tables have none: row i is id i).
        dim: embedding width E.
        init_std: standard deviation of the normal initialisation.
    """

    name: str
    num_rows: int
    dim: int
    init_std: float = 0.01

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.dim < 1:
            raise ValueError(f"table {self.name!r}: num_rows and dim must be >= 1, got {self.num_rows} x {self.dim}")
        if "@" in self.name or "." in self.name:
            raise ValueError(f"table name {self.name!r}: '.' and '@' are reserved (state keys, feature@table)")


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One model input.

    Args:
        name: unique among features.
        kind: `categorical` (one id, or a bag of ids to pool), `numeric` (one float) or `sequence` (ids whose order counts).
        table: the table that the ids index; empty for numeric.
        max_len: most ids kept per row (1 for a single-valued categorical).
        pooling: how a multi-valued categorical becomes one vector.
        side: the tower that reads the feature, for retrieval; empty for ranking.
    """

    name: str
    kind: FeatureKind
    table: str = ""
    max_len: int = 1
    pooling: Pooling = "sum"
    side: Side = ""

    def __post_init__(self) -> None:
        if self.kind == "numeric" and self.table:
            raise ValueError(f"feature {self.name!r} is numeric and cannot read a table ({self.table!r})")
        if self.kind != "numeric" and not self.table:
            raise ValueError(f"feature {self.name!r} is {self.kind} and needs a table")
        if self.max_len < 1:
            raise ValueError(f"feature {self.name!r}: max_len must be >= 1, got {self.max_len}")
        if "@" in self.name:
            raise ValueError(f"feature name {self.name!r}: '@' is reserved (feature@table)")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One predicted label. `positive_weight` multiplies the loss of rows whose binary label is 1; `loss_weight` the whole task."""

    name: str
    kind: TaskKind = "binary"
    positive_weight: float = 1.0
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.positive_weight <= 0 or self.loss_weight <= 0:
            given = f"positive_weight={self.positive_weight}, loss_weight={self.loss_weight}"
            raise ValueError(f"task {self.name!r}: weights must be > 0, got {given}")
        if self.kind == "regression" and self.positive_weight != 1:
            raise ValueError(f"task {self.name!r} is a regression, which has no positive rows to weigh; leave out positive_weight")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Features, tables and tasks, in the order in which every batch, shard and net sees them.

    Args:
        candidate_id: for retrieval, the single-valued categorical feature that identifies a candidate.

    Raises:
        ValueError: on duplicate names, unknown tables, tables nobody reads.
    """

    features: tuple[Feature, ...]
    tables: tuple[Table, ...] = ()
    tasks: tuple[Task, ...] = ()
    candidate_id: str = ""
    _tables_by_name: Mapping[str, Table] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for what, names in (
            ("feature", [f.name for f in self.features]),
            ("table", [t.name for t in self.tables]),
            ("task", [t.name for t in self.tasks]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what} names used twice: {', '.join(twice)}")
        object.__setattr__(self, "_tables_by_name", {t.name: t for t in self.tables})
        read = {f.table for f in self.features if f.table}
        missing = sorted(read - set(self._tables_by_name))
        if missing:
            raise ValueError(f"features read tables that do not exist: {', '.join(missing)}")
        unread = sorted(set(self._tables_by_name) - read)
        if unread:
            raise ValueError(f"tables that no feature reads would never be trained: {', '.join(unread)}")
        if self.candidate_id:
            match = [f for f in self.features if f.name == self.candidate_id]
            if not match or match[0].kind != "categorical" or match[0].max_len != 1 or match[0].side != "candidate":
                raise ValueError(
                    f"candidate_id {self.candidate_id!r} must name a single-valued categorical feature with side: candidate"
                )

    def table(self, name: str) -> Table:
        return self._tables_by_name[name]

    def feature(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise ValueError(f"no feature {name!r}; there are: {', '.join(f.name for f in self.features)}")

    @cached_property
    def dense(self) -> tuple[Feature, ...]:
        """Numeric features: the columns of `Batch.dense`."""
        return tuple(f for f in self.features if f.kind == "numeric")

    @cached_property
    def sequence_tables(self) -> frozenset[str]:
        return frozenset(f.table for f in self.features if f.kind == "sequence")

    @cached_property
    def pooled(self) -> tuple[Feature, ...]:
        """The keys of `Batch.sparse`: categoricals whose table no sequence reads (an EmbeddingBagCollection)."""
        return tuple(f for f in self.features if f.kind == "categorical" and f.table not in self.sequence_tables)

    @cached_property
    def jagged(self) -> tuple[Feature, ...]:
        """The keys of `Batch.sequence`: sequences, and categoricals that share a table with one.

        An EmbeddingBagCollection and an EmbeddingCollection cannot share a table, so targets follow their history.
        """
        return tuple(f for f in self.features if f.table in self.sequence_tables)

    @cached_property
    def categorical(self) -> tuple[Feature, ...]:
        """The fields of an interaction net, in schema order."""
        return tuple(f for f in self.features if f.kind == "categorical")

    @cached_property
    def sequences(self) -> tuple[Feature, ...]:
        return tuple(f for f in self.features if f.kind == "sequence")

    def to_dict(self) -> dict[str, Any]:
        out = asdict(self)
        del out["_tables_by_name"]
        return out

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Schema":
        return cls(
            features=tuple(Feature(**f) for f in raw["features"]),
            tables=tuple(Table(**t) for t in raw["tables"]),
            tasks=tuple(Task(**t) for t in raw["tasks"]),
            candidate_id=raw.get("candidate_id", ""),
        )

    def fingerprint(self) -> str:
        """16 hex digits that change with any feature, table or task: a checkpoint refuses another schema."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
