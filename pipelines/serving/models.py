"""The models a server answers with: by name, each in one or more versions.

A name has a current version, and may have a `split` (a second version that answers a share of the requests) and a `shadow` (a
version that scores every request too, whose answers only the metrics see).
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ..data.ids import Identity
from ..data.transforms import IdsTransform
from ..data.values import RefusedValue
from .batcher import Answers, Batcher, OnBatch, Waiting
from .bundle import Bundle, Graph
from .codec import Row
from .encoder import RowEncoder
from .messages import HttpError, share_of
from .metrics import Metrics, ModelMetrics

MANY = "rows"  # the only key of a body that holds several rows
_PIECE_ROWS = 64  # encoded without a pause


class RefusedRow(HttpError, ValueError):
    """Rows that the model cannot take (status 422); says feature, column, row and reason.

    Attributes:
        column: the raw column that is refused; empty where it is something else.
        row: 0-based; None where it is no one row's fault.
    """

    def __init__(self, error: ValueError) -> None:
        super().__init__(422, str(error))
        self.column, self.row = (error.column, error.row) if isinstance(error, RefusedValue) else ("", None)


class ServedGraph:
    """One graph of a bundle behind a batcher.

    Args:
        max_batch_rows: most rows of one call of the graph.
        on_batch: see `Batcher`.
    """

    def __init__(self, graph: Graph, *, max_batch_rows: int = 64, on_batch: OnBatch | None = None) -> None:
        self.graph = graph
        self.encoder = RowEncoder(graph.transforms, graph.layout)
        reader = self.encoder.reader
        self._reader = None if reader is None or MANY in reader.columns else reader  # C cannot tell that column from many rows
        self.batcher = Batcher(
            graph.run_slots,
            num_slots=self.encoder.num_slots,
            num_dense=self.encoder.num_dense,
            max_rows=max_batch_rows,
            bind=graph.bind,
            on_batch=on_batch,
        )

    async def score(self, rows: Sequence[Row], *, from_json: bool = False) -> Answers:
        """N lists of T numbers for N raw rows.

        Args:
            from_json: see `RowEncoder.encode`.

        Raises:
            RefusedRow: for values that the model cannot take, and where its answer is not a finite number; no row is answered then.
        """
        parts = []
        try:
            for start in range(0, len(rows), _PIECE_ROWS):
                if start:
                    await asyncio.sleep(0)  # others get their turn
                parts.append(self.encoder.encode(rows[start : start + _PIECE_ROWS], first_row=start, from_json=from_json))
        except ValueError as error:
            raise RefusedRow(error) from None
        if not parts:
            return []
        ids_NS, dense_ND = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts))
        answers = await self.batcher.submit(ids_NS, dense_ND)
        if not are_finite(answers):
            try:
                self.graph.check_finite(np.array(answers), dense_ND, where=self.graph.codec.where)
            except ValueError as error:
                raise RefusedRow(error) from None
        return answers

    def submit_json(self, row: bytes) -> Waiting | None:
        """One raw row, given as a JSON object, to be awaited; None where it must be parsed and given to `score`.

        So must one whose answers, awaited, are not `are_finite`: `score` says why. What is not a row but `{"rows": [row, ...]}` is
        None.
        """
        reader = self._reader
        if reader is None or not reader.read(row, *self.batcher.next_row()):
            return None
        return self.batcher.submit_next_row()


def are_finite(answers: Answers) -> bool:
    return all(map(math.isfinite, chain.from_iterable(answers)))


class ServedModel:
    """One version of one model, loaded.

    Args:
        metrics: counts its batches; None counts nothing.

    Attributes:
        name: what requests call it.
        version: `Bundle.version`, 16 hexadecimal digits.
        tasks: names of the answers' columns; empty for a retriever.
        graphs: by the names in the bundle's manifest.
        main: the graph that requests are scored with: a ranker's only one, a retriever's query tower.
    """

    def __init__(self, name: str, bundle: Bundle, *, max_batch_rows: int = 64, metrics: Metrics | None = None) -> None:
        self.name = name
        self.bundle = bundle
        self.version = bundle.version
        self.tasks = bundle.tasks
        self.graphs = {}
        self.metrics: ModelMetrics | None = None
        for key, graph in bundle.graphs.items():
            if metrics and key in ("model", "query"):
                self.metrics = metrics.of_model(name, self.version, **_counted(graph, self.tasks))
            on_batch = self.metrics.on_batch if self.metrics and key in ("model", "query") else None
            self.graphs[key] = ServedGraph(graph, max_batch_rows=max_batch_rows, on_batch=on_batch)
        self.main = self.graphs["model"] if "model" in self.graphs else self.graphs["query"]

    @property
    def ranker(self) -> ServedGraph:
        """The graph that scores rows.

        Raises:
            HttpError: 400 for a retriever, which has none.
        """
        if not self.tasks:
            raise HttpError(400, f"model {self.name!r} is a retriever: it recommends (POST /recommend), it does not score rows")
        return self.main

    @property
    def main_examples(self) -> list[dict[str, Any]]:
        """Raw rows for the main graph that travel with the bundle."""
        name = "model" if "model" in self.graphs else "query"
        return self.bundle.examples.get(name, {}).get("rows", [])

    @property
    def vector_width(self) -> int:
        """K of a retriever's vectors."""
        return int(self.main.graph.session.get_outputs()[0].shape[1])

    @property
    def queued_rows(self) -> int:
        return sum(graph.batcher.queued_rows for graph in self.graphs.values())

    async def score(self, rows: Sequence[Row], *, from_json: bool = False) -> Answers:
        """Answers to raw rows, batched with those of other requests: a probability per binary task, a value per regression task.

        Args:
            from_json: see `RowEncoder.encode`.

        Returns:
            N lists of T numbers, columns as in `tasks`; of a retriever, the N query vectors.

        Raises:
            RefusedRow: (a ValueError, and an HttpError of status 422) for values that the model cannot take, with feature,
                column, row and reason.
        """
        return await self.main.score(rows, from_json=from_json)


