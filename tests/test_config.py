"""Configs: what is accepted, and the full text of what is said about everything that is not."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from torchrec_models.metrics import BinaryRows
from torchrec_models.model import net_classes
from torchrec_models.pipelines.config import (
    CategoricalConfig,
    ConfigError,
    DataConfig,
    RunConfig,
    TrainConfig,
    json_schema,
    load,
    parse,
)
from torchrec_models.pipelines.config.checks import BINARY_METRICS
from torchrec_models.pipelines.config.data import Section

BASE: dict[str, Any] = {
    "data": {"train": ["rows.parquet"], "cache": "cache/rows", "split": {"by": "random"}},
    "features": {"user": {"kind": "categorical"}, "age": {"kind": "numeric"}},
    "labels": {"click": {}},
    "model": {"name": "deepfm"},
}

NETS = f"{', '.join(net_classes())}, or package.module:Class"


def keys(section: type[Section]) -> str:
    return ", ".join(section.model_fields)


DATA, TRAIN, SECTIONS, CATEGORICAL = map(keys, (DataConfig, TrainConfig, RunConfig, CategoricalConfig))
STEPS = "log1p, min_max, standard, is_missing, {fill: 0}, {clip: [0, 1]} or {quantile: 100}"
SHARDING = "table_wise, row_wise, column_wise, table_row_wise, data_parallel"
A_SECTION = "must be a section of `key: value` lines"


def _dump(raw: Any) -> str:
    return yaml.safe_dump(raw, sort_keys=False)


def read(tmp_path: Path, text: str, *, overrides: Iterable[str] = ()) -> RunConfig:
    """BASE with the sections of `text` laid over it, as a file would give them."""
    path = tmp_path / "run.yaml"
    base = {k: v for k, v in BASE.items() if f"\n{k}:" not in f"\n{text}"}
    path.write_text(f"{_dump(base)}{text}\n")
    return load(path, overrides)


def problems(tmp_path: Path, text: str, *, overrides: Iterable[str] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, overrides=overrides)
    return caught.value.problems


def data(**changes: Any) -> str:
    return _dump({"data": {**BASE["data"], **changes}})


def features(**changes: Any) -> str:
    return _dump({"features": {**BASE["features"], **changes}})


MALFORMED: dict[str, tuple[str, list[str]]] = {
    # --- misspelt keys, at every depth
    "a misspelt option": (
        "train: {batchsize: 5}",
        [f"train.batchsize: unknown key (given 5); did you mean 'batch_size'? Allowed here: {TRAIN}"],
    ),
    "a misspelt section, and the mistakes inside it": (
        "trian: {batchsize: 5, epochs: many}",
        [
            f"trian: unknown key (given {{'batchsize': 5, 'epochs': 'many'}}); did you mean 'train'? Allowed here: {SECTIONS}",
            f"trian.batchsize: unknown key (given 5); did you mean 'batch_size'? Allowed here: {TRAIN}",
            "trian.epochs: given 'many'; must be a whole number",
        ],
    ),
    "a misspelt required key is one mistake, not two": (
        "data: {train: rows.parquet, cach: c}",
        [f"data.cach: unknown key (given 'c'); did you mean 'cache'? Allowed here: {DATA}"],
    ),
    "an option of another section": (
        "batch_size: 512",
        [f"batch_size: unknown key (given 512); it belongs at train.batch_size or evaluate.batch_size. Allowed here: {SECTIONS}"],
    ),
    "an option that is nowhere": ("train: {zebra: 5}", [f"train.zebra: unknown key (given 5). Allowed here: {TRAIN}"]),
    "three levels down": (
        "train: {dense: {learning_rate: .1, beta: [.9, .99]}}",
        [
            "train.dense.learning_rate: unknown key (given 0.1). Allowed here: optimizer, lr, betas, eps, momentum, weight_decay",
            "train.dense.beta: unknown key (given [0.9, 0.99]); did you mean 'betas'? "
            "Allowed here: optimizer, lr, betas, eps, momentum, weight_decay",
        ],
    ),
    "in a feature, its kind misspelt as well": (
        features(user={"kind": "categorcal", "poolin": "sum", "ids": {"by": "hsh", "bukets": 4}}),
        [
            "features.user.kind: given 'categorcal'; allowed: categorical, sequence, numeric, covisitation"
            "; did you mean 'categorical'?",
            "features.user.ids.by: given 'hsh'; allowed: vocabulary, hash, bucketize, identity; did you mean 'hash'?",
            f"features.user.poolin: unknown key (given 'sum'); did you mean 'pooling'? Allowed here: {CATEGORICAL}",
            "features.user.ids.bukets: unknown key (given 4); did you mean 'buckets'? "
            "Allowed here: by, buckets, margin, seed, null",
        ],
    ),
    "the word kind misspelt": (
        features(user={"kid": "categorical", "max_len": 0}),
        [
            "features.user.kid: unknown key (given 'categorical'); did you mean 'kind'?",
            "features.user.max_len: given 0; must be at least 1",
        ],
    ),
    "an option of another kind of feature": (
        features(age={"kind": "numeric", "dim": 4}),
        ["features.age.dim: unknown key (given 4). Allowed here: kind, column, store, steps, side"],
    ),
    "in a table": (
        "tables: {t: {dimm: 4, ids: {by: vocabulary, min_counts: 2}}}\n" + features(user={"kind": "categorical", "table": "t"}),
        [
            "tables.t.ids.min_counts: unknown key (given 2); did you mean 'min_count'? Allowed here: by, min_count, max_size, null",
            "tables.t.dimm: unknown key (given 4); did you mean 'dim'? Allowed here: dim, ids, init_std",
        ],
    ),
    "a key called like a kind is still shown": (
        features(user={"kind": "categorical", "hash": 5, "numeric": {"a": 1}}),
        [
            f"features.user.hash: unknown key (given 5). Allowed here: {CATEGORICAL}",
            f"features.user.numeric: unknown key (given {{'a': 1}}). Allowed here: {CATEGORICAL}",
        ],
    ),
    "a feature called like a kind": (
        features(numeric={"kind": "numeric", "steps": "log1p"}, hash={"kind": "categorical", "dim": 0}),
        ["features.numeric.steps: given 'log1p'; must be a list; write [log1p]", "features.hash.dim: given 0; must be at least 1"],
    ),
    # --- wrong values
    "a wrong word": ("train: {mode: fusd}", ["train.mode: given 'fusd'; allowed: fused, unfused; did you mean 'fused'?"]),
    "wrong types": (
        "train: {epochs: 2.0, shuffle: on, ema: true, seed: [1], dense: {lr: '0.1', betas: [.9], eps: .inf}}\nrun: 5",
        [
            "run: given 5; must be text; write it in quotes",
            "train.epochs: given 2.0; must be a whole number; write 2",
            "train.seed: given [1]; must be a whole number",
            "train.shuffle: given 'on'; must be true or false",
            "train.dense.lr: given '0.1'; must be a number; leave the quotes out",
            "train.dense.betas: given [0.9]; must be a list of 2",
            "train.dense.eps: given '.inf'; must be a number",
            "train.ema: given true; must be a number",
        ],
    ),
    "values out of range": (
        "train: {batch_size: 0, ema: 1.0, dense: {lr: 0, weight_decay: -1, eps: 1e999}}",
        [
            "train.batch_size: given 0; must be at least 1",
            "train.dense.lr: given 0; must be more than 0",
            "train.dense.eps: given inf; must be a finite number",
            "train.dense.weight_decay: given -1; must be at least 0",
            "train.ema: given 1.0; must be less than 1",
        ],
    ),
    "a list that is empty, a list that is none": (
        "retrieval: null\nsharding: {types: []}\nevaluate: 7\n" + data(slices="day"),
        [
            "data.slices: given 'day'; must be a list; write [day]",
            "sharding.types: given []; must be a list of at least 1",
            f"evaluate: given 7; {A_SECTION}",
        ],
    ),
    "sections that are not": (
        "features: {user: categorical, age: 5}\nlabels:\nmodel: deepfm",
        [
            f"features.user: given 'categorical'; {A_SECTION}; write {{kind: categorical}}",
            f"features.age: given 5; {A_SECTION}",
            f"labels: given nothing; {A_SECTION}",
            f"model: given 'deepfm'; {A_SECTION}",
        ],
    ),
    "features as a list": ("features: [user, age]", [f"features: given ['user', 'age']; {A_SECTION}"]),
    "what is required": (
        "data: {split: {by: hash}}\nfeatures: {}",
        [
            "data.train: required, and not given",
            "data.split.column: required, and not given",
            "data.cache: required, and not given",
            "features: given {}; must be a section that is not empty",
        ],
    ),
    "numeric steps": (
        features(age={"kind": "numeric", "steps": ["log2", {"fil": 0}, {"fill": "men"}, {"clip": ["a", 3]}, {"quantile": 1}, 7]}),
        [
            "features.age.steps[1].fil: unknown key (given 0); did you mean 'fill'? Allowed here: fill",
            f"features.age.steps[0]: given 'log2'; must be {STEPS}; did you mean 'log1p'?",
            "features.age.steps[2].fill: given 'men'; must be a number or one of: mean, median; did you mean 'mean'?",
            "features.age.steps[3].clip[0]: given 'a'; must be a number",
            "features.age.steps[4].quantile: given 1; must be at least 2",
            f"features.age.steps[5]: given 7; must be {STEPS}",
        ],
    ),
    # --- splits
    "no such split": (
        data(split={"by": "hsh", "colum": "user", "valid": 2}),
        [
            "data.split.by: given 'hsh'; allowed: random, hash, time, column, fold, time_fold; did you mean 'hash'?",
            "data.split.colum: unknown key (given 'user'); did you mean 'column'? Allowed here: by, column, valid, test, seed",
            "data.split.valid: given 2; must be less than 1",
        ],
    ),
    "a split of no kind": (
        data(split={"valid": 0.1}),
        ["data.split.by: required, and not given; allowed: random, hash, time, column, fold, time_fold"],
    ),
    "a split in one word": (data(split="random"), [f"data.split: given 'random'; {A_SECTION}; write {{by: random}}"]),
    "an option of another split": (
        data(split={"by": "random", "column": "user"}),
        ["data.split.column: unknown key (given 'user'). Allowed here: by, valid, test, seed"],
    ),
    "a split and files": (
        data(valid=["v.parquet"]),
        ["data.split: given together with data.valid or data.test; keep the split or the files"],
    ),
    "a split without training rows": (
        data(split={"by": "random", "valid": 0.5, "test": 0.5}),
        ["data.split: valid 0.5 and test 0.5 leave nothing to train on"],
    ),
    "times of the wrong kind": (
        data(split={"by": "time", "column": "t", "valid_from": [1], "test_from": True}),
        [
            "data.split.valid_from: given [1]; must be text or a number",
            "data.split.test_from: given true; must be text or a number; write it in quotes",
        ],
    ),
    "times of two kinds": (
        data(split={"by": "time", "column": "t", "valid_from": 5, "test_from": "2024-01-01"}),
        ["data.split.test_from: given '2024-01-01'; must be of the same kind as valid_from, 5"],
    ),
    "times that run backwards": (
        data(split={"by": "time", "column": "t", "valid_from": "2024-02-01", "test_from": "2024-01-01"}),
        ["data.split.test_from: given '2024-01-01'; must be later than valid_from, '2024-02-01'"],
    ),
    "a value in two splits": (
        data(split={"by": "column", "column": "s", "valid": ["a"], "test": ["a", "train"]}),
        [
            "data.split.test: 'train' also stands in train; a row can be in one split only",
            "data.split.test: 'a' also stands in valid; a row can be in one split only",
        ],
    ),
    # --- patterns
    "one sentence for a pattern, not 26": (
        features(**{"C{1..26}": {"kind": "categorical", "dim": -3, "side": "query"}}),
        [
            "features.C{1..26}.dim: given -3; must be at least 1",
        ],
    ),
    "one sentence for a pattern in what several sections tell": (
        features(**{"C{1..26}": {"kind": "categorical", "side": "query"}}),
        ["features.C{1..26}.side: has no effect with model deepfm, which ranks; leave it out"],
    ),
    "patterns that are none": (
        features(**{"C{26..1}": {"kind": "numeric"}, "D{1-3}": {"kind": "numeric"}, "E{1..9999999}": {"kind": "numeric"}}),
        [
            "features.C{26..1}: the pattern {26..1} must count up, to at most 100,000 names",
            "features.D{1-3}: not a column pattern; write one like C{1..26}",
            "features.E{1..9999999}: the pattern {1..9999999} must count up, to at most 100,000 names",
        ],
    ),
    "patterns that overlap": (
        features(**{"E{1..3}": {"kind": "numeric"}, "E2": {"kind": "numeric"}}),
        ["features.E2: 'E2' is given by features.E{1..3} already"],
    ),
    "a column pattern of another length": (
        features(**{"m{1..3}": {"kind": "numeric", "column": "x{1..2}"}}),
        ["features.m{1..3}: column 'x{1..2}' stands for 2 names and the key for 3; give as many"],
    ),
    "patterns in lists": (
        data(column_names=["C{1..2}", "C2", "D{a}"]),
        [
            "data.column_names[2]: 'D{a}': not a column pattern; write one like C{1..26}",
            "data.column_names: C2 given more than once",
        ],
    ),
    # --- the model
    "no such model, and its options": (
        "model: {name: deepmf, hidden_unit: [4], dropout: 2}",
        [
            f"model.name: given 'deepmf'; allowed: {NETS}; did you mean 'deepfm'?",
            "model.hidden_unit: unknown key (given [4]); did you mean 'hidden_units'? "
            "Allowed here: hidden_units, activation, batch_norm, dropout",
            "model.dropout: given 2; must be less than 1",
        ],
    ),
    "no model": (
        "model: {hidden_units: [4]}",
        [f"model.name: required, and not given; allowed: {NETS}"],
    ),
    "a model that is a number": (
        "model: {name: 3}",
        [f"model.name: given 3; allowed: {NETS}"],
    ),
    "a model of one's own that is not there": (
        "model: {name: 'no_such_package.nets:Mine'}",
        ["model.name: given 'no_such_package.nets:Mine'; cannot import it: No module named 'no_such_package'"],
    ),
    "net options of the wrong type": (
        "model: {name: deepfm, hidden_units: 400, batch_norm: 1, dropout: '0.1'}",
        [
            "model.hidden_units: given 400; must be a list; write [400]",
            "model.batch_norm: given 1; must be true or false",
            "model.dropout: given '0.1'; must be a number; leave the quotes out",
        ],
    ),
    "a two-tower model without sides": (
        "model: {name: two_tower}\nlabels: {}",
        [
            "retrieval: required for a two-tower model; give retrieval.candidate_id",
            "features.user.side: required for a two-tower model; allowed: query, candidate",
            "features.age.side: required for a two-tower model; allowed: query, candidate",
        ],
    ),
    "a two-tower model with one side": (
        "model: {name: two_tower}\nretrieval: {candidate_id: user, k: [0]}\n"
        "features: {user: {kind: categorical, side: query}}\nlabels: {click: {}}",
        ["retrieval.k[0]: given 0; must be at least 1"],
    ),
    "a two-tower model with the wrong candidate": (
        "model: {name: two_tower}\nretrieval: {candidate_id: user, exclude_seen: false}\n"
        "features: {user: {kind: categorical, side: query}}",
        [
            "retrieval.candidate_id: given 'user'; must be a categorical feature with max_len: 1 and side: candidate",
            "features: none has side: candidate, and a two-tower model needs both",
            "labels: a two-tower model learns from pairs alone; keep positive rows only and leave labels out",
        ],
    ),
    "a two-tower model with an unknown candidate": (
        "model: {name: two_tower}\nretrieval: {candidate_id: itme, exclude_seen: false}\nlabels: {}\n"
        "features: {user: {kind: categorical, side: query}, item: {kind: categorical, side: candidate}}",
        ["retrieval.candidate_id: given 'itme'; no such feature; there are: user, item; did you mean 'item'?"],
    ),
    # --- names that do not meet
    "tables": (
        features(
            user={"kind": "categorical", "table": "usrs"},
            item={"kind": "categorical", "table": "user", "dim": 4},
            place={"kind": "categorical", "table": "age"},
        )
        + "tables: {users: {}}\nsharding: {tables: {users: row_wise, plac: row_wise}}",
        [
            "features.user.table: given 'usrs'; no such table or feature; there are: users, user, item, place; "
            "did you mean 'users'?",
            "features.item.table: the feature 'user' has no table of its own; it reads 'usrs': name that",
            "features.item.dim: belongs to the table that the feature shares; give it at features.user.dim",
            "features.place.table: the feature 'age' has no table of its own, it is numeric",
            "tables.users: no feature reads it, so it would never be trained; did you mean 'usrs'?",
            "sharding.tables.plac: no such table; there are: users, usrs, user, age",
        ],
    ),
    "a sharding type": (
        "sharding: {tables: {user: row_wis}}",
        [f"sharding.tables.user: given 'row_wis'; allowed: {SHARDING}; did you mean 'row_wise'?"],
    ),
    "names and buckets of tables": (
        features(**{"a.b": {"kind": "categorical", "ids": {"by": "bucketize"}}, "c": {"kind": "categorical", "table": "t"}})
        + "tables: {t: {ids: {by: bucketize, boundaries: [2, 1]}}}",
        [
            "tables.t.ids.boundaries: given [2.0, 1.0]; must increase from each to the next",
            "features.a.b: a table's name may not contain '.' or '@'; name the feature otherwise and give its column: a.b",
            "features.a.b.ids: bucketize needs either boundaries or num_buckets",
        ],
    ),
    "how many buckets": (
        features(
            none={"kind": "categorical", "ids": {"by": "hash"}},
            both={"kind": "categorical", "ids": {"by": "hash", "buckets": 5, "margin": 1.5}},
            small={"kind": "categorical", "ids": {"by": "hash", "margin": 0.9}},
        ),
        [
            "features.none.ids: hash needs either buckets or margin",
            "features.both.ids: hash needs either buckets or margin",
            "features.small.ids.margin: given 0.9; must be at least 1",
        ],
    ),
    "the label among the features": (
        features(rating={"kind": "numeric"}) + "labels: {liked: {column: rating, above: 3}}",
        ["features.rating: reads 'rating', the column of the label 'liked': the answer itself"],
    ),
    "no label": ("labels: {}", ["labels: at least one is required"]),
    # --- options without effect
    "fused training": (
        "train: {embedding_l2: .1, sparse: {optimizer: sgd, eps: 1e-4}, dense: {optimizer: sgd, eps: 1e-4, betas: [.9, .99]}}",
        [
            "train.embedding_l2: has no effect with mode: fused (only rows of the batch are updated); use mode: unfused",
            "train.dense.betas: has no effect with optimizer: sgd; leave it out",
            "train.dense.eps: has no effect with optimizer: sgd; leave it out",
            "train.sparse.eps: has no effect with optimizer: sgd; leave it out",
        ],
    ),
    "unfused training": (
        "train: {mode: unfused, sparse: {lr: 1}, dense: {momentum: .9}, schedule: {factor: .5, min_factor: .5}}",
        [
            "train.sparse.lr: has no effect with mode: unfused (train.dense trains the tables too); leave it out",
            "train.dense.momentum: has no effect with optimizer: adamw; leave it out",
            "train.schedule.factor: has no effect with kind: constant; leave it out",
            "train.schedule.min_factor: has no effect with kind: constant; leave it out",
        ],
    ),
    "options of features, labels and files": (
        data(format="parquet", column_names=["a"], null_values=["NA"])
        + features(user={"kind": "categorical", "separator": "|", "keep": "last", "side": "query"})
        + "labels: {click: {kind: regression, above: 3, positive_weight: 2}}\nretrieval: {candidate_id: user}",
        [
            "data.column_names: has no effect with format: parquet; leave it out",
            "data.null_values: has no effect with format: parquet; leave it out",
            "features.user.separator: has no effect with max_len: 1, one id per row; leave it out",
            "features.user.keep: has no effect with max_len: 1, one id per row; leave it out",
            "labels.click.above: has no effect with kind: regression; leave it out",
            "labels.click.positive_weight: has no effect with kind: regression; leave it out",
            "retrieval: has no effect with model deepfm, which ranks; leave it out",
            "features.user.side: has no effect with model deepfm, which ranks; leave it out",
        ],
    ),
    "nothing to validate on": (
        "data: {train: t.parquet, cache: c}\ntrain: {schedule: {kind: plateau}, early_stopping: {patience: 1}}",
        [
            "train.schedule.kind: plateau needs validation rows; give data.split or data.valid",
            "train.early_stopping: needs validation rows; give data.split or data.valid",
        ],
    ),
    "a metric that is not there": (
        "train: {early_stopping: {metric: gaucc}}\n" + data(group="user"),
        [
            "train.early_stopping.metric: given 'gaucc'; allowed: auc, log_loss, normalized_entropy, average_precision, wll, "
            "contest_score, gauc; did you mean 'gauc'?"
        ],
    ),
    "a metric of several labels": (
        "train: {early_stopping: {metric: auc}}\nlabels: {click: {}, seconds: {kind: regression}}",
        [
            "train.early_stopping.metric: given 'auc'; allowed: click_auc, click_log_loss, click_normalized_entropy, "
            "click_average_precision, click_wll, click_contest_score, seconds_rmse, seconds_mae"
        ],
    ),
    "a metric of retrieval": (
        "model: {name: two_tower}\nretrieval: {candidate_id: item, k: [5, 20], exclude_seen: false}\nlabels: {}\n"
        "features: {user: {kind: categorical, side: query}, item: {kind: categorical, side: candidate}}\n"
        "train: {early_stopping: {metric: recall@10}}",
        [
            "train.early_stopping.metric: given 'recall@10'; allowed: recall@5, ndcg@5, recall@20, ndcg@20, mrr@20; "
            "did you mean 'recall@20'?"
        ],
    ),
    "features that the net cannot take": (
        features(item={"kind": "categorical", "dim": 8}),
        ["model: DeepFM needs the same dim for every feature, got user of width 16, item of width 8"],
    ),
    # --- YAML
    "keys given twice": (
        "train:\n  epochs: 1\n  dense: {lr: 1, lr: 2}\n  epochs: 2",
        ["train.dense.lr: given twice, in line 18", "train.epochs: given twice, in lines 17 and 19"],
    ),
    "a key that is no text": ("train: {[a]: 1}", ["train: the key in line 16 must be text"]),
    "a list that is not closed": (
        "train: {epochs: [1",
        ["not YAML at line 17, column 1: while parsing a flow sequence expected ',' or ']', but got '<stream end>'"],
    ),
    "a tab": (
        "train:\n\tepochs: 1",
        ["not YAML at line 17, column 1: while scanning for the next token found character '\\t' that cannot start any token"],
    ),
}


@pytest.mark.parametrize("text, expected", MALFORMED.values(), ids=MALFORMED.keys())
def test_every_mistake_is_told(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


def test_the_error_counts_and_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "train: {epochs: 0, seed: x}")
    assert str(caught.value) == (
        f"{tmp_path / 'run.yaml'}: 2 mistakes\n"
        "  train.epochs: given 0; must be at least 1\n"
        "  train.seed: given 'x'; must be a whole number"
    )


def test_mistakes_of_every_section_come_together(tmp_path: Path) -> None:
    text = data(split={"by": "random", "valid": 0.9, "test": 0.1}) + "train: {epochs: 0}\nlabels: {}\nmodel: {name: dlmr}"
    assert problems(tmp_path, text) == [
        "train.epochs: given 0; must be at least 1",
        f"model.name: given 'dlmr'; allowed: {NETS}; did you mean 'dlrm'?",
        "data.split: valid 0.9 and test 0.1 leave nothing to train on",
        "labels: at least one is required",
    ]


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "deepfm.yaml").write_text("")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "deepmf.yaml")
    assert caught.value.problems == [f"no such file; did you mean {tmp_path / 'deepfm.yaml'}?"]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "nowhere" / "x.yaml")
    assert caught.value.problems == ["no such file"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected sections such as data:, features:, model:; given nothing"),
        (b"# only a comment\n", "expected sections such as data:, features:, model:; given nothing"),
        (b"- data\n- model\n", "expected sections such as data:, features:, model:; given ['data', 'model']"),
        (b"--- 1\n--- 2\n", "not YAML at line 2, column 1: expected a single document in the stream but found another document"),
        (b"run: \xff\n", "cannot be read as a text file: 'utf-8' codec can't decode byte 0xff in position 5: invalid start byte"),
        (b"run: \x00\n", "not YAML: unacceptable character #x0000: special characters are not allowed"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.problems == [expected]


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read as a text file: .*Is a directory"):
        load(tmp_path)


def test_the_run_folder_comes_from_the_config_path(tmp_path: Path) -> None:
    assert read(tmp_path, "").run == f"runs/{tmp_path.name}/run"
    assert read(tmp_path, "run: elsewhere").run == "elsewhere"
    assert read(tmp_path, "run: elsewhere", overrides=["run="]).run == f"runs/{tmp_path.name}/run"


# --- YAML -------------------------------------------------------------------------------------------------------------


def test_numbers_and_words_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    read_config = read(
        tmp_path,
        "train: {dense: {lr: 1e-3, eps: 1.e-8, weight_decay: .5}, epochs: 1_0, shuffle: FALSE, early_stopping: ~}\n"
        "features: {on: {kind: categorical, column: yes}, 2020-01-01: {kind: numeric, column: 0x10}, "
        "7: {kind: numeric, column: '7'}}",
    )
    assert (read_config.train.dense.lr, read_config.train.dense.eps, read_config.train.dense.weight_decay) == (1e-3, 1e-8, 0.5)
    assert (read_config.train.epochs, read_config.train.shuffle, read_config.train.early_stopping) == (10, False, None)
    assert {name: f.column for name, f in read_config.features.items()} == {"on": "yes", "2020-01-01": "0x10", "7": "7"}


def test_anchors_are_understood(tmp_path: Path) -> None:
    read_config = read(tmp_path, "features: {a: &ids {kind: categorical, dim: 3}, b: *ids}")
    assert read_config.features["a"] == read_config.features["b"]


# --- patterns ---------------------------------------------------------------------------------------------------------


def test_patterns_write_out_names_in_order(tmp_path: Path) -> None:
    read_config = read(
        tmp_path,
        data(column_names=["label", "I{1..2}", "C{08..10}"], slices=["day"])
        + "features: {'I{1..2}': {kind: numeric}, 'C{08..10}': {kind: categorical, dim: 4}, 'x{1..2}y{1..2}': {kind: numeric}}\n"
        "labels: {'label{1..2}': {}}",
    )
    assert list(read_config.features) == ["I1", "I2", "C08", "C09", "C10", "x1y1", "x1y2", "x2y1", "x2y2"]
    assert read_config.data.column_names == ["label", "I1", "I2", "C08", "C09", "C10"]
    assert list(read_config.labels) == ["label1", "label2"]
    assert read_config.features["C09"].dim == 4


def test_a_column_pattern_goes_along_with_the_names(tmp_path: Path) -> None:
    text = "features: {'x{8..10}_missing': {kind: numeric, column: 'x{8..10}', steps: [is_missing]}, C: {kind: categorical}}\n"
    config = read(tmp_path, data() + text + "labels: {label: {}}\n")
    assert {name: f.column for name, f in config.features.items()} == {
        **{"x8_missing": "x8", "x9_missing": "x9", "x10_missing": "x10"},
        "C": "",
    }


def test_a_criteo_config_is_short(tmp_path: Path) -> None:
    text = """\
