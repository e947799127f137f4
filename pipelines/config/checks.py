"""Mistakes that no single section of a config shows: names that do not meet, options without effect, leaks, contradictions."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from .data import CovisitationConfig, FloatConfig, raw_columns
from .errors import check_structure, nearest, nearest_name, short
from .parallel import alignment_problems, parallel_problems
from .query import query_problems
from .splits import split_columns, split_problems
from .stores import store_problems

if TYPE_CHECKING:
    from torchrec_models.model import Net, TwoTower

    from .run import RunConfig

BINARY_METRICS = ("auc", "log_loss", "normalized_entropy", "average_precision", "wll", "contest_score")
REGRESSION_METRICS = ("rmse", "mae")
Written = Mapping[str, str]  # name -> the key it was given by, which may be a pattern


def check_model(model: Mapping[str, Any], *, prefix: str = "model.") -> tuple["type[Net] | type[TwoTower] | None", list[str]]:
    """The net's class (of the nearest name where the name is misspelt) and what is wrong with `model`.

    A net inside the net (`NestedNet`) is checked in the same way.
    """
    from torchrec_models.model import net_class, net_classes  # torch is slow to import; only a config with a model needs it
    from torchrec_models.ranking import NETS
    from torchrec_models.ranking.nested import NestedNet

    if not model:
        return None, []
    nested = prefix != "model."
    name, known = model.get("name"), NETS if nested else net_classes()
    allowed = f"{', '.join(known)}, or package.module:Class"
    options = {k: v for k, v in model.items() if k != "name"}
    problems: list[str] = []
    if name is None:
        return None, [f"{prefix}name: required, and not given; allowed: {allowed}"]
    if not isinstance(name, str) or (name not in known and ":" not in name):
        problems.append(f"{prefix}name: given {short(name)}; allowed: {allowed}{nearest(name, known)}")
        name = nearest_name(name, known)
        if not name:
            return None, problems
    try:
        net = net_class(name)
    except ValueError as error:
        return None, [f"{prefix}name: {error}"]
    for key, field in net.Config.model_fields.items():
        if field.annotation is NestedNet and isinstance(options.get(key), dict):
            inner = options[key]
            problems += (
                check_model(inner, prefix=f"{prefix}{key}.")[1] if inner else [f"{prefix}{key}.name: required, and not given"]
            )
            options[key] = {"name": next(iter(NETS))}  # told above, and not again
    problems += check_structure(net.Config, options, prefix=prefix)[0]
    return net, problems


def net_problems(config: "RunConfig", net: "type[Net] | type[TwoTower]") -> list[str]:
    """What the net itself says of these features and options: it is built once, without memory. For configs right otherwise."""
    import torch

    from torchrec_models.losses import RankingLoss
    from torchrec_models.net import InputSpec
    from torchrec_models.towers import TwoTower

    options: Any = net.Config(**{k: v for k, v in config.model.items() if k != "name"})
    try:
        schema = config.model_schema(dict.fromkeys(config.table_configs(), 1))
        with torch.device("meta"):
            if issubclass(net, TwoTower):
                net(InputSpec.from_schema(schema, side="query"), InputSpec.from_schema(schema, side="candidate"), options)
            else:
                ranker = net(InputSpec.from_schema(schema), options)
                RankingLoss(schema.tasks, ranker.auxiliary_losses())
                return list(parallel_problems(config, ranker))
    except ValueError as error:
        return [f"model: {error}"]
    return []


def cross_problems(
    config: "RunConfig", *, wrong: set[str], net: "type[Net] | type[TwoTower] | None", written: Mapping[str, Written]
) -> list[str]:
    """Run every rule whose sections are right in themselves.

    Args:
        wrong: sections that are not; `config` holds stand-ins for them.
        net: the class behind `model.name`, None where there is none.
        written: per section, which key gave each name.
    """

    def at(section: str, name: str) -> str:
        return f"{section}.{written.get(section, {}).get(name, name)}"

    problems: list[str] = []
    for sections, rule in _RULES:
        if not wrong & set(sections):
            problems += rule(config, at)
    if not wrong & {"features", "labels", "retrieval", "model"} and net is not None:
        from torchrec_models.towers import TwoTower

        problems += _retrieval_problems(config, at) if issubclass(net, TwoTower) else _ranking_problems(config, at)
        if issubclass(net, TwoTower) and "data" not in wrong:
            problems += _seen_problems(config)
    return problems


At = Callable[[str, str], str]
Rule = Callable[["RunConfig", At], Iterator[str]]


def _choices(given: str, names: Iterable[str]) -> str:
    names = list(names)
    return f"; there are: {', '.join(names)}{nearest(given, names)}"


def _unused(section: BaseModel, path: str, keys: tuple[str, ...], why: str) -> Iterator[str]:
    """Options that are not at their default and that nothing reads."""
    for key in keys:
        if getattr(section, key) != type(section).model_fields[key].default:
            yield f"{path}.{key}: has no effect {why}; leave it out"


def _split_problems(config: "RunConfig", at: At) -> Iterator[str]:
    data, split = config.data, config.data.split
    yield from query_problems(data)
    if split and (data.valid or (data.test and split.by not in ("fold", "time_fold"))):
        yield "data.split: given together with data.valid or data.test; keep the split or the files"
    if config.data.extra_fields == "ignore" and not config.data.column_names:
        yield "data.extra_fields: has no effect without data.column_names (a header names every field)"
    if split:
        yield from split_problems(split)
    if data.format == "parquet":
        yield from _unused(data, "data", ("column_names", "null_values", "extra_fields"), "with format: parquet")
    elif not data.column_names:
        yield from _unused(data, "data", ("extra_fields",), "without column_names")
    if len(set(data.column_names)) < len(data.column_names):
        twice = sorted({n for n in data.column_names if data.column_names.count(n) > 1})
        yield f"data.column_names: {', '.join(twice)} given more than once"


def _table_problems(config: "RunConfig", at: At) -> Iterator[str]:
    used = {config.table_of(name) for name in config.features} - {""}
    for name, feature in config.features.items():
        if isinstance(feature, FloatConfig):
            continue
        here, table = at("features", name), config.table_of(name)
        if table not in config.tables and table != name:
            owner = config.features.get(table)
            if owner is None:
                known = [*config.tables, *(n for n, f in config.features.items() if not isinstance(f, FloatConfig))]
                yield f"{here}.table: given {table!r}; no such table or feature{_choices(table, known)}"
            elif config.table_of(table) != table:
                yield f"{here}.table: the feature {table!r} has no table of its own{_reads(config.table_of(table))}"
        if table in config.tables or table != name:
            owner_path = at("tables", table) if table in config.tables else at("features", table)
            for key in ("dim", "ids", "init_std"):
                if getattr(feature, key) is not None:
                    yield f"{here}.{key}: belongs to the table that the feature shares; give it at {owner_path}.{key}"
        if feature.kind == "categorical" and feature.max_len == 1:
            yield from _unused(feature, here, ("separator", "keep", "pooling"), "with max_len: 1, one id per row")
    for name in config.tables:
        if name not in used:
            yield f"{at('tables', name)}: no feature reads it, so it would never be trained{nearest(name, sorted(used))}"
    for name, table_config in config.table_configs().items():
        section = "tables" if name in config.tables else "features"
        here, ids = at(section, name), table_config.ids
        if "." in name or "@" in name:
            yield f"{here}: a table's name may not contain '.' or '@'; name the feature otherwise and give its column: {name}"
        if ids.by == "bucketize" and bool(ids.boundaries) == bool(ids.num_buckets):
            yield f"{here}.ids: bucketize needs either boundaries or num_buckets"
        elif ids.by == "hash" and bool(ids.buckets) == bool(ids.margin):
            yield f"{here}.ids: hash needs either buckets or margin"
        elif ids.by == "hash" and 0 < ids.margin < 1:
            yield f"{here}.ids.margin: given {ids.margin:g}; must be at least 1"
        elif ids.by == "bucketize" and ids.boundaries != sorted(set(ids.boundaries)):
            yield f"{here}.ids.boundaries: given {short(ids.boundaries)}; must increase from each to the next"


def _reads(table: str) -> str:
    return f"; it reads {table!r}: name that" if table else ", it is numeric"


def _sharding_problems(config: "RunConfig", at: At) -> Iterator[str]:
    tables = config.table_configs()
    for name in config.sharding.tables:
        if name not in tables:
            yield f"sharding.tables.{name}: no such table{_choices(name, tables)}"


def _leak_problems(config: "RunConfig", at: At) -> Iterator[str]:
    labels = {label.column or name: name for name, label in config.labels.items()}
    for name, feature in config.features.items():
        # the events of a covisitation may be a label's: only those of earlier rows are looked at
        events = feature.events if isinstance(feature, CovisitationConfig) else ""
        for column in raw_columns(name, feature):
            if column in labels and column != events:
                yield f"{at('features', name)}: reads {column!r}, the column of the label {labels[column]!r}: the answer itself"


def _covisitation_problems(config: "RunConfig", at: At) -> Iterator[str]:
    """What is computed must not have the name of a column that is read."""
    computed = [name for name, feature in config.features.items() if isinstance(feature, CovisitationConfig)]
    readers = {column: at("features", n) for n, f in config.features.items() for column in raw_columns(n, f)}
    readers |= {label.column or name: at("labels", name) for name, label in config.labels.items()}
    data = config.data
    of_data = [data.group, data.timestamp, data.row_id, data.weight, *data.slices, *split_columns(data.split)]
    readers |= dict.fromkeys(of_data, "data")
    for name in computed:
        if name in readers:
            yield f"{at('features', name)}: {readers[name]} reads a column of this name; give what is computed another one"


def _label_problems(config: "RunConfig", at: At) -> Iterator[str]:
    for name, label in config.labels.items():
        if label.kind == "regression":
            yield from _unused(label, at("labels", name), ("above", "positive_weight"), "with kind: regression")


def _output_problems(config: "RunConfig", at: At) -> Iterator[str]:
    taken = config.data.row_id or "row"
    if taken in config.labels:
        what = "data.row_id" if config.data.row_id else "the row's position"
        yield f"{at('labels', taken)}: trm predict writes {what} under this name; name the label otherwise and give its column"


def _train_problems(config: "RunConfig", at: At) -> Iterator[str]:
    train, dense, schedule = config.train, config.train.dense, config.train.schedule
    if train.mode == "fused":
        why = "with mode: fused (only rows of the batch are updated); use mode: unfused"
        if train.embedding_l2:
            yield f"train.embedding_l2: has no effect {why}"
    else:
        keys = ("optimizer", "lr", "eps", "weight_decay")
        yield from _unused(train.sparse, "train.sparse", keys, "with mode: unfused (train.dense trains the tables too)")
    without = f"with optimizer: {dense.optimizer}"
    if dense.optimizer != "sgd":
        yield from _unused(dense, "train.dense", ("momentum",), without)
    if dense.optimizer in ("sgd", "adagrad"):
        yield from _unused(dense, "train.dense", ("betas",), without)
    if dense.optimizer == "sgd":
        yield from _unused(dense, "train.dense", ("eps",), without)
    if train.mode == "fused" and train.sparse.optimizer == "sgd":
        yield from _unused(train.sparse, "train.sparse", ("eps",), "with optimizer: sgd")
    if schedule.kind != "plateau":
        yield from _unused(schedule, "train.schedule", ("factor",), f"with kind: {schedule.kind}")
    if schedule.kind not in ("linear", "cosine"):
        yield from _unused(schedule, "train.schedule", ("min_factor",), f"with kind: {schedule.kind}")


def _weighting_problems(config: "RunConfig", at: At) -> Iterator[str]:
    weighting, here = config.train.task_weighting, "train.task_weighting"
    if len(config.labels) < 2:
        yield from _unused(weighting, here, ("kind", "schedules"), "without several labels")
        return
    if weighting.kind == "uncertainty":
        why = "with train.task_weighting.kind: uncertainty (the weights are learnt)"
        yield from _unused(weighting, here, ("schedules",), why)
        for name, label in config.labels.items():
            yield from _unused(label, at("labels", name), ("loss_weight",), why)
        return
    for name, schedule in weighting.schedules.items():
        if name not in config.labels:
            yield f"{here}.schedules.{name}: no such label{_choices(name, config.labels)}"
            continue
        if schedule.from_step >= schedule.to_step:
            yield f"{here}.schedules.{name}.to_step: given {schedule.to_step}; must come after from_step, {schedule.from_step}"
        if schedule.from_weight == config.labels[name].loss_weight:
            yield f"{here}.schedules.{name}: has no effect, from_weight is the label's loss_weight; leave it out"
        if schedule.kind == "geometric" and schedule.from_weight == 0:
            yield f"{here}.schedules.{name}.from_weight: given 0; a geometric schedule starts above 0, or take kind: linear"


def _sampling_problems(config: "RunConfig", at: At) -> Iterator[str]:
    sampling = config.train.sampling
    if sampling is None:
        return
    rules = (sampling.negative_rate, sampling.positive_fraction, sampling.negatives_per_session, sampling.selection or None)
    if rules.count(None) != 3:
        yield "train.sampling: needs either negative_rate, positive_fraction, negatives_per_session or selection"
    kept = list(dict.fromkeys([*filter(None, [config.data.group]), *config.data.slices]))
    if sampling.session and sampling.session not in kept:
        yield (
            f"train.sampling.session: given {sampling.session!r}; must be a column that the cache keeps, data.group or one of "
            f"data.slices{_choices(sampling.session, kept)}"
        )
    if sampling.negatives_per_session and not sampling.session:
        yield "train.sampling.negatives_per_session: needs train.sampling.session, the column that tells sessions apart"
    if sampling.positive_fraction and sampling.session:
        yield "train.sampling.session: has no effect with positive_fraction; give negative_rate or negatives_per_session"
    if not config.train.shuffle:
        yield "train.sampling: draws its rows in the shuffled order only; leave train.shuffle: false out"
    if sampling.selection:
        yield from _unused(sampling, "train.sampling", ("session",), "with selection")
    elif len(config.labels) != 1 or next(iter(config.labels.values())).kind != "binary":
        yield (
            f"train.sampling: needs exactly one label, a binary one, as one rate cannot be put right for several; "
            f"there are: {', '.join(f'{name} ({label.kind})' for name, label in config.labels.items()) or 'none'}"
        )


def _metric_problems(config: "RunConfig", at: At) -> Iterator[str]:
    if config.train.early_stopping is None:
        return
    if config.retrieval is not None:
        k = config.retrieval.k
        allowed = [f"{name}@{at_k}" for at_k in k for name in ("recall", "ndcg")] + [f"mrr@{max(k)}"]
    else:
        allowed = []
        for name, label in config.labels.items():
            names = list(BINARY_METRICS if label.kind == "binary" else REGRESSION_METRICS)
            names += ["gauc"] if label.kind == "binary" and config.data.group else []
            allowed += [f"{name}_{n}" for n in names] if len(config.labels) > 1 else names
    metric = config.train.early_stopping.metric
    if metric not in allowed:
        yield f"train.early_stopping.metric: given {metric!r}; allowed: {', '.join(allowed)}{nearest(metric, allowed)}"


def _validation_problems(config: "RunConfig", at: At) -> Iterator[str]:
    if config.data.split or config.data.valid:
        return
    if config.train.schedule.kind == "plateau":
        yield "train.schedule.kind: plateau needs validation rows; give data.split or data.valid"
    if config.train.early_stopping:
        yield "train.early_stopping: needs validation rows; give data.split or data.valid"


def _ranking_problems(config: "RunConfig", at: At) -> Iterator[str]:
    name = config.model.get("name")
    if config.retrieval is not None:
        yield f"retrieval: has no effect with model {name}, which ranks; leave it out"
    if not config.labels:
        yield "labels: at least one is required"
    for feature in config.features:
        yield from _unused(config.features[feature], at("features", feature), ("side",), f"with model {name}, which ranks")


def _retrieval_problems(config: "RunConfig", at: At) -> Iterator[str]:
    if config.retrieval is None:
        yield "retrieval: required for a two-tower model; give retrieval.candidate_id"
    elif config.retrieval.candidate_id not in config.features:
        given = config.retrieval.candidate_id
        yield f"retrieval.candidate_id: given {given!r}; no such feature{_choices(given, config.features)}"
    else:
        candidate = config.features[config.retrieval.candidate_id]
        if candidate.kind != "categorical" or candidate.max_len != 1 or candidate.side != "candidate":
            given = config.retrieval.candidate_id
            yield f"retrieval.candidate_id: given {given!r}; must be a categorical feature with max_len: 1 and side: candidate"
    for name, feature in config.features.items():
        if not feature.side:
            yield f"{at('features', name)}.side: required for a two-tower model; allowed: query, candidate"
    for side in ("query", "candidate"):
        if all(f.side and f.side != side for f in config.features.values()):
            yield f"features: none has side: {side}, and a two-tower model needs both"
    if config.labels:
        yield "labels: a two-tower model learns from pairs alone; keep positive rows only and leave labels out"


def _seen_problems(config: "RunConfig") -> Iterator[str]:
    if config.retrieval is not None and config.retrieval.exclude_seen and not config.data.group:
        yield "retrieval.exclude_seen: needs data.group, the column that identifies the user; give it, or set exclude_seen: false"


_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("data",), _split_problems),
    (("features", "tables"), _table_problems),
    (("features",), alignment_problems),
    (("features", "tables", "sharding"), _sharding_problems),
    (("features", "labels"), _leak_problems),
    (("features", "labels", "data"), _covisitation_problems),
    (("features", "tables", "data"), store_problems),
    (("labels",), _label_problems),
    (("labels", "data"), _output_problems),
    (("train",), _train_problems),
    (("train", "labels"), _weighting_problems),
    (("train", "labels", "data"), _sampling_problems),
    (("train", "data"), _validation_problems),
    (("train", "data", "labels", "retrieval"), _metric_problems),
)
