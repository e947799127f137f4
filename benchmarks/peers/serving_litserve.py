"""LitServe with one worker: python serving_litserve.py BUNDLE PORT."""

import sys
from typing import Any

import litserve
from serving_row import RowModel


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = RowModel(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def predict(self, row: dict[str, Any]) -> dict[str, float]:
        return self.model(row)

    def encode_response(self, output: dict[str, float]) -> dict[str, float]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
