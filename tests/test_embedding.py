"""Oracle: a Python loop over rows and ids, in float64."""

import pytest
import torch
from fixtures import RETRIEVAL_SCHEMA, SCHEMAS, as_batch, categorical, make_batch, make_rows, make_schema, sequence
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedTensor

from torchrec_models.embedding import FIRST_ORDER, EmbeddingLayer, cut_columns, init_normal, stored_width
from torchrec_models.net import Inputs
from torchrec_models.pipelines.data.rows import Rows, list_valued, single_valued
from torchrec_models.schema import Feature, Schema

MIXED_WIDTHS = make_schema(
    [
        categorical("a"),
        sequence("history", table="item", max_len=4),
        categorical("b", max_len=3),
        categorical("item"),
        categorical("c", table="a"),
        categorical("d", max_len=2, pooling="mean"),
        categorical("seen", table="item", max_len=3, pooling="mean"),
    ],
    dims={"a": 3, "b": 6, "d": 6, "item": 5},
)
ORDERED_TABLES = {**SCHEMAS, "mixed_widths": MIXED_WIDTHS}


def tables_of(layer: EmbeddingLayer) -> dict[str, Tensor]:
    """Table name -> weight, as a parameter."""
    out = {}
    for name, parameter in layer.named_parameters():
        assert name.endswith(".weight")
        out[name.split(".")[-2]] = parameter
    return out


def ids_of(schema: Schema, rows: Rows, feature: Feature, row: int) -> list[int]:
    singles = [f.name for f in single_valued(schema)]
    if feature.name in singles:
        return [int(rows.ids[row, singles.index(feature.name)])]
    values, offsets = rows.lists[[f.name for f in list_valued(schema)].index(feature.name)]
    return values[offsets[row] : offsets[row + 1]].tolist()


def naive(schema: Schema, rows: Rows, weights: dict[str, Tensor], *, first_order: bool, side: str = "") -> Inputs:
    """What the layer should give, one id after the other."""
    features = [f for f in schema.features if not side or f.side == side]
    dense = [i for i, f in enumerate(schema.dense) if f in features]

    def vectors(feature: Feature, row: int, suffix: str = "") -> list[Tensor]:
        width = 1 if suffix else schema.table(feature.table).dim
        return [weights[feature.table + suffix][i, :width].detach().double() for i in ids_of(schema, rows, feature, row)]

    def pooled(feature: Feature, row: int, suffix: str = "", *, pooling: str) -> Tensor:
        width = 1 if suffix else schema.table(feature.table).dim
        found = vectors(feature, row, suffix)
        total = sum(found, torch.zeros(width, dtype=torch.float64))
        return total / max(len(found), 1) if pooling == "mean" else total

    categoricals = [f for f in features if f.kind == "categorical"]
    histories = [f for f in features if f.kind == "sequence"]
    fields, first = [], []
    sequences = {
        f.name: (
            torch.zeros(rows.num_rows, f.max_len, schema.table(f.table).dim, dtype=torch.float64),
            torch.zeros(rows.num_rows, f.max_len, dtype=torch.bool),
        )
        for f in histories
    }
    for row in range(rows.num_rows):
        nothing = [torch.zeros(0, dtype=torch.float64)]
        fields.append(torch.cat(nothing + [pooled(f, row, pooling=f.pooling) for f in categoricals]))
        if first_order:
            of_fields = [pooled(f, row, FIRST_ORDER, pooling=f.pooling) for f in categoricals]
            first.append(torch.cat(nothing + of_fields + [pooled(f, row, FIRST_ORDER, pooling="sum") for f in histories]))
        for f in histories:
            for position, vector in enumerate(vectors(f, row)):
                sequences[f.name][0][row, position] = vector
                sequences[f.name][1][row, position] = True
    first_BF = torch.stack(first) if first_order else torch.zeros(rows.num_rows, 0, dtype=torch.float64)
    return Inputs(rows.dense[:, dense].double(), torch.stack(fields), first_BF, sequences)


