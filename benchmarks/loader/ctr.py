"""The benchmark's rows: the CTR layout of make_ctr.py as a file, as a config of ours, and as a prepared cache."""

from pathlib import Path

from benchmarks.data import make_ctr
from torchrec_models.pipelines.config import RunConfig
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.shards import Cache

NUMERIC = make_ctr.USED_NUMERIC
CATEGORICAL = tuple(make_ctr.CATEGORICALS)
SEQUENCE = "seq"
LABEL = "clicked"
MAX_LEN = 4000  # keeps every id: the mean length is what is asked for


def make_rows(folder: Path, *, num_rows: int, mean_length: int) -> Path:
    """The raw file of `num_rows` rows, made if it is not there."""
    out = folder / f"raw-{num_rows}-{mean_length}"
    if not (out / "truth.json").exists():
        make_ctr.make(out, rows=num_rows, mean_length=mean_length, rows_per_file=num_rows)
    return out / "train-00000.parquet"


def run_config(raw: Path, cache: Path) -> RunConfig:
    """5 categoricals, 76 numbers and a sequence, whose ids are table rows already."""
    features: dict = {name: {"kind": "categorical", "dim": 8} for name in CATEGORICAL}
    features |= {name: {"kind": "numeric", "steps": [{"fill": 0.0}]} for name in NUMERIC}
    features[SEQUENCE] = {
        "kind": "sequence",
        "dim": 8,
        "max_len": MAX_LEN,
        "separator": ",",
        "ids": {"by": "vocabulary"},
    }
    return RunConfig.model_validate(
        {
            "run": str(cache.parent / "run"),
            "data": {"train": [str(raw)], "cache": str(cache)},
            "features": features,
            "labels": {LABEL: {}},
            "model": {"name": "deepfm", "hidden_units": [64]},
        }
    )


def prepared(raw: Path) -> Cache:
    """The cache of a raw file, beside it, made if it is not there."""
    config = run_config(raw, raw.parent / "cache")
    try:
        return prepare(config)
    except ValueError:  # of another version, with settings of its own
        return prepare(config, force=True)
