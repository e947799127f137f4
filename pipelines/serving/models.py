"""The models a server answers with: by name, each in one or more versions.

A name has a current version, and may have a `split` (a second version that answers a share of the requests) and a `shadow` (a version
that scores every request too, whose answers only the metrics see).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .batcher import Answers, Batcher
from .bundle import Bundle, Graph
from .codec import Row
from .encoder import RowEncoder
from .messages import HttpError, share_of

OnBatch = Callable[[np.ndarray, np.ndarray], Any]


class ServedGraph:
    """One graph of a bundle behind a batcher.

    Args:
        max_batch_rows: most rows of one call of the graph.
        on_batch: see `Batcher`.
    """

    def __init__(self, graph: Graph, *, max_batch_rows: int, on_batch: OnBatch | None = None) -> None:
        self.graph = graph
        self.encoder = RowEncoder(graph.transforms, graph.layout)
        self.batcher = Batcher(
            graph.run_slots,
            num_slots=self.encoder.num_slots,
            num_dense=self.encoder.num_dense,
            max_rows=max_batch_rows,
            on_batch=on_batch,
        )

    async def score(self, rows: Sequence[Row]) -> Answers:
        """N lists of T numbers for N raw rows.

        Raises:
            ValueError: for values that the model cannot take, with feature, column and row; no row is scored then.
        """
        ids, dense = self.encoder.encode(rows)
        return await self.batcher.submit(ids, dense, len(rows))


class ServedModel:
    """One version of one model, loaded.

    Attributes:
        name: what requests call it.
        version: `Bundle.version`, 16 hexadecimal digits.
        tasks: names of the answers' columns; empty for a retriever.
        graphs: by the names in the bundle's manifest; a ranker has `model`.
    """

    def __init__(self, name: str, bundle: Bundle, *, max_batch_rows: int = 64, on_batch: OnBatch | None = None) -> None:
        self.name = name
        self.bundle = bundle
        self.version = bundle.version
        self.tasks = bundle.tasks
        self.graphs = {
            key: ServedGraph(graph, max_batch_rows=max_batch_rows, on_batch=on_batch if key == "model" else None)
            for key, graph in bundle.graphs.items()
        }

    @property
    def ranker(self) -> ServedGraph:
        """The graph that scores rows.

        Raises:
            HttpError: 400 for a retriever, which has none.
        """
        if "model" not in self.graphs:
            raise HttpError(400, f"model {self.name!r} is a retriever: it recommends (POST /recommend), it does not score rows")
        return self.graphs["model"]

    async def score(self, rows: Sequence[Row]) -> Answers:
        """Answers to raw rows, batched with those of other requests: a probability per binary task, a value per regression task.

        Returns:
            N lists of T numbers, columns as in `tasks`.

        Raises:
            ValueError: for values that the model cannot take, with feature, column and row.
        """
        return await self.ranker.score(rows)


@dataclass
class Deployment:
    """The versions behind one name. `current` may be replaced at any time; requests keep the version that they started with.

    Args:
        path: where `current` was loaded from; watched for new versions.
        split: answers a share `split_share` (0 to 1) of the requests, chosen by the request's key.
        shadow: scores every request too, without answering.
    """

    name: str
    path: Path
    current: ServedModel
    split: ServedModel | None = None
    split_share: float = 0.0
    shadow: ServedModel | None = None

    def choose(self, key: bytes) -> ServedModel:
        """The version that answers a request; the same key gets the same version on every worker."""
        if self.split is not None and share_of(key) < self.split_share:
            return self.split
        return self.current

    def versions(self) -> list[ServedModel]:
        return [m for m in (self.current, self.split, self.shadow) if m is not None]


@dataclass
class Models:
    """All deployments of a server by name; the first is the default."""

    deployments: dict[str, Deployment] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Deployment]:
        return iter(self.deployments.values())

    def deployment(self, name: str = "") -> Deployment:
        """A deployment by name, or the default.

        Raises:
            HttpError: 404 that names the models there are.
        """
        if not name:
            return next(iter(self.deployments.values()))
        if name not in self.deployments:
            raise HttpError(404, f"no model {name!r}; there are: {', '.join(self.deployments)}")
        return self.deployments[name]

    def choose(self, name: str = "", *, version: str = "", key: bytes = b"") -> ServedModel:
        """The model that answers a request: the version asked for, or what `Deployment.choose` says.

        Raises:
            HttpError: 404 for names and versions that are not served.
        """
        deployment = self.deployment(name)
        if not version:
            return deployment.choose(key)
        for model in deployment.versions():
            if model.version == version:
                return model
        there = ", ".join(m.version for m in deployment.versions())
        raise HttpError(404, f"model {deployment.name!r} has no version {version!r}; there are: {there}")
