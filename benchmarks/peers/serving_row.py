"""What the peers' servers call: one row through our transforms and ONNX Runtime, the code that `trm serve` calls for a batch."""

from pathlib import Path
from typing import Any

from torchrec_models import Bundle
from torchrec_models.pipelines.serving.encoder import RowEncoder


class RowModel:
    """A bundle that scores one raw row. `Bundle.predict` is made for many rows; this is the faster road for one.

    Args:
        bundle: the folder.
    """

    def __init__(self, bundle: str | Path) -> None:
        loaded = Bundle(bundle)
        self.graph = loaded.graphs["model"]
        self.task = loaded.tasks[0]
        self.encoder = RowEncoder(self.graph.transforms, self.graph.layout)
        self.columns = self.graph.codec.columns

    def __call__(self, row: dict[str, Any]) -> dict[str, float]:
        answer_1T = self.graph.run_slots(*self.encoder.encode([row], from_json=True))
        return {self.task: float(answer_1T[0, 0])}