class _Counted(TypedDict):
    tasks: Sequence[str]
    features: dict[str, slice]
    unknown_rows: np.ndarray


def _counted(graph: Graph, tasks: Sequence[str]) -> _Counted:
    """What `ModelMetrics` needs to know of a graph."""
    features = {}
    unknown = np.full(graph.layout.num_slots, -1, np.int64)
    tables = graph.transforms.tables
    for slot in graph.layout.slots:
        features[slot.feature] = slice(slot.first_slot, slot.first_slot + slot.num_slots)
        feature = graph.transforms.features[slot.feature]
        assert isinstance(feature, IdsTransform)
        if not isinstance(tables[feature.table], Identity):
            unknown[features[slot.feature]] = slot.first_row
    return {"tasks": tasks, "features": features, "unknown_rows": unknown}


@dataclass
class Deployment:
    """The versions behind one name. `current` may be replaced at any time; requests keep the version that they started with.

    Args:
        paths: where the versions were loaded from, by role; watched for new ones.
        split: answers a share `split_share` (0 to 1) of the requests, chosen by the request's key.
        shadow: scores every request too, without answering.

    Attributes:
        on_load: called with each new version before it takes its role, in the thread that loaded it.
        on_replace: called when a version was replaced, in the event loop.
    """

    name: str
    paths: dict[str, Path]
    current: ServedModel
    split: ServedModel | None = None
    split_share: float = 0.0
    shadow: ServedModel | None = None
    on_load: list[Callable[[ServedModel], None]] = field(default_factory=list, repr=False)
    on_replace: list[Callable[[], None]] = field(default_factory=list, repr=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, repr=False)

    def choose(self, key: bytes) -> ServedModel:
        """The version that answers a request; the same key gets the same version on every worker."""
        if self.split is not None and share_of(key) < self.split_share:
            return self.split
        return self.current

    def versions(self) -> dict[str, ServedModel]:
        """By role: current, split, shadow."""
        roles = {"current": self.current, "split": self.split, "shadow": self.shadow}
        return {role: model for role, model in roles.items() if model is not None}

    async def score(
        self, rows: Sequence[Row], *, key: bytes = b"", version: str = "", from_json: bool = False
    ) -> tuple[Answers, ServedModel]:
        """`ServedModel.score` by the version that `key` chooses, or by the version asked for; the shadow scores the rows, too.

        Args:
            key: decides in a split: `Request.key`, or the id of a bid request.
            from_json: see `RowEncoder.encode`.

        Raises:
            RefusedRow: see `ServedModel.score`.
            HttpError: 404 for a version that is not served.
        """
        model = self.version(version) if version else self.choose(key)
        answers = await model.score(rows, from_json=from_json)
        if self.shadow is not None and self.shadow is not model:
            task = asyncio.get_running_loop().create_task(_score_shadow(self.shadow, rows, answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return answers, model

    def replace(self, role: str, model: ServedModel) -> ServedModel:
        """Put a new version in a role, between two turns of the loop; the old one, returned, finishes what it has begun."""
        old = self.versions()[role]
        setattr(self, role, model)
        for let_go in self.on_replace:
            let_go()
        return old

    def version(self, version: str) -> ServedModel:
        """The version asked for.

        Raises:
            HttpError: 404 that names the versions there are.
        """
        for model in self.versions().values():
            if model.version == version:
                return model
        there = ", ".join(m.version for m in self.versions().values())
        raise HttpError(404, f"model {self.name!r} has no version {version[:100]!r}; there are: {there}")


async def _score_shadow(shadow: ServedModel, rows: Sequence[Row], given: Answers) -> None:
    assert shadow.metrics is not None
    try:
        answers = await shadow.score(rows)
    except HttpError:
        shadow.metrics.count_shadow_error()
        return
    if shadow.tasks and len(answers) and len(answers[0]) == len(given[0]):
        shadow.metrics.observe_shadow(answers, given)


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
            raise HttpError(404, f"no model {name[:100]!r}; there are: {', '.join(self.deployments)}")
        return self.deployments[name]
