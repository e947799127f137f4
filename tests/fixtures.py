"""Generated schemas, batches and net inputs: seeded, vectorised, one builder for all tests (`from fixtures import ...`)."""

from collections.abc import Iterable, Sequence

import torch

from torchrec_models.batch import Batch
from torchrec_models.net import Inputs, InputSpec
from torchrec_models.pipelines.data.rows import BatchBuilder, Rows, list_valued, single_valued
from torchrec_models.schema import Feature, Schema, Table, Task


def categorical(name: str, *, table: str = "", max_len: int = 1, pooling: str = "sum", side: str = "") -> Feature:
    return Feature(name=name, kind="categorical", table=table or name, max_len=max_len, pooling=pooling, side=side)


def numeric(name: str, *, side: str = "") -> Feature:
    return Feature(name=name, kind="numeric", side=side)


def sequence(name: str, *, table: str = "", max_len: int = 5, side: str = "") -> Feature:
    return Feature(name=name, kind="sequence", table=table or name, max_len=max_len, side=side)


def make_schema(
    features: Iterable[Feature],
    *,
    dim: int = 8,
    dims: dict[str, int] | None = None,
    num_rows: int = 12,
    init_std: float = 0.3,
    tasks: Sequence[Task] = (Task(name="click"),),
    candidate_id: str = "",
) -> Schema:
    """A schema whose tables are those that the features read; `dims` gives some of them another width."""
    features = tuple(features)
    names = dict.fromkeys(f.table for f in features if f.table)
    widths = dims or {}
    tables = tuple(Table(name=n, num_rows=num_rows, dim=widths.get(n, dim), init_std=init_std) for n in names)
    return Schema(features=features, tables=tables, tasks=tuple(tasks), candidate_id=candidate_id)


SCHEMAS: dict[str, Schema] = {
    "pooled": make_schema([categorical("a"), categorical("b"), categorical("c")]),
    "pooled_dense": make_schema([numeric("x"), categorical("a"), categorical("b"), numeric("y")]),
    "dense": make_schema([numeric("x"), numeric("y")]),
    "sequence": make_schema([categorical("a"), sequence("h"), categorical("b")]),
    "target_and_history": make_schema([categorical("user"), categorical("item"), sequence("history", table="item"), numeric("x")]),
    "sequence_only": make_schema([sequence("h"), sequence("g", table="h", max_len=3)]),
    "bags": make_schema(
        [categorical("mean", max_len=4, pooling="mean"), categorical("a"), categorical("sum", max_len=3), numeric("x")]
    ),
    "shared": make_schema([categorical("home", table="city"), categorical("a"), categorical("work", table="city", max_len=3)]),
    "tasks": make_schema(
        [categorical("a"), numeric("x"), categorical("b")],
        tasks=[Task(name="click"), Task(name="buy", positive_weight=3.0, loss_weight=0.5), Task(name="price", kind="regression")],
    ),
    "everything": make_schema(
        [
            sequence("history", table="item", max_len=6),
            categorical("user"),
            numeric("x"),
            categorical("liked", table="item", max_len=4, pooling="mean"),
            categorical("tags", table="tag", max_len=3, pooling="mean"),
            sequence("words", max_len=4),
            categorical("item"),
            numeric("y"),
            categorical("top_tag", table="tag"),
        ],
        tasks=[Task(name="click"), Task(name="buy")],
    ),
}

RETRIEVAL_SCHEMA = make_schema(
    [
        categorical("user", side="query"),
        sequence("history", table="item", side="query"),
        numeric("age", side="query"),
        categorical("item", side="candidate"),
        categorical("genres", max_len=3, pooling="mean", side="candidate"),
        numeric("price", side="candidate"),
    ],
    dims={"genres": 4},
    tasks=(),
    candidate_id="item",
)


def make_rows(schema: Schema, num_rows: int, *, seed: int = 0) -> Rows:
    """Random rows: uniform ids, lists of 0 .. max_len ids, normal numbers, 0/1 labels (any number for regression), weights 1."""
    random = torch.Generator().manual_seed(seed)

    def ids(feature: Feature, count: int) -> torch.Tensor:
        return torch.randint(schema.table(feature.table).num_rows, (count,), generator=random, dtype=torch.int32)

    singles = [ids(f, num_rows) for f in single_valued(schema)]
    lists = []
    for feature in list_valued(schema):
        lengths = torch.randint(feature.max_len + 1, (num_rows,), generator=random)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        lists.append((ids(feature, int(offsets[-1])), offsets))
    numbers = torch.randn(num_rows, len(schema.tasks), generator=random)
    binary = torch.tensor([t.kind == "binary" for t in schema.tasks], dtype=torch.bool)
    return Rows(
        dense=torch.randn(num_rows, len(schema.dense), generator=random),
        ids=torch.stack(singles, dim=1) if singles else torch.empty(num_rows, 0, dtype=torch.int32),
        lists=tuple(lists),
        labels=torch.where(binary, (numbers > 0).float(), numbers),
        weights=torch.ones(num_rows, max(len(schema.tasks), 1)),
    )


def as_batch(schema: Schema, rows: Rows) -> Batch:
    return BatchBuilder(schema)(rows, torch.arange(rows.num_rows))


def make_batch(schema: Schema, num_rows: int, *, seed: int = 0) -> Batch:
    return as_batch(schema, make_rows(schema, num_rows, seed=seed))


def make_inputs(spec: InputSpec, num_rows: int, *, first_order: bool, seed: int = 0, dtype: torch.dtype = torch.float32) -> Inputs:
    """What a net of this spec is called with: normal numbers, sequences of 0 .. max_len vectors, zero where padded."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=dtype)

    sequences = {}
    for s in spec.sequences:
        lengths = torch.randint(s.max_len + 1, (num_rows, 1), generator=random)
        mask_BL = torch.arange(s.max_len) < lengths
        sequences[s.name] = (normal(num_rows, s.max_len, s.width) * mask_BL[:, :, None], mask_BL)
    num_first = len(spec.fields) + len(spec.sequences) if first_order else 0
    return Inputs(normal(num_rows, spec.num_dense), normal(num_rows, spec.fields_width), normal(num_rows, num_first), sequences)


def take(inputs: Inputs, index: torch.Tensor) -> Inputs:
    """The rows of `inputs` at `index`."""
    sequences = {name: (values[index], mask[index]) for name, (values, mask) in inputs.sequences.items()}
    return Inputs(inputs.dense_BD[index], inputs.fields_BC[index], inputs.first_order_BF[index], sequences)
