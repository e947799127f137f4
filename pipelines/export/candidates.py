"""The candidates of a retrieval run, each once, for the index that travels with a bundle."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..config import RunConfig
from ..data.ids import Identity
from ..data.raw_join import joined_rows
from ..data.transforms import IdsTransform, Transforms
from ..data.values import one_array, plain
from ..serving.bundle import Graph
from ..serving.index import CandidateIndex

_BATCH_ROWS = 4096


def candidate_rows(config: RunConfig, transforms: Transforms) -> pa.Table:
    """One raw row of every candidate that the run's data shows: the first one. Columns are those of the candidate tower."""
    schema = transforms.schema
    columns = list(dict.fromkeys(transforms.columns[f.name] for f in schema.features if f.side == "candidate"))
    candidate = transforms.columns[schema.candidate_id]
    found: pa.Table | None = None
    for paths in (config.data.train, config.data.valid, config.data.test):
        for batch in joined_rows(config, paths, columns) if paths else ():
            found = _first_rows(
                batch if found is None else pa.concat_tables([found, batch], promote_options="permissive"), candidate
            )
    assert found is not None, "a run has training data"
    return found


def _first_rows(rows: pa.Table, column: str) -> pa.Table:
    rows = rows.unify_dictionaries()
    keyed = pa.table({"key": rows.column(column), "at": np.arange(rows.num_rows)})
    first = keyed.group_by("key").aggregate([("at", "min")]).column("at_min")
    return rows.take(first.take(pc.sort_indices(first)))


def candidate_index(graph: Graph, rows: pa.Table, candidate_id: str) -> CandidateIndex:
    """The candidate tower's vectors of raw rows; candidates that share row 0 of their table (not known, or missing) are left out.

    Args:
        graph: of the candidate side.
        rows: each candidate once.
        candidate_id: the feature that identifies a candidate.

    Raises:
        ValueError: if none is left, and where a vector is not finite.
    """
    feature = graph.transforms.features[candidate_id]
    assert isinstance(feature, IdsTransform)
    knows_all = isinstance(graph.transforms.tables[feature.table], Identity)
    kept, vectors = [], []
    for start in range(0, rows.num_rows, _BATCH_ROWS):
        part = rows.slice(start, _BATCH_ROWS)
        encoded = graph.encode(part)
        known = encoded.ids[candidate_id][0] > (-1 if knows_all else 0)
        kept.append(plain(one_array(part.column(feature.column))).filter(pa.array(known)))
        vectors.append(graph.answer(encoded, where="candidates", first_row=start)[known])
    ids = pa.concat_arrays(kept)
    if not len(ids):
        raise ValueError(f"no candidate for the index: the table {feature.table!r} knows none of the data's {feature.column}")
    return CandidateIndex(ids, np.concatenate(vectors))
