"""The Open Inference Protocol, spoken by Triton's own client, and by hand where a client would not go wrong by itself."""

import json
import re
import struct

import numpy as np
import pytest
from bundle_cases import click_rows, export_model, identity_rows, identity_transforms, make_model
from fixtures import RETRIEVAL_SCHEMA
from server_process import serving

from torchrec_models import Bundle

ROWS = click_rows(30, seed=4)


@pytest.fixture(scope="module")
def server(click_bundles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("oip")
    export_model(
        make_model(RETRIEVAL_SCHEMA, "two_tower"),
        identity_transforms(RETRIEVAL_SCHEMA),
        identity_rows(RETRIEVAL_SCHEMA, 20),
        folder / "two",
    )
    first, second = click_bundles
    with serving(folder, f"click={first}", f"two={folder / 'two'}", "--split", f"click={second}:50") as served:
        yield served


@pytest.fixture(scope="module")
def bundle(click_bundles):
    return Bundle(click_bundles[0])


@pytest.fixture
def client(server):
    http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed; its requirements exclude torchx's")
    with http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def triton_inputs(rows, *, binary):
    """The rows as a Triton client sends them: lists as JSON texts, missing numbers as NaN, missing text left as unknown text."""
    import tritonclient.http as http

    columns = rows.drop_columns(["label"]).to_pydict()
    inputs = []
    for name, values in columns.items():
        if name in ("item",):
            array = np.array(values, np.int64)
        elif name in ("age", "price"):
            array = np.array([np.nan if v is None else v for v in values], np.float64)
        elif name in ("history", "site"):
            array = np.array([json.dumps(v).encode() for v in values], object)
        else:
            array = np.array(["" if v is None else v for v in values], object)
        kind = {np.dtype("int64"): "INT64", np.dtype("float64"): "FP64"}.get(array.dtype, "BYTES")
        tensor = http.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    return inputs


def expected(bundle, rows):
    dicts = [{k: "" if v is None and k == "device" else v for k, v in r.items()} for r in rows.drop_columns(["label"]).to_pylist()]
    return bundle.predict(dicts)


def test_tritonclient_asks_for_health_and_metadata(client, bundle):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("click")
    assert client.is_model_ready("click", bundle.version)
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("click")
    assert metadata["versions"][0] == bundle.version and len(metadata["versions"]) == 2
    assert {i["name"]: i["datatype"] for i in metadata["inputs"]} == {
        "device": "BYTES", "age": "FP64", "tags": "BYTES", "item": "INT64", "history": "BYTES", "top_tag": "BYTES", "site": "BYTES",
        "price": "FP64",
    }  # fmt: skip
    assert [o["name"] for o in metadata["outputs"]] == ["click", "spend"]


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_bundles_answers(client, bundle, binary):
    rows = ROWS if binary else ROWS.filter(ROWS["age"].is_valid())  # as JSON, the client writes NaN, which is none
    answer = client.infer("click", triton_inputs(rows, binary=binary), model_version=bundle.version, request_id="r-1")
    found = np.stack([answer.as_numpy("click"), answer.as_numpy("spend")], axis=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(bundle, rows), atol=1e-6)
    response = answer.get_response()
    assert response["id"] == "r-1" and response["model_version"] == bundle.version


def test_tritonclient_chooses_outputs(client, bundle):
    import tritonclient.http as http

    outputs = [http.InferRequestedOutput("spend", binary_data=False)]
    answer = client.infer("click", triton_inputs(ROWS, binary=True), model_version=bundle.version, outputs=outputs)
    assert answer.as_numpy("click") is None
    np.testing.assert_allclose(answer.as_numpy("spend"), expected(bundle, ROWS)[:, 1], atol=1e-6)


def test_tritonclient_gets_vectors_of_a_retriever(client, server):
    import tritonclient.http as http

    inputs = []
    for name, value in (("user", 3), ("age", 0.5)):
        tensor = http.InferInput(name, [2], "FP64" if name == "age" else "INT64")
        tensor.set_data_from_numpy(np.array([value, value], np.float64 if name == "age" else np.int64))
        inputs.append(tensor)
    history = http.InferInput("history", [2, 3], "INT64")
    history.set_data_from_numpy(np.array([[1, 2, 3], [1, 2, -(2**63)]], np.int64))
    found = client.infer("two", [*inputs, history]).as_numpy("vector")
    two = Bundle(server.log.parent / "two")
    rows = [{"user": 3, "age": 0.5, "history": [1, 2, 3]}, {"user": 3, "age": 0.5, "history": [1, 2]}]
    np.testing.assert_allclose(found, two.encode(rows, side="query"), atol=1e-6)


def test_a_split_follows_the_request_id(server, bundle):
    body = {"inputs": [tensor("item", "INT64", [101]), tensor("price", "FP32", [2.5])]}
    versions = {}
    for i in range(60):
        versions[i] = server.ask("POST", "/v2/models/click/infer", body | {"id": f"id-{i}"}).json["model_version"]
    assert 15 < sum(v == bundle.version for v in versions.values()) < 45
    again = server.ask("POST", "/v2/models/click/infer", body | {"id": "id-7"}).json
    assert again["model_version"] == versions[7] and again["id"] == "id-7"


def tensor(name, datatype, data, shape=None, **parameters):
    out = {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}
    if parameters:
        out["parameters"] = parameters
        del out["data"]
    return out


ITEM, PRICE = tensor("item", "INT64", [101]), tensor("price", "FP32", [2.5])


def test_lists_may_be_padded_and_data_may_be_nested(server, bundle):
    path = f"/v2/models/click/versions/{bundle.version}/infer"
    history = tensor("history", "INT64", [[100, 103, -(2**63)]], shape=[1, 3])
    site = tensor("site", "BYTES", ["a.example", ""], shape=[1, 2])
    found = server.ask("POST", path, {"inputs": [ITEM, PRICE, history, site]}).json["outputs"]
    asked = bundle.predict([{"item": 101, "price": 2.5, "history": [100, 103], "site": ["a.example"]}])[0]
    np.testing.assert_allclose([o["data"][0] for o in found], asked, atol=1e-6)
    assert [(o["name"], o["datatype"], o["shape"]) for o in found] == [("click", "FP32", [1]), ("spend", "FP32", [1])]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        pytest.param([], 400, 'a list "inputs"', id="no_object"),
        pytest.param({"inputs": [PRICE, 3]}, 400, "each entry", id="no_tensor"),
        pytest.param(
            {"inputs": [ITEM, tensor("prize", "FP32", [1])]}, 422, "unknown input 'prize'; the model reads: device", id="name"
        ),
        pytest.param({"inputs": [ITEM, tensor("price", "TEXT", [1])]}, 400, "input 'price': datatype 'TEXT'", id="datatype"),
        pytest.param({"inputs": [ITEM, tensor("price", "FP32", [1], shape=[-1])]}, 400, "input 'price': shape must be", id="shape"),
        pytest.param(
            {"inputs": [ITEM, tensor("price", "FP32", [1], shape=[2])]}, 400, "asks for 2 values, and there are 1", id="count"
        ),
        pytest.param(
            {"inputs": [ITEM, tensor("price", "FP32", [1, 2])]}, 400, "input 'price' has 2 rows, and input 'item' 1", id="rows"
        ),
        pytest.param({"inputs": [ITEM, PRICE, PRICE]}, 400, "input 'price' is given twice", id="twice"),
        pytest.param(
            {"inputs": [ITEM, tensor("price", "FP32", [[1, 2]], shape=[1, 2])]}, 422, "'price': one value per row", id="wide"
        ),
        pytest.param(
            {"inputs": [ITEM, PRICE, tensor("history", "BYTES", ["{}"])]}, 422, "'history': '{}' is not a JSON list", id="list"
        ),
        pytest.param({"inputs": [ITEM, PRICE, tensor("history", "BYTES", ["["])]}, 400, "not JSON", id="list_syntax"),
        pytest.param(
            {"inputs": [ITEM, tensor("price", "FP32", ["dear"])]}, 422, "feature 'price': .*'dear' is not a number", id="value"
        ),
        pytest.param({"inputs": [tensor("item", "INT64", [2**70]), PRICE]}, 422, "feature 'item': .*cannot be read", id="huge"),
        pytest.param(
            {"inputs": [ITEM, PRICE], "outputs": [{"name": "clack"}]},
            400,
            "no output 'clack'; there are: click, spend",
            id="output",
        ),
        pytest.param(
            {"inputs": [ITEM, tensor("price", "FP32", [], [1], binary_data_size=4)]}, 400, "does not fit the 0 bytes", id="size"
        ),
    ],
)
def test_refusals_name_the_tensor(server, body, status, said):
    answer = server.ask("POST", "/v2/models/click/infer", body)
    assert answer.status == status
    assert re.search(said, answer.json["error"]), answer.json


