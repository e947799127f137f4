import json

import pytest
from fixtures import RETRIEVAL_SCHEMA, SCHEMAS, categorical, make_schema, numeric, sequence

from torchrec_models.net import FieldSpec, InputSpec, SequenceSpec
from torchrec_models.schema import Feature, Schema, Table, Task

EVERYTHING = SCHEMAS["everything"]


def names(features) -> list[str]:
    return [f.name for f in features]


def test_groups_are_in_schema_order():
    assert names(EVERYTHING.dense) == ["x", "y"]
    assert names(EVERYTHING.categorical) == ["user", "liked", "tags", "item", "top_tag"]
    assert names(EVERYTHING.sequences) == ["history", "words"]
    assert names(EVERYTHING.pooled) == ["user", "tags", "top_tag"]
    assert names(EVERYTHING.jagged) == ["history", "liked", "words", "item"]  # what reads the table of a sequence goes with it
    assert EVERYTHING.sequence_tables == {"item", "words"}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_every_feature_reaches_the_batch_once(schema):
    assert sorted(names((*schema.dense, *schema.pooled, *schema.jagged))) == sorted(names(schema.features))


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), RETRIEVAL_SCHEMA])
def test_survives_json(schema):
    again = Schema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema and again.fingerprint() == schema.fingerprint()
    assert again.table(again.tables[0].name) == schema.tables[0] if schema.tables else not again.tables


def test_fingerprint_changes_with_everything():
    def variant(*, name="a", pooling="sum", max_len=2, num_rows=12, dim=8, std=0.3, task="click", weight=1.0, candidate=""):
        features = [categorical(name, table="t", max_len=max_len, pooling=pooling), categorical("c", side="candidate")]
        tables = (Table(name="t", num_rows=num_rows, dim=dim, init_std=std), Table(name="c", num_rows=3, dim=dim))
        tasks = (Task(name=task, loss_weight=weight),)
        return Schema(features=tuple(features), tables=tables, tasks=tasks, candidate_id=candidate).fingerprint()

    changes = [
        {},
        {"name": "b"},
        {"pooling": "mean"},
        {"max_len": 3},
        {"num_rows": 13},
        {"dim": 9},
        {"std": 0.2},
        {"task": "buy"},
        {"weight": 2.0},
        {"candidate": "c"},
    ]
    assert len({variant(**change) for change in changes}) == len(changes)
    assert len(variant()) == 16 and int(variant(), 16) >= 0
    order = [categorical("a"), categorical("b")]
    assert make_schema(order).fingerprint() != make_schema(order[::-1]).fingerprint()


def test_fingerprint_does_not_change_between_versions():
    """A checkpoint of today is compared with a schema of tomorrow."""
    assert make_schema([categorical("a"), numeric("x"), sequence("h")]).fingerprint() == "dcab97ae84ce28f4"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_schema([numeric("a"), numeric("a")]), "feature names used twice: a"),
        (lambda: make_schema([numeric("a")], tasks=[Task(name="t"), Task(name="t")]), "task names used twice: t"),
        (
            lambda: Schema(features=(categorical("a"),), tables=(Table(name="a", num_rows=1, dim=1),) * 2),
            "table names used twice: a",
        ),
        (lambda: Schema(features=(categorical("a"),)), "tables that do not exist: a"),
        (lambda: Schema(features=(numeric("a"),), tables=(Table(name="t", num_rows=1, dim=1),)), "never be trained: t"),
        (lambda: Feature(name="a", kind="numeric", table="t"), "'a' is numeric and cannot read a table"),
        (lambda: Feature(name="a", kind="categorical"), "'a' is categorical and needs a table"),
        (lambda: Feature(name="a", kind="sequence", table="t", max_len=0), "max_len must be >= 1, got 0"),
        (lambda: Feature(name="a@b", kind="numeric"), "'@' is reserved"),
        (lambda: Table(name="a.b", num_rows=1, dim=1), "'.' and '@' are reserved"),
        (lambda: Table(name="a", num_rows=0, dim=1), "num_rows and dim must be >= 1, got 0 x 1"),
        (lambda: Table(name="a", num_rows=1, dim=0), "num_rows and dim must be >= 1, got 1 x 0"),
        (lambda: Task(name="t", positive_weight=0), "weights must be > 0"),
        (lambda: Task(name="t", loss_weight=-1), "weights must be > 0"),
        (lambda: Task(name="t", kind="regression", positive_weight=2), "no positive rows to weigh"),
        (lambda: make_schema([categorical("a")], candidate_id="b"), "candidate_id 'b' must name"),
        (lambda: make_schema([categorical("a")], candidate_id="a"), "side: candidate"),
        (lambda: make_schema([categorical("a", max_len=2, side="candidate")], candidate_id="a"), "single-valued"),
        (lambda: EVERYTHING.feature("itme"), "no feature 'itme'; there are: history, user"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_input_spec():
    spec = InputSpec.from_schema(EVERYTHING)
    assert spec.dense == ("x", "y") and spec.num_dense == 2 and spec.num_tasks == 2
    assert spec.fields == tuple(FieldSpec(name, 8) for name in ("user", "liked", "tags", "item", "top_tag"))
    assert spec.sequences == (SequenceSpec("history", 8, 6, ("liked", "item")), SequenceSpec("words", 8, 4, ()))
    assert spec.fields_width == 40 and spec.uniform_width("net") == 8


def test_input_spec_of_one_side():
    query = InputSpec.from_schema(RETRIEVAL_SCHEMA, side="query")
    assert query.dense == ("age",) and [f.name for f in query.fields] == ["user"]
    assert query.sequences == (SequenceSpec("history", 8, 5, ()),)  # the target is on the other side
    candidate = InputSpec.from_schema(RETRIEVAL_SCHEMA, side="candidate")
    assert candidate.fields == (FieldSpec("item", 8), FieldSpec("genres", 4)) and candidate.fields_width == 12
    with pytest.raises(ValueError, match="needs the same dim for every feature, got item of width 8, genres of width 4"):
        candidate.uniform_width("DeepFM")
