"""One YAML file is one whole run. Typed, strict, frozen: every mistake is reported at once, each with its place and the way out.

`load(path, overrides)` is the only way in. It reads YAML 1.2 numbers and booleans (`1e-3` is a float, `on` is a string),
refuses keys given twice, expands column patterns such as `"C{1..26}"`, applies `key=value` overrides and validates.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from torchrec_models.schema import Feature, Schema, Table, Task

from .checks import check_model, cross_problems, net_problems
from .data import (
    DataConfig,
    FeatureConfig,
    FloatConfig,
    LabelConfig,
    Section,
    TableConfig,
)
from .errors import ConfigError, check_structure, nearest_name, short
from .text import apply_overrides, expand_items, expand_keys, read_yaml

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


class WeightScheduleConfig(Section):
    """The weight of one task's loss, from `from_weight` until step `from_step` to the label's `loss_weight` at step `to_step`.

    `geometric` multiplies by the same factor at each step.
    """

    kind: Literal["linear", "cosine", "geometric"] = "linear"
    from_weight: float = Field(ge=0)
    from_step: int = Field(0, ge=0)
    to_step: int = Field(ge=1)


class TaskWeightingConfig(Section):
    """How the losses of several labels are summed. `fixed`: with each label's `loss_weight`, or as `schedules` say, by label.
    `uncertainty`: with weights that are learnt (Kendall et al. 2018)."""

    kind: Literal["fixed", "uncertainty"] = "fixed"
    schedules: dict[str, WeightScheduleConfig] = Field({})


class SamplingConfig(Section):
    """Training on all positives and a share of the negatives, drawn anew each epoch. The loss takes log(rate) into account, so
    that predictions are those of all rows. Or `selection`: on the rows that `trm data select` chose. Give one of negative_rate,
    positive_fraction, negatives_per_session and selection."""

    negative_rate: float | None = Field(None, gt=0, lt=1, description="share of the negatives that an epoch uses")
    positive_fraction: float | None = Field(None, gt=0, lt=1, description="share of positives in an epoch; sets the rate")
    negatives_per_session: int | None = Field(None, ge=1, description="negatives of each session at most; needs session")
    session: str = Field(
        "", description="draw session by session: the column of data.group, or one of data.slices, that tells sessions apart"
    )
    selection: str = Field("", description="folder that trm data select wrote; the same rows in every epoch")


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
    sampling: SamplingConfig | None = None
    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    sparse: SparseOptimizerConfig = SparseOptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    task_weighting: TaskWeightingConfig = TaskWeightingConfig()
    embedding_l2: float = Field(0.0, ge=0, description="unfused only: (l2 / 2) * |whole table|^2 in the loss of every step")
    clip_norm: float = Field(0.0, ge=0, description="global gradient norm; in fused mode of the dense part only")
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = Field(False, description="torch.compile the net")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of averaged dense weights, used for evaluation; 0: off")
    evaluate_every_steps: int = Field(0, ge=0, description="0: after each epoch")
    early_stopping: EarlyStoppingConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    tensorboard: bool = True
    step_timeout_seconds: float = Field(300.0, gt=0, description="a longer step ends the process (several processes only)")


ShardingType = Literal["table_wise", "row_wise", "column_wise", "table_row_wise", "data_parallel"]


class ShardingConfig(Section):
    """How tables are spread over processes. `tables` overrides `types` for single tables."""

    types: list[ShardingType] = Field(["table_wise", "row_wise", "column_wise"], min_length=1)
    tables: dict[str, ShardingType] = Field({})
    hbm_gib: float | None = Field(None, gt=0, description="GPU memory for the planner; default: what the GPU has")
    ddr_gib: float | None = Field(None, gt=0, description="host memory for the planner; default: what the machine has")


class EvaluateConfig(Section):
    batch_size: int = Field(16384, ge=1)
    bootstrap: int = Field(200, ge=0, description="resamples for confidence intervals in `trm evaluate`; 0: none")


class RetrievalConfig(Section):
    """For two-tower models: what a candidate is, and how it is judged."""

    candidate_id: str
    k: list[Annotated[int, Field(ge=1)]] = Field([10, 50], min_length=1)
    exclude_seen: bool = True


class ExportConfig(Section):
    parity_rows: int = Field(1000, ge=1)
    tolerance: float = Field(1e-5, gt=0)


class RunConfig(Section):
    run: str = Field("", description="folder of this run; default: runs/<config folder>/<config name>")
    data: DataConfig
    features: dict[str, FeatureConfig] = Field(min_length=1)
    tables: dict[str, TableConfig] = Field({})
    labels: dict[str, LabelConfig] = Field({})
    model: dict[str, Any]
    train: TrainConfig = TrainConfig()
    sharding: ShardingConfig = ShardingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    retrieval: RetrievalConfig | None = None
    export: ExportConfig = ExportConfig()

    def table_of(self, feature: str) -> str:
        """The table that a feature reads; "" for numeric."""
        config = self.features[feature]
        return "" if isinstance(config, FloatConfig) else (config.table or feature)

    def table_configs(self) -> dict[str, TableConfig]:
        """Every table by name: those of `tables`, then those that features imply."""
        tables = dict(self.tables)
        for name, feature in self.features.items():
            if isinstance(feature, FloatConfig) or self.table_of(name) in self.tables:
                continue
            given = {k: v for k in ("dim", "ids", "init_std") if (v := getattr(feature, k)) is not None}
            if given or self.table_of(name) not in tables:
                tables[self.table_of(name)] = TableConfig(**given)
        return tables

    def model_schema(self, num_rows: Mapping[str, int]) -> Schema:
        """What the model reads, once the number of rows of every table is known.

        Raises:
            ValueError: see `Schema`.
        """
        return Schema(
            features=tuple(
                Feature(
                    name=name,
                    kind="numeric" if isinstance(feature, FloatConfig) else feature.kind,
                    table=self.table_of(name),
                    max_len=1 if isinstance(feature, FloatConfig) else feature.max_len,
                    pooling=feature.pooling if feature.kind == "categorical" else "sum",
                    side=feature.side,
                )
                for name, feature in self.features.items()
            ),
            tables=tuple(
                Table(name=name, num_rows=num_rows[name], dim=table.dim, init_std=table.init_std)
                for name, table in self.table_configs().items()
            ),
            tasks=tuple(
                Task(name=name, kind=label.kind, positive_weight=label.positive_weight, loss_weight=label.loss_weight)
                for name, label in self.labels.items()
            ),
            candidate_id=self.retrieval.candidate_id if self.retrieval else "",
        )


# --- reading ----------------------------------------------------------------------------------------------------------

_PATTERN_KEYS = ("features", "tables", "labels")
_PATTERN_LISTS = ("column_names", "slices")
_PLACEHOLDERS = {"data": {"train": ["-"], "cache": "-"}, "features": {"-": {"kind": "numeric"}}, "model": {}}


def load(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read, override, expand and validate a config file.

    Raises:
        ConfigError: with every mistake found.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = nearest_name(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        raise ConfigError(str(path), ["no such file" + (f"; did you mean {path.parent / near}?" if near else "")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read as a text file: {error}"]) from None
    problems: list[str] = []
    raw = read_yaml(text, problems)
    if raw is None and problems:
        raise ConfigError(str(path), problems)
    default_run = f"runs/{path.resolve().parent.name}/{path.stem}"
    return parse(raw, overrides=overrides, source=str(path), default_run=default_run, problems=problems)


def parse(
    raw: Any,
    *,
    overrides: Iterable[str] = (),
    source: str = "config",
    default_run: str = "runs/run",
    problems: Iterable[str] = (),
) -> RunConfig:
    """Validate a config given as plain Python data.

    Args:
        raw: sections by name.
        overrides: `dotted.path=value` texts.
        source: what error texts call the config.
        default_run: the folder of the run where `run` is not given.
        problems: mistakes found before, to be reported with the others.

    Raises:
        ConfigError: with every mistake found.
    """
    problems = list(problems)
    if not isinstance(raw, dict):
        raise ConfigError(source, [*problems, f"expected sections such as data:, features:, model:; given {short(raw)}"])
    raw = copy.deepcopy(raw)
    apply_overrides(raw, overrides, problems)
    raw["run"] = raw.get("run") or default_run
    found, raw, wrong = check_structure(RunConfig, raw)
    problems += found
    written = {key: _expand(raw, key, problems) for key in _PATTERN_KEYS if key not in wrong}
    for key in () if "data" in wrong else _PATTERN_LISTS:
        raw["data"][key] = expand_items(raw["data"].get(key, []), f"data.{key}", problems)
    for key in wrong:
        raw.pop(key, None)
        raw |= {k: v for k, v in _PLACEHOLDERS.items() if k == key}
    net, found = check_model({} if "model" in wrong else raw["model"])
    config = RunConfig.model_validate_json(json.dumps(raw))
    problems += [*found, *cross_problems(config, wrong=wrong, net=net, written=written)]
    if not problems and net is not None:
        problems += net_problems(config, net)
    if problems:
        raise ConfigError(source, list(dict.fromkeys(problems)))
    return config


def _expand(raw: dict[str, Any], key: str, problems: list[str]) -> dict[str, str]:
    """Write out the patterns in the keys of one section; which key each name came from."""
    written: dict[str, str] = {}
    if key in raw:
        raw[key] = expand_keys(raw[key], key, written, problems)
    return written


def json_schema() -> dict:
    """The JSON Schema of a config file, for editors; `model`, and each net inside a net, lists the options of every net."""
    from torchrec_models.model import net_classes  # torch is slow to import
    from torchrec_models.ranking import NETS

    nets = net_classes()
    # all at once, so that pydantic tells apart the classes that are called Config
    models: list[type[BaseModel]] = [RunConfig, *(net.Config for net in nets.values())]
    references, together = models_json_schema([(model, "validation") for model in models])
    defined = together["$defs"]
    own = {model: reference["$ref"].removeprefix("#/$defs/") for (model, _), reference in references.items()}
    whole = {model: defined.pop(key) for model, key in own.items()}
    for name, net in nets.items():
        one = whole[net.Config]
        properties, required = {"name": {"const": name}, **one.get("properties", {})}, ["name", *one.get("required", [])]
        defined[f"net.{name}"] = {**one, "properties": properties, "required": required}
    schema = {**whole[RunConfig], "$defs": defined}
    schema["$defs"]["NestedNet"] = _any_net(NETS)
    schema["properties"]["model"] = _any_net(nets)
    return schema


def _any_net(names: Iterable[str]) -> dict:
    return {"anyOf": [{"$ref": f"#/$defs/net.{name}"} for name in names]}
