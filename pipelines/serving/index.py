"""All candidates of a two-tower model as vectors, and an exact search for the best of them.

On disk: `index.arrow`, an Arrow IPC file with the columns `id` (the raw candidate id) and `vector` (fixed-size list of float32).
Shapes in names: Q queries, C candidates, K width. Runs in exported bundles: numpy and pyarrow only.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

INDEX = "index.arrow"


@dataclass(frozen=True, eq=False)
class CandidateIndex:
    """Candidates to choose from.

    Attributes:
        ids: [C] raw ids, each once.
        vectors_CK: float32; the dot product with a query's vector is the score.
    """

    ids: pa.Array
    vectors_CK: np.ndarray

    def save(self, path: Path) -> None:
        width = self.vectors_CK.shape[1]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(self.vectors_CK).ravel()), width)
        batch = pa.record_batch({"id": self.ids, "vector": vectors})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write(batch)

    @classmethod
    def load(cls, path: Path) -> "CandidateIndex":
        with pa.OSFile(str(path)) as source:
            table = pa.ipc.open_file(source).read_all().combine_chunks()
        vectors = table.column("vector").chunk(0)
        flat = vectors.flatten().to_numpy(zero_copy_only=False)
        return cls(table.column("id").chunk(0), flat.reshape(len(vectors), -1))

    def search(self, queries_QK: np.ndarray, *, k: int, exclude: Collection[Any] = ()) -> list[list[tuple[Any, float]]]:
        """The k candidates of the highest score for each query, best first; of equal scores, the one that stands first.

        Args:
            k: fewer come back where there are fewer candidates.
            exclude: ids that are left out, for all queries.

        Returns:
            Per query a list of (id, score).
        """
        scores_QC = queries_QK @ self.vectors_CK.T
        num_asked = min(k + len(exclude), len(self.ids))
        if num_asked < len(self.ids):
            # a threshold instead of argpartition's choice, so that ties go by position
            lowest = np.partition(scores_QC, len(self.ids) - num_asked, axis=1)[:, len(self.ids) - num_asked]
        else:
            lowest = np.full(len(queries_QK), -np.inf, np.float32)
        left_out = set(exclude)
        out = []
        for scores_C, threshold in zip(scores_QC, lowest):
            near = np.flatnonzero(scores_C >= threshold)
            best = near[np.argsort(-scores_C[near], kind="stable")[:num_asked]]
            found = zip(self.ids.take(pa.array(best)).to_pylist(), scores_C[best].tolist())
            out.append([one for one in found if one[0] not in left_out][:k])
        return out
