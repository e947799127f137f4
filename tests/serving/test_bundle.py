"""A bundle answers raw rows exactly, refuses altered files and bad rows by name, and needs neither torch nor pydantic."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pytest
import torch
from bundle_cases import CLICK_SCHEMA, click_rows, click_transforms, export_model, make_model

import torchrec_models
from torchrec_models.pipelines.data.loader import to_batch
from torchrec_models.pipelines.export.graph import predictions
from torchrec_models.pipelines.serving.bundle import Bundle, scaled_difference
from torchrec_models.pipelines.serving.bundle_files import blake2b, read_manifest

ROWS = click_rows(40, seed=5)
ROW = {
    "device": "phone",
    "age": 33,
    "tags": "t1|t2",
    "item": 101,
    "history": [100, 103],
    "top_tag": "t1",
    "site": ["a.example"],
    "price": 2.5,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "click"
    export_model(make_model(CLICK_SCHEMA, "deepfm"), click_transforms(), click_rows(50), out)
    return out


@pytest.fixture(scope="module")
def bundle(exported):
    return Bundle(exported)


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.fixture(scope="module")
def expected():
    with torch.no_grad():
        logits = make_model(CLICK_SCHEMA, "deepfm")(to_batch(CLICK_SCHEMA, click_transforms().encode(ROWS)))
    return predictions(logits, CLICK_SCHEMA.tasks).numpy()


def as_dicts(rows: pa.Table) -> list[dict]:
    return rows.drop_columns(["label"]).to_pylist()


def test_tables_and_dicts_get_pytorchs_answers(bundle, expected):
    for rows in (ROWS, ROWS.to_batches()[0], as_dicts(ROWS)):
        found = bundle.predict(rows)
        assert found.dtype == np.float32 and found.shape == (40, 2)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert bundle.tasks == ("click", "spend")
    assert expected.std(axis=0).min() > 1e-3


def test_a_rows_answer_does_not_depend_on_its_neighbours(bundle, expected):
    dicts = as_dicts(ROWS)
    np.testing.assert_allclose(np.concatenate([bundle.predict([row]) for row in dicts]), expected, atol=1e-6)
    np.testing.assert_allclose(bundle.predict(dicts[::-1]), expected[::-1], atol=1e-6)


def test_long_inputs_are_cut_and_streams_go_on(exported, bundle, expected):
    small = Bundle(exported, batch_rows=7, num_threads=2)
    np.testing.assert_allclose(small.predict(ROWS), expected, atol=1e-6)
    streamed = list(bundle.predict_batches([ROWS.slice(0, 10), as_dicts(ROWS.slice(10, 1)), ROWS.slice(11)]))
    assert [len(part) for part in streamed] == [10, 1, 29]
    np.testing.assert_allclose(np.concatenate(streamed), expected, atol=1e-6)


def test_no_rows(bundle):
    assert bundle.predict([]).shape == (0, 2)
    assert bundle.predict(ROWS.slice(0, 0)).shape == (0, 2)


def test_missing_keys_are_missing_values(bundle):
    table = pa.table({k: [v] for k, v in ROW.items()})
    for name in ("device", "age", "tags", "history", "top_tag", "site"):
        left_out = {k: v for k, v in ROW.items() if k != name}
        as_null = table.set_column(table.column_names.index(name), name, pa.nulls(1, table.schema.field(name).type))
        np.testing.assert_array_equal(bundle.predict([left_out]), bundle.predict(as_null))
        assert not np.array_equal(bundle.predict([left_out]), bundle.predict([ROW])), f"{name} has no effect on this row"


@pytest.mark.parametrize(
    ("change", "same_as"),
    [
        pytest.param({"item": 101.0}, {"item": 101}, id="whole_float"),
        pytest.param({"item": "101"}, {"item": 101}, id="digits"),
        pytest.param({"item": np.int32(101)}, {"item": 101}, id="numpy"),
        pytest.param({"age": True}, {"age": 1}, id="bool"),
        pytest.param({"age": float("nan")}, {"age": None}, id="nan"),
        pytest.param({"history": (100, 103)}, {"history": [100, 103]}, id="tuple"),
        pytest.param({"history": np.array([100, 103])}, {"history": [100, 103]}, id="array"),
        pytest.param({"history": []}, {"history": None}, id="empty_list"),
        pytest.param({"site": ["a.example", 7]}, {"site": ["a.example", "7"]}, id="text_and_number"),
        pytest.param({"history": [1] * 3 + [100, 101, 102, 103, 104]}, {"history": [100, 101, 102, 103, 104]}, id="keeps_the_last"),
        pytest.param({"device": "never seen"}, {"device": "also new"}, id="out_of_vocabulary"),
    ],
)
def test_values_that_mean_the_same(bundle, change, same_as):
    alone = bundle.predict([ROW | change])
    np.testing.assert_array_equal(alone, bundle.predict([ROW | same_as]))
    np.testing.assert_allclose(bundle.predict([ROW, ROW | change, ROW])[1:2], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROW, ROW | {"devcie": "x"}], r"rows: data row 2: unknown key 'devcie'; did you mean 'device'\?"),
        ([ROW | {"label": 1}], "data row 1: unknown key 'label'.*The model reads: device, age"),
        (
            [ROW, {k: v for k, v in ROW.items() if k != "price"}],
            "feature 'price': rows: column 'price', data row 2: the number is missing",
        ),
        ([ROW, ROW | {"item": None}], "feature 'item': rows: column 'item', data row 2: the value is missing"),
        ([ROW, ROW, ROW | {"price": "dear"}], "feature 'price': .*data row 3: 'dear' is not a number"),
        ([ROW | {"price": "dear"}], "feature 'price': .*data row 1: 'dear' is not a number"),
        (
            [ROW, ROW | {"price": [1.0]}],
            r"feature 'price': .*data row 2: a single text or number is expected, got \[1.0\] \(list\)",
        ),
        ([ROW, ROW | {"price": float("inf")}], "feature 'price': .*data row 2: inf does not become a finite"),
        ([ROW, ROW | {"price": -2}], "feature 'price': .*data row 2: log1p has no value at -2"),
        (
            [ROW | {"device": {"a": 1}}],
            r"feature 'device': .*data row 1: a single text or number is expected, got \{'a': 1\} \(dict\)",
        ),
        ([ROW | {"history": 100}], r"feature 'history': .*data row 1: a list is expected, got 100 \(int\)"),
        ([ROW | {"history": "100"}], r"feature 'history': .*data row 1: a list is expected, got '100' \(str\)"),
        ([ROW, ROW | {"history": [100, [1]]}], r"feature 'history': .*data row 2: a single text or number is expected, got \[1\]"),
        ([ROW, ROW | {"history": [100, "x"]}], "feature 'history': .*data row 2: 'x' is not a number"),
        ([ROW | {"tags": ["t1"]}], r"feature 'tags': .*data row 1: separated text is expected, got \['t1'\] \(list\)"),
        ([ROW, ROW | {"item": 2**70}], "feature 'item': .*data row 2: 1180591620717411303424 cannot be read"),
        ([ROW, ROW | {"device": "\ud800"}], "feature 'device': .*data row 2: .*cannot be read"),
        ([ROW, "phone"], "rows: data row 2: a dict is expected, got 'phone'"),
        (ROW, "a list of dicts is expected, got one dict"),
        (ROWS.drop_columns(["item"]), "missing columns item"),
        (
            ROWS.rename_columns(["devices", *ROWS.column_names[1:]]),
            r"missing columns device;.*did you mean 'devices' for 'device'\?",
        ),
        (ROWS.set_column(1, "age", pa.array([[1.0]] * 40)), "feature 'age': .*the column holds lists"),
    ],
)
def test_bad_rows_are_refused_by_row_and_feature(bundle, rows, said):
    with pytest.raises(ValueError, match=said):
        bundle.predict(rows)


def test_errors_count_rows_over_cuts_and_streams(exported, bundle):
    bad = ROW | {"price": "dear"}
    with pytest.raises(ValueError, match="data row 10: 'dear'"):
        Bundle(exported, batch_rows=4).predict([ROW] * 9 + [bad])
    with pytest.raises(ValueError, match="data row 44: 'dear'"):
        list(bundle.predict_batches([ROWS, [ROW, ROW, ROW, bad]]))


def test_self_test_repeats_the_recorded_answers(bundle, copy):
    assert bundle.self_test() <= 1e-6
    path = copy / "examples.json"
    examples = json.loads(path.read_text())
    assert len(examples["model"]["rows"]) == 5
    examples["model"]["answers"][2][0] += 0.01
    path.write_text(json.dumps(examples))
    reseal(copy, "examples.json")
    with pytest.raises(ValueError, match="sample row 3 of graph 'model' gives"):
        Bundle(copy).self_test()


def reseal(folder, name):
    """Makes the manifest agree with an altered file."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "blake2b": blake2b(folder / name)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["model.onnx", "transforms.json", "vocabularies/tag.arrow", "examples.json", "config.yaml"])
