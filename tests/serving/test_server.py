"""`trm serve` as callers meet it: real processes and sockets; right answers, wrong requests, limits, new versions, shutdown."""

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from bundle_cases import CLICK_SCHEMA, click_rows, click_transforms, export_model, identity_rows, identity_transforms, make_model
from fixtures import categorical, make_schema
from server_process import Answer, Served, serving

from torchrec_models import Bundle
from torchrec_models.pipelines.cli.serving import default_name
from torchrec_models.pipelines.data.loader import to_batch
from torchrec_models.pipelines.export.graph import predictions
from torchrec_models.pipelines.serving.bundle_files import write_manifest

ROW = {"device": "phone", "age": 33, "tags": "t1|t2", "item": 101, "history": [100, 103], "top_tag": "t1", "price": 2.5}
TOKEN = "secret-of-this-test"


@pytest.fixture(scope="module")
def server(click_bundles, tmp_path_factory):
    """Limits that tests can reach; a second version as the shadow."""
    first, second = click_bundles
    options = ["--max-body-bytes", "100000", "--max-rows", "500", "--access-log", "1", "--watch-seconds", "0"]
    with serving(tmp_path_factory.mktemp("server"), f"click={first}", "--shadow", f"click={second}", *options) as served:
        yield served


@pytest.fixture(scope="module")
def bundle(click_bundles):
    return Bundle(click_bundles[0])


def probabilities(answer: Answer) -> np.ndarray:
    return np.array([[p["click"], p["spend"]] for p in answer.json["predictions"]])


def test_a_thousand_rows_through_pytorch_onnx_and_http(server, bundle):
    rows = click_rows(1000, seed=11)
    with torch.no_grad():
        logits = make_model(CLICK_SCHEMA, "deepfm")(to_batch(CLICK_SCHEMA, click_transforms().encode(rows)))
    reference = predictions(logits, CLICK_SCHEMA.tasks).numpy()
    dicts = rows.drop_columns(["label"]).to_pylist()
    found: list[list[float] | None] = [None] * 1000

    def ask(part: range) -> None:
        connection = server.connect()
        for i in part:
            connection.request("POST", "/predict", json.dumps(dicts[i]))
            predicted = json.loads(connection.getresponse().read())["predictions"]
            found[i] = [predicted["click"], predicted["spend"]]

    threads = [threading.Thread(target=ask, args=(range(start, 1000, 8),)) for start in range(8)]  # batched with one another
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    onnx = bundle.predict(rows)
    many = np.concatenate([probabilities(server.ask("POST", "/predict", {"rows": dicts[i : i + 500]})) for i in (0, 500)])
    for other in (onnx, np.array(found), many):
        assert np.abs(other - reference).max() <= 1e-6
    assert reference.std(axis=0).min() > 1e-3


