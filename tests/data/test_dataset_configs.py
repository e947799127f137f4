"""The shipped configs prepare the real data that they are written for."""

from pathlib import Path

import pytest

from torchrec_models.pipelines.config import load
from torchrec_models.pipelines.data.loader import Loader
from torchrec_models.pipelines.data.prepare import prepare

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "num_rows", "num_ids"),
    [
        # 5,379 ids seen in training and one row for unseen ones per column, as BARS counts (423,280 parameters of DeepFM)
        ("frappe/deepfm", {"train": 202_027, "valid": 57_722, "test": 28_860}, 5389),
        ("ml1m/two_tower", {"train": 994_169, "test": 6040}, 6040 + 2 + 7 + 21 + 3704 + 18 + 6),
        ("criteo/dlrm", {"train": 8049, "valid": 984, "test": 967}, None),
        ("ipinyou/deepfm", {"train": 8355, "test": 4171}, None),
    ],
)
def test_config_prepares_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, num_rows: dict[str, int], num_ids: int | None
) -> None:
    monkeypatch.chdir(ROOT)
    config = load(f"configs/{name}.yaml", [f"data.cache={tmp_path / 'cache'}"])
    if not Path(config.data.train[0]).exists():
        pytest.skip(f"no real data at {config.data.train[0]} (it may not be redistributed)")
    cache = prepare(config, progress=False)
    assert {split: data.num_rows for split, data in cache.splits.items()} == num_rows
    if num_ids is not None:
        assert sum(table.num_rows for table in cache.schema.tables) == num_ids
    for split in cache.splits:
        batch = next(iter(Loader(cache, split, batch_size=64).epoch(0)))
        assert batch.sparse.keys() == [f.name for f in cache.schema.pooled]
        for feature in cache.schema.pooled:
            ids = batch.sparse[feature.name].values()
            assert ids.min() >= 0 and ids.max() < cache.schema.table(feature.table).num_rows


def test_the_criteo_config_is_short() -> None:
    assert len((ROOT / "configs" / "criteo" / "dlrm.yaml").read_text().splitlines()) < 40
