"""Bodies drawn from the served columns, and any others, to a real server: never a 5xx but 503, never a refusal without reason.

600 bodies here; `python -m benchmarks.serving.fuzz` sends as many as it is told.
"""

import http.server
import threading
from pathlib import Path

import pytest
import yaml
from server_process import serving
from test_bid_server import CONFIG

from benchmarks.serving.fuzz import fuzz

NUM_EXAMPLES = 200


def test_no_body_breaks_the_server(click_bundles: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "bid.yaml").write_text(yaml.safe_dump(CONFIG))
    with serving(tmp_path, f"click={click_bundles[0]}", "--bid", tmp_path / "bid.yaml") as served:
        statuses = fuzz(f"http://127.0.0.1:{served.port}", num_examples=NUM_EXAMPLES)
        assert served.process.poll() is None
    for path in ("/predict", "/v2/models/click/infer", "/bid"):
        assert sum(count for (asked, _), count in statuses.items() if asked == path) >= NUM_EXAMPLES * 0.9
    assert any(status == 422 for _, status in statuses) and any(status == 400 for _, status in statuses)


@pytest.mark.parametrize("status", [500, 502])
def test_a_server_error_is_found(status: int, tmp_path: Path) -> None:
    class Broken(http.server.BaseHTTPRequestHandler):
        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            row = b'{"components": {"schemas": {"m.Row": {"properties": {"a": {"type": "string"}}}}}, "paths": {"/predict": {}}}'
            self._answer(200, b'{"models": [{"name": "m"}]}' if self.path == "/models" else row)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self._answer(status, b"{}")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(AssertionError, match=str(status)):
        fuzz(f"http://127.0.0.1:{server.server_port}", num_examples=5)
    server.shutdown()
