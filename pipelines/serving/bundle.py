"""An exported model that answers raw rows: the fitted transforms, then ONNX Runtime. No torch, no config, no training code.

Shapes in names: N rows, S slots, D dense features, T tasks, K width of a tower's vector.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from torchrec_models.schema import Schema

from ..data.transforms import Encoded, NumericTransform, Transforms
from ..data.values import Place, of_feature
from .bundle_files import EXAMPLES, read_manifest
from .codec import Row, RowCodec
from .index import INDEX, CandidateIndex
from .onnx_runtime import bound, open_session
from .slots import SlotLayout

Rows: TypeAlias = Sequence[Row] | pa.Table | pa.RecordBatch


class Graph:
    """One ONNX file and how rows are laid out for it.

    Args:
        folder: the bundle.
        spec: `file`, `inputs`, `side` and `slots`, as in the manifest's `graphs`.
        transforms: of the whole model; a graph of one side uses its own part.
        num_threads: of one call, inside operators.
    """

    def __init__(self, folder: Path, spec: Mapping[str, Any], transforms: Transforms, *, num_threads: int = 1) -> None:
        self.transforms = transforms_of_side(transforms, spec["side"])
        self.codec = RowCodec(self.transforms)
        self.layout = SlotLayout.from_list(spec["slots"])
        self.inputs: list[str] = spec["inputs"]
        self.session = open_session(folder / spec["file"], num_threads=num_threads)
        self._outputs = [output.name for output in self.session.get_outputs()]

    def encode(self, rows: Rows, *, first_row: int = 0) -> Encoded:
        """Raw rows to model inputs; see `Bundle.predict` for what is refused."""
        table = rows if isinstance(rows, (pa.Table, pa.RecordBatch)) else self.codec.table(rows, first_row=first_row)
        return self.transforms.encode(table, where=self.codec.where, first_row=first_row)

    def run(self, encoded: Encoded) -> np.ndarray:
        """Model inputs to the graph's output [N, T] or [N, K] float32."""
        return self.run_slots(self.layout.fill(encoded) if "ids" in self.inputs else None, encoded.dense)

    def answer(self, encoded: Encoded, *, where: str, first_row: int = 0) -> np.ndarray:
        """`run`, and `check_finite`."""
        answers = self.run(encoded)
        self.check_finite(answers, encoded.dense, where=where, first_row=first_row)
        return answers

    def check_finite(self, answers: np.ndarray, dense_ND: np.ndarray, *, where: str, first_row: int = 0) -> None:
        """Numbers that fit 32 bits can still be too large for the graph, which multiplies them.

        Args:
            answers: [N, T] or [N, K].
            where, first_row: as in `Place`.

        Raises:
            ValueError: for an answer that is not finite, with the row and the column of its largest number.
        """
        if np.isfinite(answers).all():
            return
        row = int(np.argmin(np.isfinite(answers).all(axis=1)))
        found = answers[row][~np.isfinite(answers[row])][0]
        numeric = [(name, f.column) for name, f in self.transforms.features.items() if isinstance(f, NumericTransform)]
        if not numeric:
            raise ValueError(f"{where}: data row {first_row + row + 1}: the model's answer is {found}")
        largest = int(np.abs(dense_ND[row]).argmax())
        name, column = numeric[largest]
        text = (
            f"the model's answer is {found}; the largest number that it was given is {dense_ND[row, largest]:g}, from this column: "
            "too large for the model; add a {clip: [low, high]} step"
        )
        raise of_feature(Place(where, column, first_row).error(row, text), name)

    def run_slots(self, ids: np.ndarray | None, dense: np.ndarray) -> np.ndarray:
        """`run` of what is laid out already: flat table rows [N, S] int64, numeric features [N, D] float32."""
        feeds = {}
        if "ids" in self.inputs:
            feeds["ids"] = ids
        if "dense" in self.inputs:
            feeds["dense"] = dense
        return self.session.run(self._outputs, feeds)[0]

    def bind(self, ids_MS: np.ndarray, dense_MD: np.ndarray) -> Callable[[int], np.ndarray]:
        """`run_slots` of the first N rows of arrays that stay, N = 1 .. M: nothing is checked, made or copied in a call.

        Returns:
            A function from N to answers [N, T], which its next call overwrites.
        """
        given = {"ids": ids_MS, "dense": dense_MD}
        answers_MT = np.empty((len(ids_MS), int(self.session.get_outputs()[0].shape[1])), np.float32)
        return bound(self.session, {name: given[name] for name in self.inputs}, self._outputs[0], answers_MT)


def transforms_of_side(transforms: Transforms, side: str) -> Transforms:
    """The transforms of one tower's features; all of them for ""."""
    if not side:
        return transforms
    return transforms.part([f.name for f in transforms.schema.features if f.side == side])


