"""Numbers beyond what a model can take are refused alike through every door; those that its transforms tame are scored alike."""

import copy
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from server_process import Served, serving
from test_bid_server import CONFIG, imp, request

from torchrec_models import Bundle
from torchrec_models.pipelines.cli import main

ROW = {"device": "phone", "age": 33.0, "tags": "t1|t2", "item": 101, "history": [100, 103], "top_tag": "t1"}
ROW |= {"site": ["a.example"], "price": 2.5}
TOO_LARGE = "does not become a finite 32-bit number"
NO_ANSWER = "the model's answer is nan; the largest number that it was given is 8.33333e+37, from this column"
CASES = [
    pytest.param({"age": 1e300}, TOO_LARGE, id="beyond-32-bits"),
    pytest.param({"age": -1e300}, TOO_LARGE, id="below-32-bits"),
    pytest.param({"age": "1e300"}, TOO_LARGE, id="as-text"),
    pytest.param({"age": 1e39}, NO_ANSWER, id="its-square-is-beyond-32-bits"),
]
BID = copy.deepcopy(CONFIG)
BID["columns"]["age"] = "imp.ext.age"
del BID["left_missing"]


@pytest.fixture(scope="module")
def bundle(click_bundles: tuple[Path, Path]) -> Bundle:
    return Bundle(click_bundles[0])


@pytest.fixture(scope="module")
def server(click_bundles: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("large")
    (folder / "bid.yaml").write_text(yaml.safe_dump(BID))
    with serving(folder, f"click={click_bundles[0]}", "--bid", folder / "bid.yaml") as served:
        yield served


def tensors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """An inference request; lists as JSON texts."""
    inputs = []
    for name in rows[0]:
        values = [json.dumps(row[name]) if isinstance(row[name], list) else row[name] for row in rows]
        kind = "FP64" if all(isinstance(value, float) for value in values) else "BYTES"
        inputs.append({"name": name, "shape": [len(rows)], "datatype": kind, "data": values})
    return {"inputs": inputs}


@pytest.mark.parametrize(("change", "said"), CASES)
def test_what_is_too_large_is_refused_with_its_column(server, bundle, tmp_path, capsys, change, said):
    bad = ROW | change
    with pytest.raises(ValueError, match="feature 'age': rows: column 'age', data row 2: ") as refused:
        bundle.predict([ROW, bad, ROW])
    assert said in str(refused.value)
    for rows in ([bad], [ROW] * 70 + [bad]):
        with pytest.raises(ValueError) as refused:
            list(bundle.predict_batches([[ROW] * 5, rows]))
        assert f"data row {5 + len(rows)}: " in str(refused.value)

    one = server.ask("POST", "/predict", bad)
    many = server.ask("POST", "/predict", {"rows": [ROW, bad]})
    protocol = server.ask("POST", "/v2/models/click/infer", tensors([ROW, bad]))
    for answer, row in ((one, 1), (many, 2), (protocol, 2)):
        assert answer.status == 422, answer.body
        assert f"feature 'age': rows: column 'age', data row {row}: " in answer.json["error"] and said in answer.json["error"]

    usual = imp(1, ext={"price": 2.5})
    odd = imp(2, ext={"price": 2.5} | change)
    for imps, place in (([odd], "imp[0]"), ([usual, odd], "imp[1]")):
        answer = server.ask("POST", "/bid", request(imp=imps))
        assert answer.status == 422 and said in answer.json["error"]
        assert answer.json["error"].endswith(f" - at `$.{place}.ext.age`")

    good = ROW | {"age": type(bad["age"])(ROW["age"])}  # a Parquet column has one type
    pq.write_table(pa.Table.from_pylist([good, bad]), tmp_path / "in.parquet")
    assert main(["predict", str(bundle.path), str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / 'in.parquet'}: column 'age', data row 2: " in told and said in told
    assert not (tmp_path / "out.parquet").exists()


def test_what_the_transforms_tame_is_scored_alike(server, bundle, tmp_path):
    """ln(1 + 1e300) is 690.8: a number like any other, in training as here."""
    rows = [ROW | {"price": 1e300}, ROW | {"price": 1e39}, ROW]
    expected = bundle.predict(rows)
    assert np.isfinite(expected).all() and len(set(expected[:, 1].tolist())) == 3
    one = [list(server.ask("POST", "/predict", row).json["predictions"].values()) for row in rows]
    many = [list(p.values()) for p in server.ask("POST", "/predict", {"rows": rows}).json["predictions"]]
    protocol = {o["name"]: o["data"] for o in server.ask("POST", "/v2/models/click/infer", tensors(rows)).json["outputs"]}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    assert main(["predict", str(bundle.path), str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]) == 0
    scored = pq.read_table(tmp_path / "out.parquet").select(["click", "spend"]).to_pydict()
    for found in (one, many, list(zip(*protocol.values())), list(zip(*scored.values()))):
        np.testing.assert_allclose(np.array(found), expected, rtol=1e-6, atol=1e-6)


def test_others_in_the_same_batch_are_answered(server, bundle):
    """The graph is called once for requests that arrive together; one row's NaN is that row's alone."""
    bodies = [ROW | {"age": 1e39 if i % 3 == 1 else 20.0 + i} for i in range(30)]
    connections = [server.connect() for _ in bodies]
    for connection, body in zip(connections, bodies):
        connection.request("POST", "/predict", json.dumps(body))
    for connection, body in zip(connections, bodies):
        response: http.client.HTTPResponse = connection.getresponse()
        found = json.loads(response.read())
        if body["age"] == 1e39:
            assert response.status == 422 and NO_ANSWER in found["error"]
        else:
            assert list(found["predictions"].values()) == pytest.approx(bundle.predict([body])[0].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "said", "place"),
    [
        pytest.param({"imp": [imp(ext={"price": "dear"})]}, "'dear' is not a number", "$.imp[0].ext.price", id="text"),
        pytest.param({"imp": [imp(ext={"price": -2})]}, "log1p has no value at -2", "$.imp[0].ext.price", id="no-logarithm"),
        pytest.param({"imp": [imp(), imp(2, ext={})]}, "the number is missing", "$.imp[1].ext.price", id="missing-in-the-second"),
        pytest.param({"device": {"ext": {"kind": [1]}}}, "a single text or number is expected", "$.device.ext.kind", id="a-list"),
        pytest.param(
            {"user": {"data": [{"segment": [{"id": "x"}]}]}}, "'x' is not a number", "$.user.data[*].segment[*].id", id="in-a-list"
        ),
    ],
)
def test_a_refused_bid_request_is_told_the_path_of_the_value(server, changes, said, place):
    answer = server.ask("POST", "/bid", request(**changes))
    assert answer.status == 422 and said in answer.json["error"], answer.body
    assert answer.json["error"].endswith(f" - at `{place}`")
