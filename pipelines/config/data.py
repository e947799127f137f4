"""What a config says about data: where rows are, how they are split, features, tables, labels. Read through `config.load`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from torchrec_models.schema import Pooling, Side

from .errors import nearest, nearest_name
from .query import QueryConfig
from .section import Section
from .splits import SplitConfig

# --- data -------------------------------------------------------------------------------------------------------------


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _rows_kind(value: Any) -> str:
    return "query" if isinstance(value, dict | QueryConfig) else "paths"


Paths = Annotated[list[str], BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])]
SomePaths = Annotated[list[str], Field(min_length=1), BeforeValidator(_one_or_many, json_schema_input_type=str | list[str])]
Query = Annotated[QueryConfig, Tag("query")]


class StoreConfig(Section):
    """What is known of each user, notice or company, one row per id: read once, and joined to the rows of the data batch by batch.

    Its columns are read by the features that name it: `NAME_price: {kind: numeric, store: NAME}` is column `price` of store NAME.
    Rows whose id is missing or not in the store get row 0 of each table and the store's mean of each number (`unknown: oov`), or
    are refused (`unknown: error`).
    """

    files: SomePaths
    key: str = Field(description="column of the store that identifies its rows")
    column: str = Field("", description="column of the data that holds such ids; default: that of `key`")
    unknown: Literal["oov", "error"] = "oov"


class DataConfig(Section):
    """Where the rows are: files, globs and folders, or the query of a database."""

    train: Annotated[Annotated[SomePaths, Tag("paths")] | Query, Discriminator(_rows_kind)] = Field(
        description="files, globs or folders; or {uri: ..., query: ...}"
    )
    valid: Annotated[Annotated[Paths, Tag("paths")] | Query, Discriminator(_rows_kind)] = Field([])
    test: Annotated[Annotated[Paths, Tag("paths")] | Query, Discriminator(_rows_kind)] = Field([])
    format: Literal["auto", "parquet", "csv", "tsv"] = "auto"
    column_names: list[str] = Field([], description="names for text files without a header line")
    extra_fields: Literal["error", "ignore"] = Field(
        "error",
        description="what to do with fields behind the last of column_names; a file's lines must have equally many all the same",
    )
    null_values: list[str] = Field([""], description="text that means missing, in text files")
    split: SplitConfig | None = Field(None, description="how to cut `train` where valid/test are not files of their own")
    cache: str = Field(description="folder for the prepared shards")
    group: str = Field("", description="column that identifies the user (gAUC)")
    timestamp: str = Field("", description="time column, kept for evaluation by day")
    row_id: str = Field("", description="the row's own id, written by predict; default: its position")
    weight: str = Field("", description="sample weight column")
    slices: list[str] = Field([], description="columns kept for evaluation by slice")
    stores: dict[str, StoreConfig] = Field({}, description="feature stores: rows that the data names by id")
    memory_budget_mib: int = Field(512, ge=16, description="memory for decoded rows while preparing")
    rows_per_shard: int = Field(1_000_000, ge=1)

    def described(self, split: str) -> str:
        """Where the rows of a split come from, for people: the first path, or the database."""
        rows: list[str] | QueryConfig = getattr(self, split)
        return f"the query on {rows.place}" if isinstance(rows, QueryConfig) else rows[0]


# --- features ---------------------------------------------------------------------------------------------------------

NullPolicy = Literal["token", "oov", "error"]


class VocabularyIds(Section):
    """Values seen at least `min_count` times in training get a row, most frequent first; the rest share row 0 (OOV).

    `null: token` counts a missing value as a value of its own; `oov` sends it to row 0; `error` refuses it.
    """

    by: Literal["vocabulary"]
    min_count: int = Field(1, ge=1)
    max_size: int = Field(0, ge=0, description="rows to keep at most, OOV not counted; 0: no limit")
    null: NullPolicy = "token"


class HashIds(Section):
    """Values hashed to 1 .. buckets (seeded, the same on every machine and version). Either `buckets` or `margin` is given.

    A missing value is hashed as a token of its own; `null: oov` sends it to row 0, which nothing else uses.
    """

    by: Literal["hash"]
    buckets: int = Field(0, ge=0, description="0: as many as margin asks for")
    margin: float = Field(0.0, ge=0, description="at least 1; buckets for each distinct value of the training rows, as estimated")
    seed: int = Field(0, ge=0, lt=2**63)
    null: NullPolicy = "token"


class BucketIds(Section):
    """Numbers cut into buckets, at `boundaries` or at `num_buckets` quantiles of the training rows.

    Row 0 is for missing; `null: token` gives missing values one more bucket, after the last.
    """

    by: Literal["bucketize"]
    boundaries: list[float] = Field([])
    num_buckets: int = Field(0, ge=0)
    null: NullPolicy = "oov"


class IdentityIds(Section):
    """Values are table rows already, 0 .. num_rows - 1; anything else is an error that names the row."""

    by: Literal["identity"]
    num_rows: int = Field(ge=1)
    null: Literal["error"] = "error"


IdsConfig = Annotated[VocabularyIds | HashIds | BucketIds | IdentityIds, Field(discriminator="by")]


class TableConfig(Section):
    """An embedding table that several features share. A feature that names no table has one of its own."""

    dim: int = Field(16, ge=1)
    ids: IdsConfig = VocabularyIds(by="vocabulary")
    init_std: float = Field(0.01, ge=0)


class CategoricalConfig(Section):
    """Ids. `max_len: 1` is one id per row; more is a bag to pool, from a list column or a string cut at `separator`.

    `keep` says which end of a longer list survives `max_len`.
    """

    kind: Literal["categorical"]
    column: str = ""
    store: str = Field("", description="the store of data.stores whose column this is")
    table: str = ""
    dim: int | None = Field(None, ge=1)
    ids: IdsConfig | None = None
    init_std: float | None = Field(None, ge=0)
    max_len: int = Field(1, ge=1)
    separator: str = ""
    keep: Literal["first", "last"] = "first"
    pooling: Pooling = "sum"
    side: Side = ""


class SequenceConfig(Section):
    """Ids in order (a history). `keep` says which end survives `max_len`.

    `aligned_with` names another sequence of the same events: a row in which one has more values than the other is refused.
    """

    kind: Literal["sequence"]
    column: str = ""
    table: str = ""
    dim: int | None = Field(None, ge=1)
    ids: IdsConfig | None = None
    init_std: float | None = Field(None, ge=0)
    max_len: int = Field(50, ge=1)
    separator: str = ""
    keep: Literal["last", "first"] = "last"
    aligned_with: str = ""
    side: Side = ""


class FillStep(Section):
    fill: float | Literal["mean", "median"]


class ClipStep(Section):
    clip: tuple[float | None, float | None]


class QuantileStep(Section):
    quantile: int = Field(ge=2, description="number of quantiles; maps to [0, 1]")


_STEP_KEYS = ("fill", "clip", "quantile")
_STEP_NAMES = ("log1p", "min_max", "standard", "is_missing")


def _step_kind(value: Any) -> str:
    """The step that is meant, misspelt or not, so that only its own mistakes are reported."""
    if isinstance(value, Section):
        return type(value).__name__.removesuffix("Step").lower()
    key = nearest_name(next(iter(value), ""), _STEP_KEYS) if isinstance(value, dict) else ""
    return key or "name"


def _step_name(value: Any) -> Any:
    if value not in _STEP_NAMES:
        allowed = f"{', '.join(_STEP_NAMES)}, {{fill: 0}}, {{clip: [0, 1]}} or {{quantile: 100}}"
        raise ValueError(allowed + nearest(value, _STEP_NAMES))
    return value


Step = Annotated[
    Annotated[FillStep, Tag("fill")]
    | Annotated[ClipStep, Tag("clip")]
    | Annotated[QuantileStep, Tag("quantile")]
    | Annotated[Literal["log1p", "min_max", "standard", "is_missing"], BeforeValidator(_step_name), Tag("name")],
    Discriminator(_step_kind),
]


class NumericConfig(Section):
    """One float. `steps` run in order and are fitted on the training rows only; a missing value without `fill` is an error.

    `steps: [is_missing]` makes a mask: 1 where the column has no value, else 0.
    """

    kind: Literal["numeric"]
    column: str = ""
    store: str = Field("", description="the store of data.stores whose column this is")
    steps: list[Step] = Field([])
    side: Side = ""


class CovisitationConfig(Section):
    """How often the row's item was seen together with the items that its user saw last, counted on rows of strictly earlier times.

    Times are those of the column: numbers in their own unit, dates and times in seconds.
    """

    kind: Literal["covisitation"]
    user: str = Field(description="column of users, or of sessions")
    item: str
    time: str
    events: str = Field("", description="column of numbers; only rows above 0 (such as clicks) count as seen; default: all rows")
    window: int = Field(10, ge=1, le=1000, description="different items of a user that are remembered, the latest ones")
    max_age: float | None = Field(None, gt=0, description="seen longer ago than this counts no more; default: no limit")
    half_life: float | None = Field(None, gt=0, description="after which a count is worth half")
    normalise: Literal["cosine", "lift", "log", "none"] = "cosine"
    combine: Literal["sum", "max", "mean"] = Field("sum", description="over the remembered items")
    steps: list[Step] = Field([])
    side: Side = ""

    @property
    def column(self) -> str:
        """None of the data: what is computed has the feature's name."""
        return ""

    @property
    def columns(self) -> list[str]:
        """Raw columns that it is computed from."""
        return [c for c in (self.user, self.item, self.time, self.events) if c]


FloatConfig = NumericConfig | CovisitationConfig
FeatureConfig = Annotated[CategoricalConfig | SequenceConfig | NumericConfig | CovisitationConfig, Field(discriminator="kind")]


def raw_columns(name: str, feature: FeatureConfig) -> list[str]:
    """The columns that a feature is made of, as transforms call them: those of a store are `<store>.<column>`."""
    if isinstance(feature, CovisitationConfig):
        return feature.columns
    store = store_of(feature)
    return [f"{store}.{feature.column or name.removeprefix(f'{store}_')}" if store else feature.column or name]


def store_of(feature: FeatureConfig) -> str:
    """The store whose column a feature reads; "" for columns of the data itself."""
    return feature.store if isinstance(feature, CategoricalConfig | NumericConfig) else ""


class LabelConfig(Section):
    """A label. `above` makes a number binary (label = value > above). `null: mask` gives the row weight 0 for this label."""

    column: str = ""
    kind: Literal["binary", "regression"] = "binary"
    above: float | None = None
    null: Literal["error", "mask"] = "error"
    positive_weight: float = Field(1.0, gt=0)
    loss_weight: float = Field(1.0, gt=0)
