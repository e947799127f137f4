"""BentoML with one worker: python serving_bentoml.py BUNDLE PORT, which starts `bentoml serve` on this file."""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
from serving_row import RowModel


@bentoml.service(workers=1, http={"access_control_policies": {}}, logging={"access": {"enabled": False}})
class Click:
    def __init__(self) -> None:
        self.model = RowModel(os.environ["BUNDLE"])

    @bentoml.api(route="/predict")
    def predict(self, row: dict[str, Any], /) -> dict[str, float]:
        return self.model(row)


if __name__ == "__main__":
    here = Path(__file__)
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", f"{here.stem}:Click", "--port", sys.argv[2]]
    environment = {**os.environ, "BUNDLE": sys.argv[1], "BENTOML_DO_NOT_TRACK": "True"}
    os.execve(command[0], [*command, "--working-dir", str(here.parent)], environment)