def assert_same(found: Inputs, expected: Inputs) -> None:
    for name in ("dense_BD", "fields_BC", "first_order_BF"):
        torch.testing.assert_close(getattr(found, name).double(), getattr(expected, name), atol=1e-6, rtol=1e-6, msg=name)
    assert list(found.sequences) == list(expected.sequences)
    for name, (values, mask) in expected.sequences.items():
        torch.testing.assert_close(found.sequences[name][0].double(), values, atol=1e-6, rtol=1e-6)
        assert torch.equal(found.sequences[name][1], mask)


@pytest.mark.parametrize("width_multiple", [1, 4])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("schema_name", ORDERED_TABLES)
def test_equals_a_loop_over_rows(schema_name, first_order, width_multiple):
    schema = ORDERED_TABLES[schema_name]
    layer = EmbeddingLayer(schema, first_order=first_order, width_multiple=width_multiple)
    rows = make_rows(schema, 9)
    expected = naive(schema, rows, tables_of(layer), first_order=first_order)
    assert_same(layer(as_batch(schema, rows)), expected)


@pytest.mark.parametrize("width_multiple", [1, 8])
def test_each_side_gets_its_own_features(width_multiple):
    layer = EmbeddingLayer(RETRIEVAL_SCHEMA, sides=("query", "candidate"), width_multiple=width_multiple)
    rows = make_rows(RETRIEVAL_SCHEMA, 9)
    sides = layer(as_batch(RETRIEVAL_SCHEMA, rows))
    for side, found in zip(("query", "candidate"), sides, strict=True):
        assert_same(found, naive(RETRIEVAL_SCHEMA, rows, tables_of(layer), first_order=False, side=side))


def test_padding_columns_change_nothing_and_learn_nothing():
    """Stored widths rounded up to 4: same outputs and gradients as without, and zero padding columns with zero gradients."""
    narrow = EmbeddingLayer(MIXED_WIDTHS, first_order=True)
    wide = EmbeddingLayer(MIXED_WIDTHS, first_order=True, width_multiple=4)
    narrow_tables, wide_tables = tables_of(narrow), tables_of(wide)
    assert list(narrow_tables) == list(wide_tables)
    for name, weight in wide_tables.items():
        assert weight.shape[1] % 4 == 0
        width = narrow_tables[name].shape[1]
        assert not weight[:, width:].any() and weight[:, :width].all()
        narrow_tables[name].data.copy_(weight[:, :width])
    batch = make_batch(MIXED_WIDTHS, 32)
    for layer in (narrow, wide):
        out = layer(batch)
        history = out.sequences["history"][0]
        (out.fields_BC.square().sum() + out.first_order_BF.square().sum() + history.square().sum()).backward()
    assert_same(wide(batch), Inputs(*(_double(x) for x in narrow(batch))))
    for name, weight in wide_tables.items():
        width = narrow_tables[name].shape[1]
        torch.testing.assert_close(weight.grad[:, :width], narrow_tables[name].grad)
        assert not weight.grad[:, width:].any()


def _double(x):
    return x.double() if isinstance(x, Tensor) else {name: (values.double(), mask) for name, (values, mask) in x.items()}


def test_empty_lists_give_zeros():
    schema = SCHEMAS["everything"]
    rows = make_rows(schema, 3)
    no_ids = tuple((values[:0], torch.zeros_like(offsets)) for values, offsets in rows.lists)
    rows = Rows(rows.dense, rows.ids, no_ids, rows.labels, rows.weights)
    layer = EmbeddingLayer(schema, first_order=True)
    out = layer(as_batch(schema, rows))
    fields = dict(zip([f.name for f in schema.categorical], out.fields_BC.split(8, dim=1)))
    assert not fields["liked"].any() and not fields["tags"].any() and fields["item"].all()
    for values, mask in out.sequences.values():
        assert not values.any() and not mask.any()
    assert not out.first_order_BF[:, len(schema.categorical) :].any()


