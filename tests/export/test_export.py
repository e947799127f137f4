"""What an export must give: PyTorch's answers, from a graph of plain ONNX operators, or no bundle at all."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from bundle_cases import (
    CLICK_SCHEMA,
    click_rows,
    click_transforms,
    export_model,
    identity_rows,
    identity_transforms,
    make_model,
)
from fixtures import RETRIEVAL_SCHEMA, SCHEMAS, as_batch, categorical, make_rows, make_schema, numeric

from torchrec_models.embedding import EmbeddingLayer
from torchrec_models.model import build
from torchrec_models.pipelines.data.ids import Vocabulary
from torchrec_models.pipelines.data.loader import to_batch
from torchrec_models.pipelines.export.export import export
from torchrec_models.pipelines.export.graph import FlatEmbedding, flat_table, table_weights
from torchrec_models.pipelines.export.parity import ParityError
from torchrec_models.pipelines.serving.bundle import Bundle
from torchrec_models.pipelines.serving.slots import SlotLayout
from torchrec_models.schema import Task

MIXED_WIDTHS = make_schema(
    [categorical("a"), categorical("b", max_len=3, pooling="mean"), numeric("x"), categorical("c"), categorical("d", max_len=2)],
    dims={"b": 3, "c": 5, "d": 3},
)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("width_multiple", [1, 4])
@pytest.mark.parametrize("name", [*SCHEMAS, "mixed_widths", "retrieval"])
def test_flat_embedding_gives_the_inputs_of_the_embedding_layer(name, width_multiple, first_order):
    schema = {**SCHEMAS, "mixed_widths": MIXED_WIDTHS, "retrieval": RETRIEVAL_SCHEMA}[name]
    sides = ("query", "candidate") if name == "retrieval" else ("",)
    torch.manual_seed(0)
    layer = EmbeddingLayer(
        schema, first_order=first_order, width_multiple=width_multiple, sides=sides if name == "retrieval" else ()
    )
    transforms = identity_transforms(schema)
    encoded = transforms.encode(identity_rows(schema, 9))
    expected = layer(to_batch(schema, encoded))
    for side, wanted in zip(sides, expected if name == "retrieval" else [expected]):
        layout = SlotLayout.from_schema(schema, side=side)
        found = FlatEmbedding(layer, layout, side=side)(torch.from_numpy(layout.fill(encoded)), wanted.dense_BD)
        torch.testing.assert_close(found.fields_BC, wanted.fields_BC)
        torch.testing.assert_close(found.first_order_BF, wanted.first_order_BF)
        assert list(found.sequences) == list(wanted.sequences)
        for key, (values, mask) in wanted.sequences.items():
            torch.testing.assert_close(found.sequences[key][0], values)
            assert torch.equal(found.sequences[key][1], mask)


def test_flat_table_starts_with_zeros_and_has_no_padding_columns():
    schema = make_schema([categorical("a"), categorical("b")], dim=6)
    model = make_model(schema, "deepfm", width_multiple=4)
    slots = SlotLayout.from_schema(schema).slots
    weights = table_weights(model.embedding)
    table = flat_table(schema, weights, slots, first_order=True)
    assert table.shape == (1 + 12 + 12, 1 + 6)
    assert not table[0].any()
    assert torch.equal(table[13:, 1:], weights["b"][:, :6])
    assert torch.equal(table[1:13, 0], weights["a_first_order"][:, 0])


@pytest.mark.parametrize("width_multiple", [1, 4])
@pytest.mark.parametrize("net", ["deepfm", "dlrm"])
@pytest.mark.parametrize("name", ["everything", "tasks"])
def test_bundle_answers_as_pytorch(name, net, width_multiple, tmp_path):
    schema = SCHEMAS[name]
    model = make_model(schema, net, width_multiple=width_multiple)
    rows = identity_rows(schema, 60)
    report = export_model(model, identity_transforms(schema), rows, tmp_path / "bundle")
    assert report.num_rows == 60
    assert report.max_difference <= 1e-6
    bundle = Bundle(tmp_path / "bundle")
    other = make_rows(schema, 40, seed=7)
    with torch.no_grad():
        logits = model(as_batch(schema, other))
    binary = torch.tensor([t.kind == "binary" for t in schema.tasks])
    expected = torch.where(binary, logits.sigmoid(), logits).numpy()
    raw = identity_rows(schema, 40, seed=7)
    for size in (1, 3, 40):
        found = np.concatenate([bundle.predict(raw.slice(i, size)) for i in range(0, 40, size)])
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert expected.std() > 1e-3, "answers that hardly vary compare nothing"


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(make_schema([categorical("a")]), id="one_field"),
        pytest.param(SCHEMAS["sequence_only"], id="sequences_only"),
        pytest.param(SCHEMAS["pooled"], id="no_dense"),
    ],
)
def test_models_without_some_kind_of_input(schema, tmp_path):
    report = export_model(make_model(schema, "deepfm"), identity_transforms(schema), identity_rows(schema, 10), tmp_path / "b")
    assert report.max_difference <= 1e-6
    assert Bundle(tmp_path / "b").graphs["model"].inputs == ["ids"]


def test_graph_is_plain_onnx_with_one_gather_of_the_table_and_a_free_batch_size(tmp_path):
    model = make_model(CLICK_SCHEMA, "deepfm")
    export_model(model, click_transforms(), click_rows(20), tmp_path / "bundle")
    graph = onnx.load(tmp_path / "bundle/model.onnx")
    assert {(o.domain, o.version) for o in graph.opset_import} == {("", 20)}
    assert {n.domain for n in graph.graph.node} == {""}
    assert not {"Loop", "If", "Scan", "SequenceAt"} & {n.op_type for n in graph.graph.node}
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.graph.input}
    (batch,) = {shape[0] for shape in shapes.values()}
    assert isinstance(batch, str)
    assert shapes == {"ids": [batch, 1 + 4 + 1 + 5 + 1 + 3], "dense": [batch, 2]}
    table_rows = 1 + sum(t.num_rows for t in CLICK_SCHEMA.tables)
    tables = [i.name for i in graph.graph.initializer if list(i.dims) == [table_rows, 8 + 1]]
    assert len(tables) == 1
    assert sum(n.op_type == "Gather" and n.input[0] == tables[0] for n in graph.graph.node) == 1


def test_raw_rows_of_every_kind(tmp_path):
    report = export_model(make_model(CLICK_SCHEMA, "dlrm"), click_transforms(), click_rows(300), tmp_path / "bundle")
    assert (report.num_rows, report.tolerance) == (300, 1e-5)
    assert 0 <= report.mean_difference <= report.max_difference <= 1e-6
    assert str(report).startswith("300 rows: max difference ")


def test_parity_is_checked_on_at_most_parity_rows(tmp_path):
    click_transforms().save(tmp_path / "t")
    report = export(
        make_model(CLICK_SCHEMA, "dlrm"), schema=CLICK_SCHEMA, transforms_folder=tmp_path / "t", rows=click_rows(50),
        out=tmp_path / "b", config_text="", metrics={}, parity_rows=30,
    )  # fmt: skip
    assert report.num_rows == 30


class Forgetful(torch.nn.Module):
    """A net that answers otherwise in eager mode than in its exported graph."""

    def __init__(self, net, broken):
        super().__init__()
        self.net, self.broken = net, broken

    def forward(self, inputs):
        logits = self.net(inputs)
        return logits if torch.compiler.is_compiling() else self.broken(logits)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        pytest.param(lambda x: x + 1e-3, "allowed 1e-05", id="another_value"),
        pytest.param(lambda x: x * float("nan"), "PyTorch nan", id="nan"),
        pytest.param(lambda x: x + 1e-3 * (torch.arange(len(x)) == 41)[:, None], "row 42 of 60", id="one_row"),
    ],
)
def test_a_graph_that_differs_is_refused(broken, said, tmp_path):
    model = make_model(CLICK_SCHEMA, "deepfm")
    model.net = Forgetful(model.net, broken).eval()
    with pytest.raises(ParityError, match=said):
        export_model(model, click_transforms(), click_rows(60), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert (tmp_path / "bundle.rejected/model.onnx").exists()
    with pytest.raises(ValueError, match="not a bundle"):
        Bundle(tmp_path / "bundle.rejected")


def test_nan_weights_are_refused(tmp_path):
    model = make_model(CLICK_SCHEMA, "deepfm")
    with torch.no_grad():
        next(model.net.parameters()).fill_(float("nan"))
    with pytest.raises(ParityError, match="answers nan"):
        export_model(model, click_transforms(), click_rows(5), tmp_path / "bundle")


def test_manifest_says_what_and_where_from(tmp_path):
    export_model(make_model(CLICK_SCHEMA, "deepfm"), click_transforms(), click_rows(20), tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_text())
    assert manifest["kind"] == "ranker" and manifest["net"] == "DeepFM"
    assert manifest["schema"] == json.loads(json.dumps(CLICK_SCHEMA.to_dict()))
    assert manifest["metrics"] == {"test": {"auc": 0.75, "gauc": None}}
    assert manifest["source"] == {"run": "runs/toy", "step": 12}
    assert manifest["parity"]["num_rows"] == 20
    assert {"torch", "onnxruntime", "python"} <= set(manifest["versions"])
    on_disk = {p.relative_to(tmp_path / "bundle").as_posix() for p in (tmp_path / "bundle").rglob("*") if p.is_file()}
    assert on_disk == {*manifest["files"], "manifest.json"}
    assert {"model.onnx", "transforms.json", "vocabularies/tag.arrow", "examples.json", "config.yaml"} <= on_disk
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "bundle-transforms"], "nothing is left beside the bundle"


def test_a_bundle_is_replaced_only_on_request(tmp_path):
    rows, transforms, out = click_rows(10), click_transforms(), tmp_path / "bundle"
    export_model(make_model(CLICK_SCHEMA, "deepfm"), transforms, rows, out)
    before = Bundle(out).version
    with pytest.raises(ValueError, match="exists already"):
        export_model(make_model(CLICK_SCHEMA, "deepfm", seed=1), transforms, rows, out)
    assert Bundle(out).version == before
    export_model(make_model(CLICK_SCHEMA, "deepfm", seed=1), transforms, rows, out, overwrite=True)
    assert Bundle(out).version != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "bundle-transforms"]


def test_what_is_no_bundle_is_never_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a bundle and will not be overwritten"):
        export_model(make_model(CLICK_SCHEMA, "deepfm"), click_transforms(), click_rows(5), tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos/one.txt").read_text() == "mine"


def test_a_failed_replacement_leaves_the_old_bundle(tmp_path):
    rows, transforms, out = click_rows(10), click_transforms(), tmp_path / "bundle"
    export_model(make_model(CLICK_SCHEMA, "deepfm"), transforms, rows, out)
    before = Bundle(out).version
    model = make_model(CLICK_SCHEMA, "deepfm")
    model.net = Forgetful(model.net, lambda x: x + 1).eval()
    with pytest.raises(ParityError):
        export_model(model, transforms, rows, out, overwrite=True)
    assert Bundle(out).version == before


def test_an_export_that_fails_leaves_nothing(tmp_path):
    transforms = click_transforms()
    transforms.save(tmp_path / "t")
    with pytest.raises(TypeError, match="not JSON serializable"):
        export(
            make_model(CLICK_SCHEMA, "dlrm"), schema=CLICK_SCHEMA, transforms_folder=tmp_path / "t", rows=click_rows(5),
            out=tmp_path / "b", config_text="", metrics={"auc": object()},
        )  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_transforms_of_another_schema_and_no_rows_are_refused(tmp_path):
    other = make_schema([categorical("a")])
    with pytest.raises(ValueError, match="at least one raw row"):
        export_model(make_model(CLICK_SCHEMA, "deepfm"), click_transforms(), click_rows(0), tmp_path / "b")
    identity_transforms(other).save(tmp_path / "t")
    with pytest.raises(ValueError, match="fitted for another schema"):
        export(
            make_model(CLICK_SCHEMA, "deepfm"), schema=CLICK_SCHEMA, transforms_folder=tmp_path / "t", rows=click_rows(5),
            out=tmp_path / "b", config_text="", metrics={},
        )  # fmt: skip


def test_a_vocabulary_larger_than_its_table_is_refused(tmp_path):
    transforms = click_transforms()
    tables = transforms.tables | {"tag": Vocabulary(null="oov", values=pa.array([f"t{i}" for i in range(99)]))}
    with pytest.raises(ValueError, match="vocabularies of tag have another size than the schema says"):
        export_model(make_model(CLICK_SCHEMA, "dlrm"), replace(transforms, tables=tables), click_rows(5), tmp_path / "b")


def test_weights_beyond_protobuf_go_to_a_file_of_their_own(tmp_path, monkeypatch):
    from torch.onnx._internal.exporter import _onnx_program

    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
    report = export_model(make_model(CLICK_SCHEMA, "deepfm"), click_transforms(), click_rows(20), tmp_path / "bundle")
    assert report.max_difference <= 1e-6
    bundle = Bundle(tmp_path / "bundle")
    assert "model.onnx.data" in bundle.manifest["files"]
    bundle.self_test()


@pytest.mark.parametrize("cosine", [True, False])
def test_two_tower_gives_two_graphs_that_know_only_their_side(cosine, tmp_path):
    schema = RETRIEVAL_SCHEMA
    torch.manual_seed(0)
    options = {"out_width": 4, "query": {"hidden_units": (8,)}, "candidate": {"hidden_units": (8,)}, "cosine": cosine}
    model = build(schema, "two_tower", options, width_multiple=4).model.eval()
    rows = identity_rows(schema, 30)
    report = export_model(model, identity_transforms(schema), rows, tmp_path / "bundle")
    assert report.max_difference <= 1e-6
    bundle = Bundle(tmp_path / "bundle")
    with torch.no_grad():
        query, candidate = model(as_batch(schema, make_rows(schema, 30)))
    sides = {side: [f.name for f in schema.features if f.side == side] for side in ("query", "candidate")}
    np.testing.assert_allclose(bundle.encode(rows.select(sides["query"]), side="query"), query, atol=1e-6)
    np.testing.assert_allclose(bundle.encode(rows.select(sides["candidate"]).to_pylist(), side="candidate"), candidate, atol=1e-6)
    bundle.self_test()
    with pytest.raises(ValueError, match="a retriever has no graph 'model'; use encode"):
        bundle.predict(rows)


def test_regression_tolerance_is_relative_above_one(tmp_path):
    schema = make_schema([categorical("a"), numeric("x")], tasks=[Task(name="price", kind="regression")])
    model = make_model(schema, "deepfm")
    with torch.no_grad():
        for p in model.net.parameters():
            p.mul_(30)
    x = pa.array(np.linspace(-1e4, 1e4, 50, dtype=np.float32))
    rows = pa.table({"a": identity_rows(schema, 50)["a"], "x": x})
    report = export_model(model, identity_transforms(schema), rows, tmp_path / "b")
    largest = np.abs(Bundle(tmp_path / "b").predict(rows)).max()
    assert largest > 1e5
    assert report.max_difference < 1e-5 < largest * report.max_difference, "as absolute differences these would be refused"