class Bundle:
    """A bundle folder, verified and loaded.

    Args:
        path: the folder that `trm export` wrote.
        num_threads: ONNX Runtime threads per call; 1 is fastest for small batches, and for one worker per core.
        batch_rows: rows per call of the graph; longer inputs are cut.

    Attributes:
        manifest: the content of manifest.json.
        kind: "ranker" (graph `model`) or "retriever" (graphs `query` and `candidate`).
        tasks: names of the columns of `predict`; empty for a retriever.

    Raises:
        ValueError: if a file is missing or altered, or the format is not this release's.
    """

    def __init__(self, path: str | Path, *, num_threads: int = 1, batch_rows: int = 1024) -> None:
        if num_threads < 1 or batch_rows < 1:
            raise ValueError(f"num_threads and batch_rows must be >= 1, got {num_threads} and {batch_rows}")
        self.path = Path(path)
        self.batch_rows = batch_rows
        self.manifest = read_manifest(self.path)
        self.kind: str = self.manifest["kind"]
        self.tasks: tuple[str, ...] = tuple(t["name"] for t in self.manifest["schema"]["tasks"])
        self.transforms = Transforms.load(self.path, after_log=True)
        self.graphs = {
            name: Graph(self.path, spec, self.transforms, num_threads=num_threads) for name, spec in self.manifest["graphs"].items()
        }

    @cached_property
    def schema(self) -> Schema:
        return Schema.from_dict(self.manifest["schema"])

    @cached_property
    def version(self) -> str:
        """16 hex digits over the checksums of all files: equal for equal bundles."""
        text = json.dumps(self.manifest["files"], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @cached_property
    def examples(self) -> dict[str, dict[str, Any]]:
        """By graph: a few raw `rows` and the `answers` recorded at export."""
        return json.loads((self.path / EXAMPLES).read_text())

    @cached_property
    def index(self) -> CandidateIndex | None:
        """A retriever's candidates; None where the bundle has none."""
        return CandidateIndex.load(self.path / INDEX) if INDEX in self.manifest["files"] else None

    @property
    def tolerance(self) -> float:
        """The largest difference that the export allowed, as `scaled_difference`."""
        return self.manifest["parity"]["tolerance"]

    def predict(self, rows: Rows) -> np.ndarray:
        """Answers to raw rows: the probability of each binary task, the value of each regression task.

        Args:
            rows: dicts from raw column to value (text, number, list; a key left out is a missing value), or an Arrow table with
                at least the model's columns.

        Returns:
            [N, T] float32, columns as in `tasks`.

        Raises:
            ValueError: for unknown keys, missing columns and values that the model cannot take, with feature and row (1-based).
        """
        return self._answers(rows, "model")

    def predict_batches(self, batches: Iterable[Rows]) -> Iterator[np.ndarray]:
        """`predict` on a stream; errors count rows from the stream's start."""
        first_row = 0
        for rows in batches:
            yield self._answers(rows, "model", first_row=first_row)
            first_row += len(rows)

    def encode(self, rows: Rows, *, side: str) -> np.ndarray:
        """Vectors [N, K] float32 of a retriever's queries or candidates; their dot product is the score.

        Args:
            rows: as in `predict`, with the columns of that side only.
            side: "query" or "candidate".
        """
        return self._answers(rows, side)

    def recommend(self, rows: Rows, *, k: int) -> list[list[tuple[Any, float]]]:
        """The k candidates of the highest score for each query, best first, as (raw candidate id, score).

        Raises:
            ValueError: if the bundle has no index, and as in `encode`.
        """
        if self.index is None:
            raise ValueError(f"{self.path}: no index of candidates; `trm export` of a two-tower run writes one")
        return self.index.search(self.encode(rows, side="query"), k=k)

    def _answers(self, rows: Rows, name: str, *, first_row: int = 0) -> np.ndarray:
        if name not in self.graphs:
            calls = "predict" if self.kind == "ranker" else 'encode(side="query" or "candidate")'
            raise ValueError(f"{self.path}: a {self.kind} has no graph {name!r}; use {calls}")
        if isinstance(rows, Mapping):
            raise ValueError("rows: a list of dicts is expected, got one dict; put it in a list")
        graph = self.graphs[name]
        parts = []
        for start in range(0, max(len(rows), 1), self.batch_rows):
            part = _slice(rows, start, start + self.batch_rows)
            encoded = graph.encode(part, first_row=first_row + start)
            parts.append(graph.answer(encoded, where=graph.codec.where, first_row=first_row + start))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def self_test(self) -> float:
        """Scores the sample rows that travel with the bundle.

        Returns:
            The largest difference from the answers recorded at export.

        Raises:
            ValueError: if it exceeds the export's tolerance.
        """
        tolerance = self.tolerance
        worst = 0.0
        for name, example in self.examples.items():
            expected = np.asarray(example["answers"], np.float32)
            found = self._answers(example["rows"], name)
            difference = scaled_difference(found, expected)
            if not difference.max() <= tolerance:
                row = int(np.argmax(~(difference.max(axis=1) <= tolerance)))
                raise ValueError(
                    f"{self.path}: self test: sample row {row + 1} of graph {name!r} gives {found[row].tolist()}, "
                    f"recorded at export: {expected[row].tolist()}; this machine does not reproduce the model"
                )
            worst = max(worst, float(difference.max()))
        return worst


def _slice(rows: Rows, start: int, stop: int) -> Rows:
    return rows.slice(start, stop - start) if isinstance(rows, (pa.Table, pa.RecordBatch)) else rows[start:stop]


def scaled_difference(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|found - expected| / max(1, |expected|): absolute for probabilities, relative for large regression values. NaN stays NaN."""
    expected = expected.astype(np.float64)
    return np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
