"""What callers send: bodies as long as real ones, many different ones, so that no cache of the server's is flattered."""

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow.parquet as pq

from .models import MULTIPLE, SINGLE

NUM_BODIES = 2000
SIZES = ((300, 250), (728, 90), (160, 600))  # of the creatives in models.bid_config


def predict_bodies(folder: Path, num_bodies: int = NUM_BODIES) -> list[bytes]:
    """Rows of the log's validation part as `POST /predict` takes them."""
    rows = pq.read_table(folder / "log" / "valid.parquet").drop_columns(["click"]).slice(0, num_bodies).to_pylist()
    return [json.dumps(row, separators=(",", ":")).encode() for row in rows]


def bid_bodies(folder: Path, num_bodies: int = NUM_BODIES) -> list[bytes]:
    """The same rows as OpenRTB 2.6 bid requests, with the other fields that exchanges send."""
    rows = pq.read_table(folder / "log" / "valid.parquet").drop_columns(["click"]).slice(0, num_bodies).to_pylist()
    return [json.dumps(_request(number, row), separators=(",", ":")).encode() for number, row in enumerate(rows)]


def _request(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """Each publisher blocks others, and sells one of three sizes; floors differ from request to request."""
    of_publisher = crc32(row["publisher"].encode())
    floor, (w, h) = (number % 30 + 1) / 1000, SIZES[of_publisher % len(SIZES)]
    request: dict[str, Any] = {
        "id": f"80ce30c53c16e6ede735f123ef6e{number:04x}",
        "at": 1,
        "tmax": 1000,
        "cur": ["USD"],
        "source": {"fd": 1, "tid": "8f1b2a34-77de-4c6b-9a0e-1f2d3c4b5a69"},
        "regs": {"coppa": 0, "gdpr": 0, "us_privacy": "1YNN"},
        "bcat": ["IAB25", f"IAB7-{of_publisher % 40 + 1}"],
        "badv": [f"competitor{of_publisher % 1000}.example"],
        "imp": [{"id": "1", "bidfloor": floor, "secure": 1, "banner": {"w": w, "h": h, "pos": 1, "battr": [13]}}],
        "user": {"data": [{"id": "d1", "segment": [{"id": s} for s in row["segments"]]}]},
        "site": {"id": "102855"},
        "device": {"devicetype": 2, "js": 1, "h": 1080, "w": 1920, "geo": {"type": 2}},
    }
    for column, path in {**SINGLE, **MULTIPLE}.items():
        if column == "segments":
            continue
        root, *between, last = path.split(".")
        place = request["imp"][0] if root == "imp" else request[root]
        for part in between:
            place = place.setdefault(part, {})
        place[last] = row[column]
    return request


def describe(bodies: list[bytes]) -> dict[str, Any]:
    """How many bodies there are, and their sizes."""
    sizes = np.array([len(b) for b in bodies])
    return {"bodies": len(bodies), "bytes_mean": round(float(sizes.mean())), "bytes_max": int(sizes.max())}