def test_without_tables():
    schema = SCHEMAS["dense"]
    layer = EmbeddingLayer(schema)
    out = layer(make_batch(schema, 4))
    assert out.dense_BD.shape == (4, 2) and out.fields_BC.shape == (4, 0) and out.sequences == {}
    assert layer.tables == () and not list(layer.parameters())


def test_tables_are_listed_and_initialised():
    schema = make_schema([categorical("a"), sequence("h")], num_rows=4000, init_std=0.5)
    layer = EmbeddingLayer(schema, first_order=True)
    assert [(t.name, t.dim) for t in layer.tables] == [("a", 8), ("h", 8), ("a_first_order", 1), ("h_first_order", 1)]
    weights = tables_of(layer)
    assert {t.name for t in layer.tables} == set(weights)
    for weight in weights.values():
        assert abs(weight.mean()) < 5 * 0.5 / weight.numel() ** 0.5
        assert abs(weight.std() / 0.5 - 1) < 5 / weight.numel() ** 0.5


def test_two_poolings_of_one_table_are_refused():
    schema = make_schema(
        [
            categorical("tags", table="t", max_len=3, pooling="mean"),
            categorical("words", table="t", max_len=3),
            categorical("top", table="t"),
        ]
    )
    with pytest.raises(ValueError, match=r"table 't' is pooled in two ways \(tags: mean, words: sum\)"):
        EmbeddingLayer(schema)


def test_cut_columns_whatever_the_order_of_keys():
    widths = {"a": 2, "b": 1, "c": 3, "d": 1, "e": 2}
    columns = {key: torch.randn(4, width) for key, width in widths.items()}
    stretches = [("a", "b", "c"), ("e", "d")]
    for order in ("abcde", "cabed", "edcba", "baced"):
        pooled = KeyedTensor(list(order), [widths[k] for k in order], torch.cat([columns[k] for k in order], dim=1))
        found = cut_columns(pooled, stretches)
        for stretch in stretches:
            assert torch.equal(found[stretch], torch.cat([columns[k] for k in stretch], dim=1))


def test_cut_columns_makes_no_copy_of_neighbours():
    pooled = KeyedTensor(["a", "b", "c", "d"], [2, 2, 1, 1], torch.randn(4, 6))
    found = cut_columns(pooled, [("a", "b"), ("c", "d")])
    assert found["a", "b"].data_ptr() == pooled.values().data_ptr()
    assert found["c", "d"].data_ptr() == pooled.values()[:, 4:].data_ptr()


def test_stored_width_and_init():
    assert [stored_width(w, 4) for w in (1, 4, 10)] == [4, 4, 12] and stored_width(10, 1) == 10
    weight = init_normal(torch.full((50, 4), 9.0), width=3, std=2.0)
    assert not weight[:, 3].any() and 1 < weight[:, :3].std() < 3


@pytest.mark.parametrize("name", sorted(n for n, schema in SCHEMAS.items() if schema.tables))
def test_whole_tables_give_what_torchrec_gives(name: str) -> None:
    """`WholeTableBags` against EmbeddingBagCollection: the same state keys, outputs and dense gradients."""
    schema = SCHEMAS[name]
    batch = make_batch(schema, 17, seed=5)
    ours, theirs = (EmbeddingLayer(schema, first_order=True, whole_tables=whole) for whole in (True, False))
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        inputs = layer(batch)
        (inputs.fields_BC.square().sum() + inputs.first_order_BF.sum()).backward()
        results.append((inputs, {k: p.grad for k, p in layer.named_parameters()}))
    (a, grads_a), (b, grads_b) = results
    torch.testing.assert_close(a.fields_BC, b.fields_BC)
    torch.testing.assert_close(a.first_order_BF, b.first_order_BF)
    torch.testing.assert_close(grads_a, grads_b)