def test_the_answer_names_model_and_version(server, bundle):
    answer = server.ask("POST", "/predict", ROW)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    expected = dict(zip(("click", "spend"), bundle.predict([ROW])[0].tolist()))
    assert answer.json == {"model": "click", "version": bundle.version, "predictions": pytest.approx(expected, abs=1e-6)}
    assert server.ask("POST", "/models/click/predict", {"rows": []}).json["predictions"] == []


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "the body is not JSON"),
        (b'{"item": 101', 400, "the body is not JSON"),
        (b'{"price": NaN, "item": 101}', 400, "JSON: JSON has no NaN, and price is NaN; send null for a missing value"),
        ({"rows": [ROW, ROW | {"age": float("-inf")}]}, 400, "no -Infinity, and rows[1].age is -Infinity; send null for"),
        (ROW | {"history": [100, float("nan")]}, 400, "JSON has no NaN, and history[1] is NaN; send null"),
        (b"Infinity", 400, "JSON has no Infinity; send null for a missing value, or a finite number"),
        (b'{"device": "NaN", "price": NaN, }', 400, "the body is not JSON: JSON is malformed"),
        (b"[" * 50_000 + b"NaN", 400, "nested too deeply"),
        ({"rows": 3}, 400, '"rows" takes a list of objects, got 3; for example {"rows": [{"device":'),
        ({"rows": ROW}, 400, "\"rows\" takes a list of objects, got {'device': 'phone', "),
        ({"rows": None}, 400, '"rows" takes a list of objects, got None'),
        ({"rows": [ROW], "id": 7}, 400, '"rows" must be the only key of the body; for example {"rows": [{'),
        (b'{"price": 1e999, "item": 101}', 400, "the body is not JSON"),
        (b'{"device": "\xff"}', 400, "not UTF-8"),
        (b"[" * 50_000, 400, "nested too deeply"),
        ([ROW], 400, "must be a JSON object"),
        (3, 400, "must be a JSON object"),
        (ROW | {"devcie": 1}, 422, "unknown key 'devcie'; did you mean 'device'?"),
        ({"zebra": 3}, 422, "unknown key 'zebra'. The model reads: "),
        (ROW | {"price": "dear"}, 422, "feature 'price': rows: column 'price', data row 1: 'dear' is not a number"),
        (ROW | {"price": [1]}, 422, "feature 'price'"),
        (ROW | {"age": 1e300}, 422, "feature 'age': rows: column 'age', data row 1: 1e+300 does not become a finite"),
        (ROW | {"item": 2**70}, 422, "feature 'item'"),
        (ROW | {"item": None}, 422, "the value is missing"),
        (ROW | {"history": "100"}, 422, "feature 'history': rows: column 'history', data row 1: a list is expected"),
        (ROW | {"device": {"a": 1}}, 422, "feature 'device'"),
        ({"rows": [ROW, ROW, 7]}, 422, "data row 3: a dict is expected, got 7"),
        ({"rows": [ROW, ROW | {"price": "dear"}]}, 422, "data row 2: 'dear' is not a number"),
        ({"rows": [ROW] * 501}, 422, "501 in one request; this server takes at most 500"),
        (b" " * 100_001, 413, "larger than 100000 bytes"),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(server, body, status, said):
    answer = server.ask("POST", "/predict", body)
    assert (answer.status, said in answer.json["error"]) == (status, True), answer.json


def test_many_rows_are_told_from_a_column_called_rows(tmp_path):
    schema = make_schema([categorical("rows", max_len=3), categorical("item")], num_rows=9)
    export_model(make_model(schema, "deepfm"), identity_transforms(schema), identity_rows(schema, 20), tmp_path / "bundle")
    with serving(tmp_path, f"m={tmp_path / 'bundle'}") as served:
        row = {"rows": [1, 2], "item": 3}
        one, many = served.ask("POST", "/predict", row), served.ask("POST", "/predict", {"rows": [row, {"item": 3}]})
        assert many.json["predictions"][0] == pytest.approx(one.json["predictions"], rel=1e-6)
        refused = served.ask("POST", "/predict", {"rows": [1, 2]})
        assert refused.status == 422 and "a dict is expected" in refused.json["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("POST", "/nope", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/models/..%2f..%2fetc%2fpasswd/form", 404),
        ("POST", "/models/clack/predict", 404),
        ("POST", "/recommend", 400),
        ("POST", "/admin/reload", 403),
    ],
)
def test_other_paths(server, method, path, status):
    assert server.ask(method, path, {} if method == "POST" else None).status == status


def test_one_bad_request_does_not_fail_those_it_arrives_with(server, bundle):
    bodies = [json.dumps(ROW | {"price": "dear" if i % 3 == 1 else i}) for i in range(30)]
    connections = [server.connect() for _ in bodies]
    for connection, body in zip(connections, bodies):
        connection.request("POST", "/predict", body)
    for i, connection in enumerate(connections):
        answer = Answer(connection.getresponse())
        if i % 3 == 1:
            assert answer.status == 422
        else:
            assert answer.json["predictions"]["click"] == pytest.approx(float(bundle.predict([ROW | {"price": i}])[0, 0]), abs=1e-6)


def test_pipelined_requests_are_answered_in_order(server):
    """Bad ones and other paths among them do not overtake."""
    parts = []
    for i in range(12):
        body = json.dumps(ROW | {"price": "dear" if i % 4 == 1 else i}).encode() if i % 4 != 2 else b"{"
        path = b"/nope" if i % 4 == 3 else b"/predict"
        parts.append(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (path, len(body), body))
    statuses = []
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"".join(parts))
        for _ in parts:
            statuses.append(int(stream.readline().split()[1]))
            headers = dict(line.split(b": ") for line in iter(lambda: stream.readline().strip(), b""))
            stream.read(int(headers[b"content-length"]))
    assert statuses == [200, 422, 400, 404] * 3


