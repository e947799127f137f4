"""One YAML file is one whole run. Typed, strict, frozen: every mistake is reported at once, each with its place and the way out.

`load(path, overrides)` is the only way in. It reads YAML 1.2 numbers and booleans (`1e-3` is a float, `on` is a string),
refuses keys given twice, expands column patterns such as `"C{1..26}"`, applies `key=value` overrides and validates.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from torchrec_models.schema import Pooling, Side


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- data -------------------------------------------------------------------------------------------------------------


class RandomSplit(Section):
    """Rows drawn at random, by a hash of their position and the seed."""

    by: Literal["random"]
    valid: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)
    seed: int = 0


class HashSplit(Section):
    """Rows by a hash of a column: all rows of one value (one user, one session) land in one split."""

    by: Literal["hash"]
    column: str
    valid: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)
    seed: int = 0


class TimeSplit(Section):
    """Rows before `valid_from` train, rows from `test_from` on test. Values as in the column (numbers, or ISO dates)."""

    by: Literal["time"]
    column: str
    valid_from: str | int | float
    test_from: str | int | float | None = None


class ColumnSplit(Section):
    """Rows by the value of a column."""

    by: Literal["column"]
    column: str
    train: list[str | int] = ["train"]
    valid: list[str | int] = ["valid"]
    test: list[str | int] = ["test"]


SplitConfig = Annotated[RandomSplit | HashSplit | TimeSplit | ColumnSplit, Field(discriminator="by")]


class DataConfig(Section):
    """Where the rows are. Paths are files, globs or folders."""

    train: list[str] = Field(min_length=1, description="files, globs or folders")
    valid: list[str] = []
    test: list[str] = []
    format: Literal["auto", "parquet", "csv", "tsv"] = "auto"
    column_names: list[str] = Field([], description="names for text files without a header line")
    null_values: list[str] = Field([""], description="text that means missing, in text files")
    split: SplitConfig | None = Field(None, description="how to cut `train` where valid/test are not files of their own")
    cache: str = Field(description="folder for the prepared shards")
    group: str = Field("", description="column that identifies the user (gAUC)")
    timestamp: str = Field("", description="time column, kept for evaluation by day")
    row_id: str = Field("", description="the row's own id, written by predict; default: its position")
    weight: str = Field("", description="sample weight column")
    slices: list[str] = Field([], description="columns kept for evaluation by slice")
    memory_budget_mib: int = Field(512, ge=16, description="memory for decoded rows while preparing")
    rows_per_shard: int = Field(1_000_000, ge=1)

    @field_validator("train", "valid", "test", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


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
    """Values hashed to 1 .. buckets (seeded, the same on every machine and version); row 0 is kept for missing."""

    by: Literal["hash"]
    buckets: int = Field(ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    null: NullPolicy = "token"


class BucketIds(Section):
    """Numbers cut into buckets, at `boundaries` or at `num_buckets` quantiles of the training rows; row 0 is for missing."""

    by: Literal["bucketize"]
    boundaries: list[float] = []
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
    """Ids. `max_len: 1` is one id per row; more is a bag to pool, from a list column or a string cut at `separator`."""

    kind: Literal["categorical"]
    column: str = ""
    table: str = ""
    dim: int | None = Field(None, ge=1)
    ids: IdsConfig | None = None
    init_std: float | None = Field(None, ge=0)
    max_len: int = Field(1, ge=1)
    separator: str = ""
    pooling: Pooling = "sum"
    side: Side = ""


class SequenceConfig(Section):
    """Ids in order (a history). `keep` says which end survives `max_len`."""

    kind: Literal["sequence"]
    column: str = ""
    table: str = ""
    dim: int | None = Field(None, ge=1)
    ids: IdsConfig | None = None
    init_std: float | None = Field(None, ge=0)
    max_len: int = Field(50, ge=1)
    separator: str = ""
    keep: Literal["last", "first"] = "last"
    side: Side = ""


class FillStep(Section):
    fill: float | Literal["mean", "median"]


class ClipStep(Section):
    clip: tuple[float | None, float | None]


class QuantileStep(Section):
    quantile: int = Field(ge=2, description="number of quantiles; maps to [0, 1]")


class NumericConfig(Section):
    """One float. `steps` run in order and are fitted on the training rows only; a missing value without `fill` is an error."""

    kind: Literal["numeric"]
    column: str = ""
    steps: list[FillStep | ClipStep | QuantileStep | Literal["log1p", "min_max", "standard"]] = []
    side: Side = ""


FeatureConfig = Annotated[CategoricalConfig | SequenceConfig | NumericConfig, Field(discriminator="kind")]


class LabelConfig(Section):
    """A label. `above` makes a number binary (label = value > above). `null: mask` gives the row weight 0 for this label."""

    column: str = ""
    kind: Literal["binary", "regression"] = "binary"
    above: float | None = None
    null: Literal["error", "mask"] = "error"
    positive_weight: float = Field(1.0, gt=0)
    loss_weight: float = Field(1.0, gt=0)


# --- training ---------------------------------------------------------------------------------------------------------


class DenseOptimizerConfig(Section):
    """Dense parameters; in `mode: unfused`, the embedding tables too."""

    optimizer: Literal["adamw", "adam", "adagrad", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)


class SparseOptimizerConfig(Section):
    """Embedding tables in `mode: fused`: updated inside backward, rows of the batch only."""

    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam", "partial_rowwise_adam", "lamb"] = "rowwise_adagrad"
    lr: float = Field(0.02, gt=0)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)


class ScheduleConfig(Section):
    """Learning rate over time, as a factor on both optimizers. `plateau` multiplies by `factor` at each evaluation without
    improvement; `linear` and `cosine` decay to `min_factor` at the last step."""

    kind: Literal["constant", "linear", "cosine", "plateau"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    factor: float = Field(0.1, gt=0, lt=1)
    min_factor: float = Field(1e-3, ge=0, lt=1)


class EarlyStoppingConfig(Section):
    metric: str = "auc"
    patience: int = Field(2, ge=1, description="evaluations in a row without improvement")
    min_delta: float = Field(1e-6, ge=0)


class CheckpointConfig(Section):
    every_steps: int = Field(0, ge=0, description="0: at each evaluation only")
    keep: int = Field(3, ge=1, description="newest checkpoints kept, besides the best one")


class TrainConfig(Section):
    mode: Literal["fused", "unfused"] = "fused"
    batch_size: int = Field(4096, ge=1, description="rows per step over all processes")
    epochs: int = Field(1, ge=1)
    steps: int = Field(0, ge=0, description="stop after so many steps; 0: after `epochs`")
    seed: int = 0
    shuffle: bool = True
    last_batch: Literal["keep", "drop"] = "keep"
    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    sparse: SparseOptimizerConfig = SparseOptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    embedding_l2: float = Field(0.0, ge=0, description="unfused only: (l2 / 2) * |whole table|^2 in the loss of every step")
    clip_norm: float = Field(0.0, ge=0, description="global gradient norm; in fused mode of the dense part only")
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = Field(False, description="torch.compile the net")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged dense weights, used for evaluation; 0: off")
    evaluate_every_steps: int = Field(0, ge=0, description="0: after each epoch")
    early_stopping: EarlyStoppingConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    tensorboard: bool = True
    step_timeout_seconds: float = Field(300.0, gt=0, description="a step that takes longer ends the process (several processes only)")


ShardingType = Literal["table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]


class ShardingConfig(Section):
    """How tables are spread over processes. `tables` overrides `types` for single tables."""

    types: list[ShardingType] = Field(["table_wise", "row_wise", "column_wise"], min_length=1)
    tables: dict[str, ShardingType] = {}
    hbm_gib: float | None = Field(None, gt=0, description="GPU memory for the planner; default: what the GPU has")
    ddr_gib: float | None = Field(None, gt=0, description="host memory for the planner; default: what the machine has")


class EvaluateConfig(Section):
    batch_size: int = Field(16384, ge=1)
    bootstrap: int = Field(200, ge=0, description="resamples for confidence intervals in `trm evaluate`; 0: none")


class RetrievalConfig(Section):
    """For two-tower models: what a candidate is, and how it is judged."""

    candidate_id: str
    k: list[int] = Field([10, 50], min_length=1)
    exclude_seen: bool = True


class ExportConfig(Section):
    parity_rows: int = Field(1000, ge=1)
    tolerance: float = Field(1e-5, gt=0)


class RunConfig(Section):
    run: str = Field("", description="folder of this run; default: runs/<config folder>/<config name>")
    data: DataConfig
    features: dict[str, FeatureConfig] = Field(min_length=1)
    tables: dict[str, TableConfig] = {}
    labels: dict[str, LabelConfig] = {}
    model: dict[str, Any]
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    retrieval: RetrievalConfig | None = None
    export: ExportConfig = ExportConfig()

    def table_of(self, feature: str) -> str:
        """The table that a feature reads; "" for numeric."""
        config = self.features[feature]
        return "" if config.kind == "numeric" else (config.table or feature)

    def table_configs(self) -> dict[str, TableConfig]:
        """Every table by name: those of `tables`, then those that features imply."""
        tables = dict(self.tables)
        for name, feature in self.features.items():
            if feature.kind == "numeric" or self.table_of(name) in self.tables:
                continue
            given = {k: v for k in ("dim", "ids", "init_std") if (v := getattr(feature, k)) is not None}
            if given or self.table_of(name) not in tables:
                tables[self.table_of(name)] = TableConfig(**given)
        return tables


# --- reading ----------------------------------------------------------------------------------------------------------


class ConfigError(ValueError):
    """Every mistake of one config, as text lines."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = problems
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(f"{source}: {count}\n" + "\n".join(f"  {p}" for p in problems))


