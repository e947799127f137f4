"""A two-tower run, exported: the index of the bundle holds every candidate that the model knows, by the first row that has it."""

import numpy as np
import pyarrow.parquet as pq
from test_retrieve import make_config, write_files

from torchrec_models import Bundle
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.export.run import export_run
from torchrec_models.pipelines.train import train


def test_an_exported_run_carries_its_candidates(tmp_path):
    write_files(tmp_path)
    config = make_config(tmp_path, "pooled")
    prepare(config, progress=False)
    train(config, progress=False)
    export_run(tmp_path / "pooled")
    bundle = Bundle(tmp_path / "pooled" / "bundle")

    first: dict[int, float] = {}
    for name in ("train", "valid", "test"):
        rows = pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
        for row in rows:
            first.setdefault(row["item"], row["price"])
    known = set(bundle.transforms.tables["item"].values.to_pylist()) - {None}
    expected = {item: price for item, price in first.items() if item in known}
    assert bundle.index is not None
    assert bundle.index.ids.to_pylist() == list(expected) and len(expected) < len(first)
    vectors = bundle.encode([{"item": item, "price": price} for item, price in expected.items()], side="candidate")
    np.testing.assert_allclose(bundle.index.vectors_CK, vectors, atol=1e-6)
    found = bundle.recommend([{"user": 3}], k=4)[0]
    scores = vectors.astype(np.float64) @ bundle.encode([{"user": 3}], side="query")[0].astype(np.float64)
    assert [item for item, _ in found] == [list(expected)[i] for i in np.argsort(-scores, kind="stable")[:4]]