def test_every_file_is_guarded(copy, name):
    path = copy / name
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(ValueError, match=rf"file '{name}' was altered after the export \(another checksum\)"):
        Bundle(copy)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"file '{name}' was altered after the export \({len(content) - 1} bytes instead of"):
        Bundle(copy)
    path.unlink()
    with pytest.raises(ValueError, match=f"file '{name}' is missing"):
        Bundle(copy)


def test_manifests_that_are_none(copy, tmp_path):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    for content, said in (
        ("{", "not JSON"),
        ("[]", "not the manifest of a bundle"),
        ('{"format": "other"}', "not the manifest of a bundle"),
        (json.dumps(manifest | {"format_version": 99}), "format version 99; this release reads 1"),
        (json.dumps(manifest | {"files": {"../x": {}}}), r"'\.\./x' lies outside the bundle"),
        (json.dumps(manifest | {"files": {"/etc/passwd": {}}}), "lies outside the bundle"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=said):
            read_manifest(copy)
    path.unlink()
    with pytest.raises(ValueError, match=r"not a bundle \(manifest.json is missing"):
        Bundle(copy)
    with pytest.raises(ValueError, match="no such folder"):
        Bundle(tmp_path / "nowhere")


def test_options_are_checked(exported):
    with pytest.raises(ValueError, match="num_threads and batch_rows must be >= 1, got 0 and 1024"):
        Bundle(exported, num_threads=0)


def test_a_ranker_has_no_towers(bundle):
    with pytest.raises(ValueError, match="a ranker has no graph 'query'; use predict"):
        bundle.encode(ROWS, side="query")


def test_scaled_difference():
    found = scaled_difference(np.array([0.5, 110.0, np.nan], np.float32), np.array([0.25, 100.0, 0.0], np.float32))
    np.testing.assert_allclose(found, [0.25, 0.1, np.nan])


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} must not be imported")