def test_bad_binary_tensors_are_refused(server):
    def ask(data: bytes, size: int, datatype: str = "BYTES", length: int | None = None):
        head = json.dumps({"inputs": [ITEM, PRICE, tensor("device", datatype, [], [1], binary_data_size=size)]}).encode()
        headers = {"Inference_Header_Content_Length": str(len(head) if length is None else length)}
        answer = server.ask("POST", "/v2/models/click/infer", head + data, **headers)
        return answer.status, answer.json.get("error", "")

    good = struct.pack("<I", 5) + b"phone"
    assert ask(good, 9) == (200, "")
    assert ask(good, 8)[0] == 400
    assert ask(struct.pack("<I", 2**31) + b"x", 5) == (400, "input 'device': a BYTES value reaches beyond the tensor's 5 bytes")
    assert ask(struct.pack("<I", 1) + b"\xff", 5) == (400, "input 'device': value 1 is not UTF-8 text")
    assert "stand behind the last binary tensor" in ask(good + b"more", 9)[1]
    assert "not a whole number of INT64" in ask(good, 9, "INT64")[1]
    assert "is not a length" in ask(good, 9, length=10**9)[1]
    assert server.ask("POST", "/v2/models/click/infer", b"{}", Content_Encoding="gzip").status == 415


def test_unknown_models_and_versions(server):
    assert server.ask("GET", "/v2/models/clack").json == {"error": "no model 'clack'; there are: click, two"}
    answer = server.ask("GET", "/v2/models/click/versions/1/ready")
    assert answer.status == 404 and "no version '1'" in answer.json["error"]
    assert server.ask("GET", "/v2").json["name"] == "torchrec-models"
    assert server.ask("DELETE", "/v2/models/click").status == 405