data:
  train: train.txt
  format: tsv
  cache: cache/criteo
  column_names: [label, "I{1..13}", "C{1..26}"]
  split: {by: random, valid: 0.1, test: 0.1}
features:
  "I{1..13}": {kind: numeric, steps: [{fill: 0}, {clip: [0, null]}, log1p]}
  "C{1..26}": {kind: categorical, dim: 16, ids: {by: vocabulary, min_count: 10}}
labels:
  label: {}
model: {name: dlrm}
"""
    path = tmp_path / "criteo.yaml"
    path.write_text(text)
    read_config = load(path)
    assert len(read_config.features) == 39 and len(read_config.data.column_names) == 40
    assert len(read_config.table_configs()) == 26


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_set_what_they_name(tmp_path: Path) -> None:
    read_config = read(
        tmp_path,
        "train: {epochs: 3}\nevaluate:\n"
        "features: {'C{1..3}': {kind: categorical, ids: {by: hash, buckets: 9}}, age: {kind: numeric}}",
        overrides=[
            *("train.epochs=2", "train.dense.lr=1e-4", "train.precision=bfloat16"),
            *("data.group=user", "data.split={by: hash, column: u}"),
            *("features.C2.init_std=0.5", "features.C2.ids.buckets=5", "features.C{2..3}.max_len=4", "features.new.kind=numeric"),
            *("evaluate.bootstrap=0", "data.weight=", "model.hidden_units=[8, 4]", "data.train=[a=b.parquet]"),
        ],
    )
    assert (read_config.train.epochs, read_config.train.dense.lr, read_config.train.precision) == (2, 1e-4, "bfloat16")
    assert (read_config.data.group, read_config.data.weight, read_config.data.train) == ("user", "", ["a=b.parquet"])
    assert read_config.data.split is not None and read_config.data.split.by == "hash"
    assert list(read_config.features) == ["C1", "C2", "C3", "age", "new"]
    c = [read_config.features[f"C{i}"] for i in (1, 2, 3)]
    assert [f.init_std for f in c] == [None, 0.5, None]
    assert [f.ids.buckets for f in c] == [9, 5, 9]
    assert [f.max_len for f in c] == [1, 4, 4]
    assert read_config.model["hidden_units"] == [8, 4]
    assert read_config.evaluate.bootstrap == 0


def test_overrides_leave_the_given_data_alone() -> None:
    before = json.dumps(BASE)
    parse(BASE, overrides=["features.user.dim=3", "train.epochs=2"])
    assert json.dumps(BASE) == before


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("epochs", "override 'epochs': write dotted.path=value, for example train.batch_size=1024"),
        ("=3", "override '=3': write dotted.path=value, for example train.batch_size=1024"),
        ("train..epochs=3", "override 'train..epochs=3': write dotted.path=value, for example train.batch_size=1024"),
        ("data.train.0=x", "override 'data.train.0=x': data.train is a list; give all of it"),
        ("data.cache.x=1", "override 'data.cache.x=1': data.cache is 'cache/rows', not a section"),
        (
            "data.train=[a, b",
            "override 'data.train=[a, b': not YAML at line 1, column 6: "
            "while parsing a flow sequence expected ',' or ']', but got '<stream end>'",
        ),
        ("train.lr=3", f"train.lr: unknown key (given 3); it belongs at train.dense.lr or train.sparse.lr. Allowed here: {TRAIN}"),
        ("train.epochs=", "train.epochs: given ''; must be a whole number"),
        ("data.split.by=hash", "data.split.column: required, and not given"),
        ("data.split={by: hash, by: time}", "override 'data.split={by: hash, by: time}': by: given twice, in line 1"),
        ("features.C{3..1}.dim=8", "override 'features.C{3..1}.dim=8': the pattern {3..1} must count up, to at most 100,000 names"),
    ],
)
def test_overrides_that_are_wrong(tmp_path: Path, override: str, expected: str) -> None:
    assert problems(tmp_path, "", overrides=[override]) == [expected]


def test_an_override_given_twice_is_told(tmp_path: Path) -> None:
    assert problems(tmp_path, "", overrides=["train.epochs=2", "train.epochs=3"]) == [
        "override 'train.epochs=3': train.epochs is overridden twice, by 'train.epochs=2' before"
    ]


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_resolved_config_reads_back_the_same(tmp_path: Path) -> None:
    text = (
        data(split={"by": "time", "column": "t", "valid_from": "2024-01-01"}, train="one.parquet")
        + features(
            age={"kind": "numeric", "steps": ["log1p", {"fill": "median"}, {"clip": [None, 3]}, {"quantile": 10}]},
            item={"kind": "categorical", "table": "items"},
            seen={"kind": "sequence", "table": "items"},
        )
        + "tables: {items: {ids: {by: hash, buckets: 5}}}\ntrain: {early_stopping: {}}"
    )
    first = read(tmp_path, text)
    assert parse(first.model_dump(mode="json")) == first
    assert parse(yaml.safe_load(yaml.safe_dump(first.model_dump(mode="json")))) == first


def test_configs_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        read(tmp_path, "").train.epochs = 2


def test_tables_are_those_of_the_section_and_those_that_features_imply(tmp_path: Path) -> None:
    read_config = read(
        tmp_path,
        "tables: {items: {dim: 4}}\nfeatures: {item: {kind: categorical, table: items}, seen: {kind: sequence, table: items}, "
        "user: {kind: categorical, dim: 4, init_std: 0.5}, friend: {kind: categorical, table: user}, age: {kind: numeric}}",
    )
    assert {name: (t.dim, t.init_std) for name, t in read_config.table_configs().items()} == {"items": (4, 0.01), "user": (4, 0.5)}
    assert [read_config.table_of(f) for f in read_config.features] == ["items", "items", "user", "user", ""]


def test_a_net_of_ones_own_is_checked_like_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from torchrec_models.net import Net, NetConfig\n"
        "class Mine(Net):\n    class Config(NetConfig):\n        width: int = 4\n"
        "    def __init__(self, spec, config):\n        super().__init__()\n"
        "class NotANet: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert read(tmp_path, "model: {name: 'my_nets:Mine', width: 5}").model == {"name": "my_nets:Mine", "width": 5}
    assert problems(tmp_path, "model: {name: 'my_nets:Mine', widht: 5}") == [
        "model.widht: unknown key (given 5); did you mean 'width'? Allowed here: width"
    ]
    assert problems(tmp_path, "model: {name: 'my_nets:NotANet'}") == [
        "model.name: given 'my_nets:NotANet'; it must be a subclass of "
        "torchrec_models.net.Net or torchrec_models.towers.two_tower.TwoTower"
    ]


def test_the_json_schema_names_every_section_and_net_option() -> None:
    schema = json_schema()
    assert list(schema["properties"]) == list(RunConfig.model_fields)
    defined = [schema["$defs"][reference] for reference in sorted(_references(schema["properties"]["model"]))]
    nets = {one["properties"]["name"].get("const"): set(one["properties"]) for one in defined}
    assert {"deepfm", "dlrm", "two_tower"} <= set(nets)
    assert nets["deepfm"] == {"name", "hidden_units", "activation", "batch_norm", "dropout"}
    assert {"type": "string"} in schema["$defs"]["DataConfig"]["properties"]["train"]["oneOf"][0]["anyOf"]
    missing = {name for name in _references(schema) if name not in schema["$defs"]}
    assert not missing


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"].removeprefix("#/$defs/")} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(_references, node.values()))
    return set().union(*map(_references, node)) if isinstance(node, list) else set()


def test_every_config_that_ships_is_right() -> None:
    folder = Path(__file__).parents[1] / "configs"
    runs = [path for path in folder.glob("**/*.yaml") if "\nmodel:" in path.read_text()]  # beside them: published tables, bid.yaml
    assert runs
    for path in runs:
        assert isinstance(load(path), RunConfig), path


def test_the_metrics_one_may_stop_by_are_those_that_training_reports() -> None:
    one_of_each = BinaryRows(torch.tensor([0.0, 1.0]), torch.tensor([0.2, 0.7])).metrics()
    assert set(BINARY_METRICS) == set(one_of_each) - {"calibration_ratio"}  # of which neither more nor less is better


def test_reading_a_config_needs_no_torch() -> None:
    code = "import sys; import torchrec_models.pipelines.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
