"""`trm inspect`: counts against published ones, closed forms, and the model itself."""

import json

import pytest
from fixtures import SCHEMAS, categorical, make_schema

from torchrec_models.model import build
from torchrec_models.pipelines.cli import main
from torchrec_models.pipelines.config import load
from torchrec_models.pipelines.model_size import inspect_model
from torchrec_models.schema import Schema, Table

# rows per table of BARS frappe_x1: the training split's values and an out-of-vocabulary row
FRAPPE_ROWS = (955, 4083, 8, 8, 3, 4, 3, 10, 81, 234)
CONFIG = """
data: {{train: train.csv, cache: {cache}}}
features:
  user: {{kind: categorical, dim: 8, ids: {{by: hash, buckets: 99}}}}
  hour: {{kind: categorical, dim: 8, ids: {{by: bucketize, boundaries: [6, 12, 18], null: token}}}}
  item: {{kind: categorical, dim: 8{ids}}}
labels: {{click: {{}}}}
model: {{name: deepfm, hidden_units: [16]}}
"""


def frappe() -> Schema:
    base = make_schema([categorical(f"c{i}") for i in range(len(FRAPPE_ROWS))])
    tables = tuple(Table(name=f"c{i}", num_rows=rows, dim=10) for i, rows in enumerate(FRAPPE_ROWS))
    return Schema(features=base.features, tables=tables, tasks=base.tasks)


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [
        ("deepfm", {"hidden_units": (400, 400, 400), "batch_norm": True}, 423_280),
        ("dcnv2", {"hidden_units": (400, 400, 400), "batch_norm": True, "num_layers": 4}, 458_391),
        ("fm", {}, 59_280),
    ],
)
def test_published_counts_of_frappe(name, options, published):
    """The logs behind the BARS leaderboard of frappe_x1 (openbenchmark, ranking/ctr) count these."""
    assert inspect_model(frappe(), name, options).num_parameters == published


@pytest.mark.parametrize("name", ["deepfm", "bst", "feseq", "hstu", "recurrent"])
def test_counts_are_those_of_the_model(name):
    options = {"encoder": {"num_heads": 2}} if name in ("bst", "feseq", "hstu") else {}
    found = inspect_model(SCHEMAS["target_and_history"], name, options)
    model = build(SCHEMAS["target_and_history"], name, options).model
    assert found.num_parameters == sum(p.numel() for p in model.parameters())
    groups = found.groups()
    assert groups["embedding tables"][0] == sum(t.num_rows * t.dim for t in SCHEMAS["target_and_history"].tables)
    assert ("sequence encoder" in groups) == (name != "deepfm")
    assert sum(count for count, _ in groups.values()) == found.num_parameters


def test_flops_and_bytes_of_one_row():
    """An MLP of n inputs, 400 and 1: 2 (400 n + 400); ten lookups of 10 floats."""
    found = inspect_model(frappe(), "dnn", {"hidden_units": (400,)})
    assert found.flops_per_row == 2 * (100 * 400 + 400)
    assert found.lookup_bytes_per_row == 10 * 10 * 4
    assert found.bytes == 4 * found.num_parameters


def test_attention_counts_its_products():
    """Scores and sums over T = 6 tokens of width 16 are 2 * 2 * 6 * 6 * 16; the maps of a block are 6 * 2 * 6 * 16 * 16."""
    with_block, without = (
        inspect_model(SCHEMAS["target_and_history"], "bst", {"encoder": {"num_heads": 2, "num_layers": n}}).flops_per_row
        for n in (2, 1)
    )
    assert with_block - without == 4 * 6 * 6 * 16 + 6 * 2 * 6 * 16 * 16


def test_stored_columns_count_in_bytes_alone():
    schema = make_schema([categorical("a")], dim=5, num_rows=10)
    found = inspect_model(schema, "fm", {}, width_multiple=4)
    assert [(p.num_parameters, p.bytes) for p in found.parts[:2]] == [(50, 10 * 8 * 4), (10, 10 * 4 * 4)]


def test_inspect_without_data_where_sizes_are_in_the_config(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(cache=tmp_path / "none", ids=", ids: {by: identity, num_rows: 50}"))
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {p["name"]: p["num_parameters"] for p in found["parts"] if p["group"] == "embedding tables"} == {
        "user": 800,
        "hour": 6 * 8,
        "item": 400,
    }
    assert found["num_parameters"] == sum(g["num_parameters"] for g in found["groups"].values())
    assert main(["inspect", str(path)]) == 0
    assert f"{found['num_parameters']:,}" in capsys.readouterr().out


@pytest.mark.parametrize("ids", ["", ", ids: {by: hash, margin: 1.5}"])
def test_sizes_that_only_the_data_tells_are_named(tmp_path, capsys, ids):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(cache=tmp_path / "none", ids=ids))
    load(path, [])  # the config itself is right
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert "(item)" in error and "trm prepare" in error