def test_chunked_bodies_expect_continue_and_http_1_0(server):
    body = json.dumps(ROW).encode()
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 40]), body[i : i + 40]) for i in range(0, len(body), 40)) + b"0\r\n\r\n"
    endless = b"".join(b"%x\r\n%s\r\n" % (60_000, b" " * 60_000) for _ in range(2)) + b"0\r\n\r\n"
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    for request, expected in (
        (head + b"transfer-encoding: chunked\r\n\r\n" + chunked, b"HTTP/1.1 200"),
        (head + b"transfer-encoding: chunked\r\n\r\n" + endless, b"HTTP/1.1 413"),
        (head + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body), b"HTTP/1.1 100"),
        (b"POST /predict HTTP/1.0\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body), b"HTTP/1.1 200"),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
        (head + b"content-length: 99999999999999999999\r\n\r\n", b"HTTP/1.1 4"),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(request)
            assert connection.recv(4096).startswith(expected), request[:200]


def test_metrics_count_what_happened(server, bundle):
    before = {name: server.metric(name) for name in ("trm_rows_total", 'trm_unknown_ids_total{feature="device"')}
    unknown = [ROW | {"device": "toaster"}] * 3 + [ROW]
    server.ask("POST", "/predict", {"rows": unknown})
    deadline = time.monotonic() + 20
    while server.metric("trm_rows_total") < before["trm_rows_total"] + 8 and time.monotonic() < deadline:
        time.sleep(0.02)  # the shadow scores after the answer
    assert server.metric("trm_rows_total") == before["trm_rows_total"] + 8
    text = server.ask("GET", "/metrics").body.decode()
    assert server.metric('trm_unknown_ids_total{feature="device"') == before['trm_unknown_ids_total{feature="device"'] + 6
    assert f'trm_workers_with_model{{model="click",role="current",version="{bundle.version}"}} 1.0' in text
    assert server.metric("trm_shadow_difference_count") > 0
    assert server.metric("trm_request_seconds_count{") > 0
    parser = pytest.importorskip("prometheus_client.parser")
    families = {f.name: f for f in parser.text_string_to_metric_families(text)}
    scores = [s for s in families["trm_score"].samples if s.name == "trm_score_bucket" and s.labels["task"] == "click"]
    assert scores[-1].labels["le"] == "+Inf" and [s.value for s in scores[:17]] == sorted(s.value for s in scores[:17])


def test_health_openapi_and_access_log(server):
    for path in ("/healthz", "/readyz", "/v2/health/live", "/models", "/docs"):
        assert server.ask("GET", path).status == 200
    document = server.ask("GET", "/openapi.json").json
    row = document["components"]["schemas"]["click.Row"]
    assert row["required"] == ["item", "price"] and set(row["properties"]) == set(ROW) | {"site"}
    server.ask("GET", "/healthz?x=1", X_Request_Id="r-77")
    mine: list[dict] = []
    deadline = time.monotonic() + 20
    while not mine and time.monotonic() < deadline:  # the line is written after the answer
        lines = [json.loads(line) for line in (server.log.parent / "serve.out").read_text().splitlines()]
        mine = [line for line in lines if line["request_id"] == "r-77"]
    assert mine[0]["path"] == "/healthz" and mine[0]["status"] == 200


def test_token_overload_and_tls(click_bundles, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-days", "1", "-nodes"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", str(key), "-out", str(certificate), *subject]
    subprocess.run(made, check=True, capture_output=True)
    with serving(tmp_path, click_bundles[0], "--token-file", tmp_path / "token", "--max-concurrency", "0") as served:
        assert served.ask("GET", "/healthz").status == 200
        overloaded = served.ask("POST", "/predict", ROW, Authorization=f"Bearer {TOKEN}")
        assert overloaded.status == 503 and overloaded.headers["retry-after"] == "1"
        assert served.ask("POST", "/predict", ROW).status == served.ask("POST", "/models/first/predict", ROW).status == 401
    options = ["--token-file", tmp_path / "token", "--tls-cert", certificate, "--tls-key", key]
    context = ssl.create_default_context(cafile=str(certificate))

    class Secure(Served):
        def connect(self) -> http.client.HTTPConnection:
            return http.client.HTTPSConnection("localhost", self.port, timeout=30, context=context)

    with serving(tmp_path, click_bundles[0], *options, make=Secure) as served:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            assert served.ask("POST", "/predict", ROW, **headers).status == 401
        assert served.ask("POST", "/predict", ROW, Authorization=f"Bearer {TOKEN}").status == 200
        assert served.ask("POST", "/admin/reload", {}, Authorization=f"Bearer {TOKEN}").status == 200


def test_new_versions_replace_old_ones_without_a_lost_answer(click_bundles, tmp_path):
    first, second = click_bundles
    versions = [Bundle(first).version, Bundle(second).version]
    current = tmp_path / "current"
    current.symlink_to(first)
    with serving(tmp_path, f"click={current}", "--watch-seconds", "0.1") as served:
        seen: list[tuple[int, str]] = []
        stop = threading.Event()

        def ask() -> None:
            connection = served.connect()
            while not stop.is_set():
                connection.request("POST", "/predict", json.dumps(ROW))
                answer = Answer(connection.getresponse())
                seen.append((answer.status, answer.json["version"]))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for target, version in ((second, versions[1]), (first, versions[0])):
                (tmp_path / "next").symlink_to(target)
                (tmp_path / "next").replace(current)
                deadline = time.monotonic() + 30
                while seen[-1:] != [(200, version)] and time.monotonic() < deadline:
                    time.sleep(0.02)
                assert seen[-1] == (200, version)
            broken = shutil.copytree(second, tmp_path / "broken")
            (broken / "examples.json").write_text("{}")
            (tmp_path / "next").symlink_to(broken)
            (tmp_path / "next").replace(current)
            while served.metric("trm_failed_reloads_total") < 1 and time.monotonic() < deadline + 30:
                time.sleep(0.05)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert {status for status, _ in seen} == {200}
        assert served.ask("POST", "/predict", ROW).json["version"] == versions[0]
        assert served.metric("trm_reloads_total") == 2 and served.metric("trm_failed_reloads_total") == 1
        assert "'examples.json' was altered" in served.log.read_text()


def test_a_bundle_that_answers_otherwise_than_at_export_is_not_served(click_bundles, tmp_path):
    copy = shutil.copytree(click_bundles[0], tmp_path / "copy")
    examples = json.loads((copy / "examples.json").read_text())
    examples["model"]["answers"][2][0] += 0.01
    (copy / "examples.json").write_text(json.dumps(examples))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").unlink()
    write_manifest(copy, {k: v for k, v in manifest.items() if k not in ("format", "format_version", "files")})
    with pytest.raises(RuntimeError, match=r"ended with status 2: error: .*sample row 3 of graph 'model'"), serving(tmp_path, copy):
        pass


def test_sigterm_loses_no_request(click_bundles, tmp_path):
    """Callers go on over kept connections, and reconnect when told to, while the server drains; every request is answered."""
    with serving(tmp_path, click_bundles[0], "--drain-seconds", "1.5") as served:
        served.ask("GET", "/healthz")
        outcomes: list[int | str] = []
        leaving = threading.Event()

        def ask() -> None:
            connection = served.connect()
            while not leaving.is_set():
                try:
                    connection.request("POST", "/predict", json.dumps(ROW))
                    answer = Answer(connection.getresponse())
                except (OSError, http.client.HTTPException) as error:
                    outcomes.append(repr(error))
                    return
                outcomes.append(answer.status)
                if answer.headers.get("connection") == "close":
                    leaving.set()

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(outcomes) < 20:
            time.sleep(0.01)
        served.process.terminate()
        for thread in threads:
            thread.join()
        assert leaving.is_set() and set(outcomes) == {200}
        assert served.stop() in (0, -signal.SIGTERM)  # uvicorn ends by the signal that it was sent


def test_several_workers_share_a_port_and_add_up_their_metrics(click_bundles, tmp_path):
    with serving(tmp_path, click_bundles[0], "--workers", "2") as served:
        deadline = time.monotonic() + 60
        while served.metric("trm_workers_with_model") < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        for _ in range(40):
            assert served.ask("POST", "/predict", ROW).status == 200
        answered = 0.0  # by the worker that is asked: it knows the other's as they were a second ago
        while answered < 40 and time.monotonic() < deadline:
            time.sleep(0.2)
            answered = served.metric('trm_requests_total{path="/predict",status="200"}')
        assert answered == 40
        assert served.stop() in (0, -signal.SIGTERM)


def test_the_name_of_a_bundle_without_one():
    names = {"runs/clicks/bundle": "clicks", "runs/clicks/current": "clicks", "/bundle": "bundle", "runs/ctr-7": "ctr-7"}
    assert {path: default_name(Path(path)) for path in names} == names