class _Yaml(yaml.SafeLoader):
    """YAML 1.2 core scalars, and no key twice."""


_Yaml.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9][0-9_]*$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _mapping(loader: _Yaml, node: yaml.MappingNode) -> dict:
    out: dict = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in out:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        out[key] = loader.construct_object(value_node, deep=True)
    return out


def _float(loader: _Yaml, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace("_", ""))


def _int(loader: _Yaml, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


_Yaml.add_constructor("tag:yaml.org,2002:map", _mapping)
_Yaml.add_constructor("tag:yaml.org,2002:float", _float)
_Yaml.add_constructor("tag:yaml.org,2002:int", _int)

_PATTERN = re.compile(r"^(.*)\{(\d+)\.\.(\d+)\}(.*)$")


def expand(name: str) -> list[str]:
    """`C{1..3}` -> C1, C2, C3; any other name stands for itself."""
    match = _PATTERN.match(name)
    if not match:
        return [name]
    head, first, last, tail = match.groups()
    if int(last) < int(first):
        raise ValueError(f"column pattern {name!r} counts down")
    return [f"{head}{i}{tail}" for i in range(int(first), int(last) + 1)]


def _expand_keys(mapping: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(mapping, dict):
        return mapping
    out: dict = {}
    for key, value in mapping.items():
        try:
            names = expand(str(key))
        except ValueError as error:
            problems.append(f"{where}.{key}: {error}")
            continue
        for name in names:
            if name in out:
                problems.append(f"{where}.{key}: {name!r} is already given by another key")
            out[name] = value
    return out


def _apply_override(raw: dict, text: str, problems: list[str]) -> None:
    path, equals, value = text.partition("=")
    if not equals or not path:
        problems.append(f"override {text!r}: write it as dotted.path=value, for example train.batch_size=1024")
        return
    node: Any = raw
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            problems.append(f"override {text!r}: {path!r} leads through {part!r}, which is not a section")
            return
    try:
        node[last] = yaml.load(value, _Yaml)
    except yaml.YAMLError as error:
        problems.append(f"override {text!r}: {value!r} is not YAML ({error})")


def load(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read, override, expand and validate a config file.

    Raises:
        ConfigError: with every mistake found.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        raise ConfigError(str(path), ["no such file" + (f"; did you mean {path.parent / near[0]}?" if near else "")]) from None
    except (IsADirectoryError, UnicodeDecodeError, PermissionError) as error:
        raise ConfigError(str(path), [f"cannot be read as a text file: {error}"]) from None
    try:
        raw = yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [f"not YAML: {error}"]) from None
    default_run = f"runs/{path.parent.name or 'run'}/{path.stem}"
    return parse(raw, overrides=overrides, source=str(path), default_run=default_run)


def parse(raw: Any, *, overrides: Iterable[str] = (), source: str = "config", default_run: str = "runs/run") -> RunConfig:
    """Validate a config given as plain Python data (see `load`)."""
    if not isinstance(raw, dict):
        raise ConfigError(source, [f"expected sections such as data:, features:, model:, got {type(raw).__name__}"])
    problems: list[str] = []
    raw = dict(raw)
    for text in overrides:
        _apply_override(raw, text, problems)
    raw["features"] = _expand_keys(raw.get("features"), "features", problems)
    data = raw.get("data")
    if isinstance(data, dict):
        for key in ("column_names", "slices"):
            if isinstance(data.get(key), list):
                data = {**data, key: [name for item in data[key] for name in expand(str(item))]}
        raw["data"] = data
    if raw["features"] is None:
        del raw["features"]
    if not raw.get("run"):
        raw["run"] = default_run
    config = None
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        problems += [_describe(e) for e in error.errors()]
    problems += _model_problems(raw.get("model"))
    if config is not None:
        problems += _cross_problems(config)
    if problems or config is None:
        raise ConfigError(source, problems)
    return config


# --- explaining -------------------------------------------------------------------------------------------------------


def nearest(given: str, allowed: Iterable[str]) -> str:
    """ "; did you mean 'x'?" or nothing."""
    close = difflib.get_close_matches(str(given), list(allowed), 1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _models_at(annotation: Any, loc: tuple) -> list[type[BaseModel]]:
    """The models that may stand at a pydantic error location."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models_at(get_args(annotation)[0], loc)
    if origin is Union or origin is type(int | str):
        return [m for arm in get_args(annotation) for m in _models_at(arm, loc)]
    if origin in (list, tuple):
        return _models_at(get_args(annotation)[0], loc[1:])
    if origin in (dict, Mapping):
        return _models_at(get_args(annotation)[1], loc[1:])
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return []
    if not loc:
        return [annotation]
    tags = {t for f in annotation.model_fields.values() for t in get_args(f.annotation) if get_origin(f.annotation) is Literal}
    if loc[0] in tags or loc[0] == annotation.__name__:
        return _models_at(annotation, loc[1:])
    field = annotation.model_fields.get(str(loc[0]))
    return _models_at(field.annotation, loc[1:]) if field else []


def _describe(error: Any, root: type[BaseModel] = RunConfig, prefix: str = "") -> str:
    loc = tuple(error["loc"])
    hidden = {"vocabulary", "hash", "bucketize", "identity", "random", "time", "column", "categorical", "numeric", "sequence"}
    shown = [str(p) for i, p in enumerate(loc) if not (i and p in hidden and i < len(loc) - 1 and not _is_key(root, loc[:i], p))]
    path = prefix + ".".join(shown)
    given = error.get("input")
    kind = error["type"]
    if kind == "extra_forbidden":
        allowed = sorted({f for m in _models_at(root, loc[:-1]) for f in m.model_fields})
        return f"{path}: unknown key (given {_short(given)}){nearest(loc[-1], allowed)} Allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return f"{path}: required, and not given"
    if kind in ("union_tag_not_found",):
        return f"{path}: needs the key {error['ctx']['discriminator']}"
    if kind == "union_tag_invalid":
        ctx = error["ctx"]
        allowed = re.findall(r"'([^']*)'", ctx["expected_tags"])
        return f"{path}.{ctx['discriminator'].strip(chr(39))}: given {ctx['tag']!r}; allowed: {', '.join(allowed)}{nearest(ctx['tag'], allowed)}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{path}: given {_short(given)}; allowed: {', '.join(allowed)}{nearest(str(given), allowed)}"
    return f"{path}: given {_short(given)}; {error['msg'][:1].lower()}{error['msg'][1:]}"


def _is_key(root: type[BaseModel], loc: tuple, part: Any) -> bool:
    """Whether `part` is a key that the user wrote, not a union tag that pydantic put there."""
    if len(loc) == 1 and loc[0] in ("features", "tables", "labels"):
        return True
    return any(part in m.model_fields for m in _models_at(root, loc))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _model_problems(raw: Any) -> list[str]:
    from torchrec_models.model import net_class  # torch is slow to import; only a config with a model needs it

    if not isinstance(raw, dict):
        return []  # reported by pydantic already
    if "name" not in raw:
        return ["model.name: required, and not given"]
    try:
        net = net_class(raw["name"])
    except ValueError as error:
        return [f"model.name: {error}"]
    try:
        net.Config.model_validate({k: v for k, v in raw.items() if k != "name"})
    except ValidationError as error:
        return [_describe(e, root=net.Config, prefix="model.") for e in error.errors()]
    return []


def _cross_problems(config: RunConfig) -> list[str]:
    """Mistakes that no single section shows."""
    from torchrec_models.model import is_retrieval

    problems: list[str] = []
    say = problems.append
    for name, feature in config.features.items():
        if feature.kind == "numeric":
            continue
        table = config.table_of(name)
        if feature.table and feature.table not in config.tables and feature.table not in config.features:
            known = [*config.tables, *config.features]
            say(f"features.{name}.table: given {table!r}; no such table or feature{nearest(table, known)}")
        elif feature.table and feature.table in config.features and feature.table not in config.tables:
            owner = config.features[feature.table]
            if owner.kind == "numeric" or config.table_of(feature.table) != feature.table:
                say(f"features.{name}.table: {table!r} is a feature without a table of its own")
        shared = feature.table and feature.table != name
        for key in ("dim", "ids", "init_std"):
            if (shared or table in config.tables) and getattr(feature, key) is not None:
                say(f"features.{name}.{key}: belongs to the shared table; give it at tables.{table} or at the feature {table!r}")
    used = {config.table_of(n) for n in config.features}
    for name in config.tables:
        if name not in used:
            say(f"tables.{name}: no feature reads it, so it would never be trained{nearest(name, used)}")
    for name, table in config.table_configs().items():
        if table.ids.by == "bucketize" and bool(table.ids.boundaries) == bool(table.ids.num_buckets):
            say(f"tables.{name}.ids: bucketize needs either boundaries or num_buckets")
        if table.ids.by == "bucketize" and table.ids.boundaries != sorted(set(table.ids.boundaries)):
            say(f"tables.{name}.ids.boundaries: must increase strictly, given {table.ids.boundaries}")
        if "." in name or "@" in name:
            say(f"tables.{name}: '.' and '@' may not be in a table's name; give the feature a table: name and a column:")
    for name in config.sharding.tables:
        if name not in used:
            say(f"sharding.tables.{name}: no such table{nearest(name, used)}")
    if config.data.split and (config.data.valid or config.data.test):
        say("data.split: given together with data.valid or data.test files; keep one")
    split = config.data.split
    if split and split.by in ("random", "hash") and split.valid + split.test >= 1:
        say(f"data.split: valid + test = {split.valid + split.test} leaves nothing to train on")
    train = config.train
    if train.embedding_l2 and train.mode == "fused":
        say("train.embedding_l2: has no effect in mode: fused (only rows of the batch are updated); use mode: unfused, or train.sparse.weight_decay")
    if train.schedule.kind == "plateau" and not (config.data.split or config.data.valid):
        say("train.schedule.kind: plateau needs a validation split")
    if train.early_stopping and not (config.data.split or config.data.valid):
        say("train.early_stopping: needs a validation split")
    if train.dense.momentum and train.dense.optimizer != "sgd":
        say(f"train.dense.momentum: only sgd uses it, the optimizer is {train.dense.optimizer}")
    retrieval = isinstance(config.model.get("name"), str) and _known(config.model["name"]) and is_retrieval(config.model["name"])
    if retrieval:
        if config.retrieval is None:
            say("retrieval: required for a two-tower model (retrieval.candidate_id)")
        elif config.retrieval.candidate_id not in config.features:
            given = config.retrieval.candidate_id
            say(f"retrieval.candidate_id: given {given!r}; no such feature{nearest(given, config.features)}")
        for name, feature in config.features.items():
            if not feature.side:
                say(f"features.{name}.side: required for a two-tower model; allowed: query, candidate")
        for side in ("query", "candidate"):
            if not any(f.side == side for f in config.features.values()):
                say(f"features: no feature has side: {side}")
        if config.labels:
            say("labels: a two-tower model learns from pairs alone; keep only positive rows and leave labels out")
    else:
        if config.retrieval is not None:
            say(f"retrieval: has no effect for model {config.model.get('name')!r}")
        if not config.labels:
            say("labels: at least one is required")
        for name, feature in config.features.items():
            if feature.side:
                say(f"features.{name}.side: has no effect for a ranking model")
    return problems


def _known(name: str) -> bool:
    from torchrec_models.model import net_class

    try:
        net_class(name)
    except ValueError:
        return False
    return True


def json_schema() -> dict:
    """The JSON Schema of a config file, for editors; `model` lists the options of every net."""
    from torchrec_models.model import net_classes

    schema = RunConfig.model_json_schema()
    options = []
    for name, net in net_classes().items():
        one = net.Config.model_json_schema()
        schema["$defs"].update(one.pop("$defs", {}))
        one["properties"] = {"name": {"const": name}, **one.get("properties", {})}
        one["required"] = ["name", *one.get("required", [])]
        options.append(one)
    schema["properties"]["model"] = {"anyOf": options}
    return schema
