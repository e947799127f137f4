"""The candidate index against a full sort in float64, on disk and in a bundle."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_models.pipelines.serving.index import CandidateIndex


def by_full_sort(index, queries, k, exclude=()):
    scores = queries.astype(np.float64) @ index.vectors_CK.astype(np.float64).T
    ids = index.ids.to_pylist()
    out = []
    for row in scores:
        order = sorted((i for i in range(len(ids)) if ids[i] not in exclude), key=lambda i: (-row[i], i))[:k]
        out.append([(ids[i], row[i]) for i in order])
    return out


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 40), k=st.integers(1, 50), excluded=st.integers(0, 10), seed=st.integers(0, 99))
def test_search_is_a_full_sort(num, k, excluded, seed):
    random = np.random.default_rng(seed)
    vectors = random.integers(-2, 3, (num, 3)).astype(np.float32)  # exact products, and many ties
    index = CandidateIndex(pa.array([f"i{n}" for n in random.permutation(num)]), vectors)
    exclude = index.ids.to_pylist()[:excluded]
    queries = random.integers(-2, 3, (2, 3)).astype(np.float32)
    assert index.search(queries, k=k, exclude=exclude) == by_full_sort(index, queries, k, exclude)


@pytest.mark.parametrize("ids", [pa.array([7, 5, 9]), pa.array(["a", "b", "c"])], ids=["numbers", "text"])
def test_what_is_saved_is_loaded(ids, tmp_path):
    vectors = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    CandidateIndex(ids, vectors).save(tmp_path / "index.arrow")
    loaded = CandidateIndex.load(tmp_path / "index.arrow")
    assert loaded.ids.equals(ids)
    np.testing.assert_array_equal(loaded.vectors_CK, vectors)
