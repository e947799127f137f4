"""docs/data.md: its config does what the page says, its links lead somewhere, its tables leave no step and no kind of ids out."""

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.config.data import _STEP_KEYS, _STEP_NAMES, IdsConfig
from torchrec_models.pipelines.config.splits import SplitConfig
from torchrec_models.pipelines.data.prepare import check_data, prepare
from torchrec_models.pipelines.inspection.head import head

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "data.md").read_text()
(CONFIG,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
# two days to train on, one to validate on, one to test on
LOG = {
    "ts": ["2024-06-08", "2024-06-08", "2024-06-09", "2024-06-10", "2024-06-13"],
    "user": ["ann", "bob", "ann", "eve", "bob"],
    "item": ["a", "a", "b", "a", "c"],
    "viewed": ["a,b,c,d,e,f,g", "", None, "b", "c,b"],
    "price": [1.0, None, 3.0, None, 7.0],
    "age": [20, 40, 60, None, 17],
    "clicked": [0, 1, 0, 1, 0],
}


def test_the_config_does_what_the_page_says(tmp_path: Path) -> None:
    log = pa.table({**LOG, "ts": pa.array(np.array(LOG["ts"], "datetime64[s]"))})
    (tmp_path / "clicks").mkdir()
    pq.write_table(log, tmp_path / "clicks" / "log.parquet")
    raw = yaml.safe_load(CONFIG)
    raw["data"] |= {"train": str(tmp_path / "clicks" / "*.parquet"), "cache": str(tmp_path / "cache")}
    config = C.parse(raw)
    check_data(config)
    cache = prepare(config, progress=False)
    train, valid, test = (head(cache, split, num_rows=9) for split in ("train", "valid", "test"))
    assert [len(rows) for rows in (train, valid, test)] == [3, 1, 1]
    assert [row["price_missing"] for row in (*train, *valid, *test)] == [0, 1, 0, 1, 0]
    logs = np.log1p([1.0, 2.0, 3.0])  # the second is the mean of the training rows
    assert [row["price"] for row in train] == pytest.approx((logs - logs.mean()) / logs.std(), rel=1e-6)
    assert valid[0]["price"] == pytest.approx((logs[1] - logs.mean()) / logs.std(), rel=1e-6)
    assert valid[0]["age"] == pytest.approx(0, abs=1e-6)  # the median, 40, is the mean as well
    assert [row["viewed"] for row in train] == [["c", "d", "e", "f", "g"], [], []]
    assert [row["first_viewed"] for row in train] == [["a", "b", "c"], [], []]
    assert [row["item"] for row in (*train, *valid, *test)] == ["a", "a", "<oov>", "a", "<oov>"]  # min_count: 2
    assert [row["age_group"] for row in (*train, *test)] == ["[18, 30)", "[30, 45)", "[45, 65)", "[-inf, 18)"]
    assert cache.schema.table("user").num_rows == 1 + 3  # 1.5 times two users, and row 0


def test_every_step_split_and_kind_of_ids_is_on_the_page() -> None:
    kinds = [get_args(model.model_fields["by"].annotation)[0] for union in (IdsConfig, SplitConfig) for model in members(union)]
    assert {"vocabulary", "hash", "identity", "time", "time_fold"} < {*kinds}
    left_out = [name for name in (*_STEP_KEYS, *_STEP_NAMES) if not re.search(rf"`{{?{name}\b", PAGE)]
    left_out += [kind for kind in kinds if f"{{by: {kind}" not in PAGE]
    assert left_out == []


def members(union: object) -> tuple[type, ...]:
    return get_args(get_args(union)[0])


def test_links_lead_somewhere() -> None:
    for path in (*DOCS.glob("*.md"), DOCS.parent / "README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text()):
            name, _, anchor = target.partition("#")
            page = path.parent / name if name else path
            assert page.exists(), f"{path.name}: {target}"
            titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE) if anchor else []
            anchors = {"", *(re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles)}
            assert anchor in anchors, f"{path.name}: {target}"
