"""Requests that nobody meant to send, to a running server: whatever comes, the answer is never a 5xx other than 503.

    python -m benchmarks.serving.fuzz http://127.0.0.1:8000 --examples 20000         by hypothesis, from the served columns
    SCHEMATHESIS run http://127.0.0.1:8000/openapi.json --checks not_a_server_error,status_code_conformance --max-examples 2000

The first draws rows from the server's own OpenAPI document: values of the right type, of wrong types, broken JSON, and bid requests
with fields of any kind. The second is schemathesis, in an environment of its own (pip install schemathesis), on all paths.
"""

import argparse
import json
import sys
from collections import Counter
from http.client import HTTPConnection, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


class Fuzzer:
    """Posts bodies to one server and counts the answers by path and status.

    Args:
        url: of the server, without a path.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname, url
        connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._connection = connect(parts.hostname, parts.port, timeout=30)
        self.statuses: Counter[tuple[str, int]] = Counter()
        status, text = self.ask("GET", "/openapi.json")
        assert status == 200, text
        self.document: dict[str, Any] = json.loads(text)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        self._connection.request(method, path, body)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def post(self, path: str, body: bytes) -> None:
        """Raises AssertionError for an answer that no request may get, with the request that got it."""
        status, text = self.ask("POST", path, body)
        self.statuses[path, status] += 1
        assert status < 500 or status == 503, f"POST {path} {body!r}: {status} {text!r}"
        if status >= 400:
            assert json.loads(text)["error"], f"POST {path} {body!r}: {status} without a reason"

    def rows(self) -> st.SearchStrategy[dict[str, Any]]:
        """Rows of the default model: columns left out, of the type that the document names, or of any type."""
        name = next(n for n in self.document["components"]["schemas"] if n.endswith(".Row"))
        properties = self.document["components"]["schemas"][name]["properties"]
        columns = {column: _values(schema) | ANY_JSON for column, schema in properties.items()}
        return st.fixed_dictionaries({}, optional={**columns, "zebra": ANY_JSON})


def _values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    of: dict[str, st.SearchStrategy[Any]] = {
        "string": st.text(max_size=12) | st.integers().map(str),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "integer": st.integers(-(2**63), 2**63 - 1),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    if "array" in types:
        of["array"] = st.lists(_values(schema["items"]), max_size=12)
    return st.one_of([of[name] for name in types])


def _body(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")  # NaN and infinity go out as Python writes them: not JSON


def bid_requests() -> st.SearchStrategy[dict[str, Any]]:
    """OpenRTB requests whose fields are as the standard has them, or anything."""
    imp = st.fixed_dictionaries(
        {"id": st.text(max_size=3)},
        optional={"banner": st.just({"w": 300, "h": 250}) | ANY_JSON, "bidfloor": st.floats(0, 10) | ANY_JSON, "ext": ANY_JSON},
    )
    fields = dict.fromkeys(("site", "app", "device", "user", "at", "tmax", "cur", "bcat", "badv", "wseat", "ext"), ANY_JSON)
    return st.fixed_dictionaries(
        {"id": st.text(max_size=5) | ANY_JSON, "imp": st.lists(imp, max_size=3) | ANY_JSON}, optional=fields
    )


def fuzz(url: str, *, num_examples: int, seed: int = 0) -> Counter[tuple[str, int]]:
    """`num_examples` bodies for `/predict`, as many for `/v2/.../infer`, and for `/bid` where it is served.

    Returns:
        How often each path answered with each status.

    Raises:
        AssertionError: for a 5xx other than 503, and for a refusal without a reason, with the smallest body found.
    """
    fuzzer = Fuzzer(url)
    rows = fuzzer.rows()
    paths = fuzzer.document["paths"]
    name = json.loads(fuzzer.ask("GET", "/models")[1])["models"][0]["name"]
    tensor = st.fixed_dictionaries(
        {"name": st.sampled_from(sorted(paths)) | st.text(max_size=8), "shape": ANY_JSON, "datatype": st.text(max_size=6)},
        optional={"data": ANY_JSON, "parameters": ANY_JSON},
    )
    drawn = {
        "/predict": st.one_of(rows.map(_body), st.lists(rows, max_size=4).map(lambda r: _body({"rows": r})), ANY_JSON.map(_body)),
        f"/v2/models/{name}/infer": (st.fixed_dictionaries({"inputs": st.lists(tensor, max_size=3) | ANY_JSON}) | ANY_JSON).map(
            _body
        ),
        "/bid": (bid_requests() | ANY_JSON).map(_body),
    }
    checks = settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        derandomize=not seed,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    for path, bodies in drawn.items():
        if path == "/bid" and path not in paths:
            continue
        _send(fuzzer, path, bodies | st.binary(max_size=60), checks)
    status, _ = fuzzer.ask("GET", "/healthz")
    assert status == 200, "the server does not answer any more"
    return fuzzer.statuses


def _send(fuzzer: Fuzzer, path: str, bodies: st.SearchStrategy[bytes], checks: settings) -> None:
    @checks
    @given(body=bodies)
    def post(body: bytes) -> None:
        fuzzer.post(path, body)

    post()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of a running trm serve, for example http://127.0.0.1:8000")
    parser.add_argument("--examples", type=int, default=20_000, help="bodies per path")
    parser.add_argument("--seed", type=int, default=1, help="0: the same bodies each time")
    args = parser.parse_args()
    try:
        statuses = fuzz(args.url, num_examples=args.examples, seed=args.seed)
    except AssertionError as error:
        sys.exit(f"FAILED: {error}")
    for (path, status), count in sorted(statuses.items()):
        print(f"{path:<40} {status} {count:>8,}")


if __name__ == "__main__":
    main()
