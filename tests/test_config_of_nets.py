"""Nets inside nets, and task weights, as a config says them: mistakes with their path, the nearest name, and the way out."""

import json
from typing import Any

import pytest

from torchrec_models.pipelines.config import ConfigError, RunConfig, json_schema, parse

LEARNT = "has no effect with train.task_weighting.kind: uncertainty (the weights are learnt); leave it out"
LABELS = {"click": {}, "buy": {}, "watch": {"kind": "regression"}}


def raw(model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {
        "data": {"train": "train.parquet", "cache": "cache"},
        "features": {"user": {"kind": "categorical"}, "item": {"kind": "categorical"}, "age": {"kind": "numeric"}},
        "labels": LABELS,
        "model": model,
        **sections,
    }


def problems(model: dict[str, Any], **sections: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse(raw(model, **sections))
    return error.value.problems


def test_nets_inside_nets_are_read() -> None:
    model = {"name": "esmm", "share": True, "funnel": ["click", "buy"], "net": {"name": "ple", "expert": {"name": "deepfm"}}}
    assert isinstance(parse(raw(model)), RunConfig)
    assert json.loads(parse(raw(model)).model_dump_json())["model"] == model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            {"name": "mmoe", "expert": {"name": "dcnv2", "num_layer": 2}, "num_expert": 3},
            [
                "model.expert.num_layer: unknown key (given 2); did you mean 'num_layers'? Allowed here:",
                "model.num_expert: unknown key (given 3); did you mean 'num_experts'? Allowed here:",
            ],
        ),
        ({"name": "mmoe", "expert": {"name": "dcnv22"}}, ["model.expert.name: given 'dcnv22'; allowed:"]),
        ({"name": "mmoe", "expert": {"hidden_units": [3]}}, ["model.expert.name: required, and not given; allowed:"]),
        ({"name": "mmoe", "expert": {}}, ["model.expert.name: required, and not given"]),
        ({"name": "mmoe", "expert": {"name": "two_tower"}}, ["model.expert.name: given 'two_tower'; allowed:"]),
        ({"name": "mmoe", "expert": "dcnv2"}, ["model.expert: given 'dcnv2'; must be a section"]),
        (
            {"name": "esmm", "net": {"name": "mmoe", "expert": {"name": "deepfm", "dropout": 2}}},
            ["model.net.expert.dropout: given 2; must be less than 1"],
        ),
        (
            {"name": "esmm", "net": {"name": "mmoe", "expert": {"name": "dep_fm"}}},
            ["model.net.expert.name: given 'dep_fm'; allowed:"],
        ),
        ({"name": "esmm"}, ["model: funnel: watch is a regression, and ESMM multiplies probabilities; name the binary labels"]),
        ({"name": "dbmtl", "relations": {"buy": ["clik"]}}, ["model: relations: no label 'clik'; there are: click, buy, watch"]),
        ({"name": "dbmtl", "relations": {"buy": "click"}}, ["model.relations.buy: given 'click'; must be a list"]),
        (
            {"name": "shared_bottom", "bottom": {"name": "qnn_alpha"}},
            ["model: SelfEnsemble is for binary labels, and these are regressions: watch"],
        ),
    ],
)
def test_mistakes_inside_nets(model: dict[str, Any], expected: list[str]) -> None:
    found = problems(model)
    assert len(found) == len(expected)
    for problem, start in zip(sorted(found), sorted(expected)):
        assert problem.startswith(start)


def test_one_label_is_too_few() -> None:
    assert problems({"name": "mmoe"}, labels={"click": {}}) == [
        "model: MMoE needs at least two labels; for one, take model.name: dnn"
    ]


@pytest.mark.parametrize(
    ("weighting", "labels", "expected"),
    [
        (
            {"kind": "uncertainty", "schedules": {"buy": {"from_weight": 0, "to_step": 5}}},
            {**LABELS, "buy": {"loss_weight": 2}},
            [
                f"labels.buy.loss_weight: {LEARNT}",
                f"train.task_weighting.schedules: {LEARNT}",
            ],
        ),
        (
            {"schedules": {"by": {"from_weight": 0, "to_step": 5}}},
            LABELS,
            ["train.task_weighting.schedules.by: no such label; there are: click, buy, watch; did you mean 'buy'?"],
        ),
        (
            {"schedules": {"buy": {"kind": "geometric", "from_weight": 0, "from_step": 5, "to_step": 5}}},
            LABELS,
            [
                "train.task_weighting.schedules.buy.from_weight: given 0; "
                "a geometric schedule starts above 0, or take kind: linear",
                "train.task_weighting.schedules.buy.to_step: given 5; must come after from_step, 5",
            ],
        ),
        (
            {"schedules": {"buy": {"from_weight": 1, "to_step": 5}}},
            LABELS,
            ["train.task_weighting.schedules.buy: has no effect, from_weight is the label's loss_weight; leave it out"],
        ),
        (
            {"kind": "uncertainty"},
            {"click": {}},
            ["train.task_weighting.kind: has no effect without several labels; leave it out"],
        ),
        (
            {"schedules": {"buy": {"from_weight": 0, "kind": "lineer", "to_step": 5}}},
            LABELS,
            ["train.task_weighting.schedules.buy.kind: given 'lineer'; allowed: linear, cosine, geometric; did you mean 'linear'?"],
        ),
    ],
)
def test_task_weights_that_make_no_sense(weighting: dict[str, Any], labels: dict[str, Any], expected: list[str]) -> None:
    model = {"name": "dnn"}
    assert sorted(problems(model, labels=labels, train={"task_weighting": weighting})) == expected


def test_the_json_schema_completes_nets_inside_nets() -> None:
    schema = json_schema()

    def at(reference: dict[str, str]) -> dict[str, Any]:
        return schema["$defs"][reference["$ref"].removeprefix("#/$defs/")]

    def net(any_net: dict[str, Any], name: str) -> dict[str, Any]:
        return next(found for found in map(at, any_net["anyOf"]) if found["properties"]["name"] == {"const": name})

    esmm = net(schema["properties"]["model"], "esmm")
    mmoe = net(at(esmm["properties"]["net"]), "mmoe")
    dcnv2 = net(at(mmoe["properties"]["expert"]), "dcnv2")
    assert {"num_layers", "hidden_units"} <= set(dcnv2["properties"]) and dcnv2["additionalProperties"] is False
    inner = [reference["$ref"] for reference in at(mmoe["properties"]["expert"])["anyOf"]]
    assert "#/$defs/net.two_tower" not in inner and "#/$defs/net.mmoe" in inner
    assert {"$ref": "#/$defs/net.two_tower"} in schema["properties"]["model"]["anyOf"]