sys.meta_path.insert(0, Refuse())
import torchrec_models

assert "torchrec_models.pipelines" not in sys.modules
bundle = torchrec_models.Bundle({path!r})
assert bundle.self_test() <= 1e-6
print(bundle.predict([{row!r}])[0, 0])
"""


def test_runs_with_numpy_pyarrow_and_onnxruntime_only(exported, bundle):
    blocked = {"torch", "torchrec", "fbgemm_gpu", "pydantic", "yaml", "onnx", "onnxscript", "tqdm", "pandas", "sklearn", "scipy"}
    code = WITHOUT_TORCH.format(blocked=blocked, path=str(exported), row=ROW)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(float(bundle.predict([ROW])[0, 0]), abs=1e-6)


def test_onnx_runtime_reports_to_nobody(exported, tmp_path):
    """Telemetry of its published builds begins with a file in the home folder and a thread more per process."""
    code = """
import os, sys
if sys.argv[2] == "bare":
    import onnxruntime
    onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
else:
    import torchrec_models
    torchrec_models.Bundle(sys.argv[1])
"""
    reported = {}
    for name in ("bare", "bundle"):
        home = tmp_path / name
        home.mkdir()
        environment = {"PATH": os.environ["PATH"], "HOME": str(home)}  # without CI=..., which silences it
        command = [sys.executable, "-c", code, str(exported), name]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        reported[name] = [path for path in home.rglob("*") if "Microsoft" in path.parts]
    assert not reported["bundle"]
    if sys.platform == "linux" and version("onnxruntime") == "1.31.1":
        assert reported["bare"], "what is looked for has moved"


def test_bundle_is_a_lazy_attribute_of_the_package():
    assert torchrec_models.Bundle is Bundle
    with pytest.raises(AttributeError, match="has no attribute 'Bundel'"):
        torchrec_models.Bundel  # noqa: B018
