"""The models that are served, each made by the road that a user takes: a log, `trm prepare`, `trm train`, `trm export`.

20 categorical fields of 10,000 values each, four of them with 0 to 8 values in a row. The rows are drawn here: what a server costs
does not depend on how good its model is, so a few training steps do.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.record import ROOT

NUM_VALUES = 10_000
MAX_LEN = 8
NUM_ROWS, NUM_VALID_ROWS = 40_000, 2_000
ZIPF_EXPONENT = 1.1
SEED = 7

SINGLE = {  # column: where a bid request has it
    "user": "user.id",
    "gender": "user.gender",
    "agent": "device.ua",
    "ip": "device.ip",
    "make": "device.make",
    "model": "device.model",
    "os": "device.os",
    "language": "device.language",
    "carrier": "device.carrier",
    "country": "device.geo.country",
    "region": "device.geo.region",
    "city": "device.geo.city",
    "domain": "site.domain",
    "page": "site.page",
    "publisher": "site.publisher.id",
    "slot": "imp.tagid",
}
MULTIPLE = {
    "categories": "site.cat",
    "page_categories": "site.pagecat",
    "keywords": "user.kwarray",
    "segments": "user.data[*].segment[*].id",
}
NETS = {
    "deepfm": (8, {"name": "deepfm", "hidden_units": [256, 128, 64]}),
    "autoint": (64, {"name": "autoint", "num_layers": 3, "num_heads": 4, "attention_width": 64, "hidden_units": [256, 128, 64]}),
}
BID = {
    "currency": "USD",
    "columns": {**SINGLE, **MULTIPLE},
    "campaigns": [
        {
            "id": "shoes",
            "value": {"per": "click", "amount": 0.5},
            "advertiser_domains": ["shoes.example"],
            "categories": ["IAB18"],
            "creatives": [{"id": "c1", "w": 300, "h": 250}, {"id": "c2", "w": 728, "h": 90}, {"id": "c3", "w": 160, "h": 600}],
        }
    ],
}


def value(column: str, index: int) -> str:
    """A field's value as a log would have it: text of eight characters."""
    return f"{column[:2]}_{index:05d}"


def draw_rows(random: np.random.Generator, num_rows: int) -> pa.Table:
    """Rows whose ids are as unequal as a log's (Zipf). The first 10,000 have every value once, so that tables have all rows."""
    columns: dict[str, pa.Array] = {}
    logit = np.zeros(num_rows)
    share = 1 / np.arange(1, NUM_VALUES + 1) ** ZIPF_EXPONENT
    share /= share.sum()

    def popular(num_ids: int) -> np.ndarray:
        return random.permutation(NUM_VALUES)[random.choice(NUM_VALUES, num_ids, p=share)]

    for column in SINGLE:
        ids = np.concatenate([random.permutation(NUM_VALUES), popular(num_rows - NUM_VALUES)])
        logit += random.normal(0, 0.5, NUM_VALUES)[ids]
        columns[column] = pa.array([value(column, i) for i in ids.tolist()])
    for column in MULTIPLE:
        lengths = random.integers(0, MAX_LEN + 1, num_rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = np.concatenate([random.permutation(NUM_VALUES), popular(offsets[-1] - NUM_VALUES)])
        columns[column] = pa.ListArray.from_arrays(pa.array(offsets), pa.array([value(column, i) for i in ids.tolist()]))
    columns["click"] = pa.array((random.random(num_rows) < 1 / (1 + np.exp(2 - logit))).astype(np.int8))
    return pa.table(columns)


def make(folder: Path, name: str) -> Path:
    """The bundle `folder/name/bundle`, made if it is not there."""
    place = folder / name
    if not (place / "bundle" / "manifest.json").exists():
        log = folder / "log"
        if not (log / "valid.parquet").exists():
            log.mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng(SEED)
            rows = draw_rows(random, NUM_ROWS + NUM_VALID_ROWS)
            pq.write_table(rows.slice(0, NUM_ROWS), log / "train.parquet")
            pq.write_table(rows.slice(NUM_ROWS), log / "valid.parquet")
        place.mkdir(parents=True, exist_ok=True)
        config = place / "config.yaml"
        config.write_text(yaml.safe_dump(_config(folder, name), sort_keys=False))
        for verb, of in (("prepare", config), ("train", config), ("export", place / "run")):
            out = ["--out", str(place / "bundle")] if verb == "export" else []
            subprocess.run([sys.executable, "-m", "torchrec_models.pipelines.cli", verb, str(of), *out], cwd=ROOT, check=True)
    return place / "bundle"


def copy_of(bundle: Path) -> Path:
    """The same bundle in another folder: what `trm serve` takes for a new version when a link is moved to it."""
    copy = bundle.with_name("bundle_copy")
    if not copy.exists():
        shutil.copytree(bundle, copy)
    return copy


def bid_config(folder: Path) -> Path:
    """A bid.yaml for these models: a banner campaign of which one creative fits, so one row is scored per request."""
    path = folder / "bid.yaml"
    path.write_text(yaml.safe_dump(BID, sort_keys=False))
    return path


def _config(folder: Path, name: str) -> dict:
    width, net = NETS[name]
    features: dict[str, dict] = {c: {"kind": "categorical", "dim": width, "ids": {"by": "vocabulary"}} for c in SINGLE}
    features |= {c: {**features["user"], "max_len": MAX_LEN} for c in MULTIPLE}
    return {
        "run": str(folder / name / "run"),
        "data": {
            "train": str(folder / "log" / "train.parquet"),
            "valid": str(folder / "log" / "valid.parquet"),
            "cache": str(folder / f"cache-{width}"),
        },
        "features": features,
        "labels": {"click": {}},
        "model": net,
        "train": {"batch_size": 2000, "epochs": 1, "tensorboard": False},
    }
