"""Masks of missing numbers on the whole road: raw rows, cache, training, export, bundle, HTTP."""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from click_run import raw_config
from scored_run import answers, train_run, write_files
from server_process import serving

from torchrec_models import Bundle
from torchrec_models.pipelines.export.run import export_run

_FILL = 30.0
_SPEND = {
    "spend": {"kind": "numeric", "steps": [{"fill": _FILL}, "standard"]},
    "spend_missing": {"kind": "numeric", "column": "spend", "steps": ["is_missing"]},
}


def test_a_missing_number_is_its_fill_and_its_mask_from_training_to_http(tmp_path: Path) -> None:
    write_files(tmp_path)
    features = {**raw_config(tmp_path, "run")["features"], **_SPEND}
    run = train_run(tmp_path, features=features, train__dense={"optimizer": "adamw", "lr": 0.1})
    export_run(run, out=tmp_path / "bundle")
    rows = pq.read_table(tmp_path / "test.parquet")
    missing = pc.is_null(rows["spend"]).to_numpy()
    assert 0 < missing.sum() < len(missing)

    bundle = Bundle(tmp_path / "bundle")
    wanted = answers(run, rows)
    np.testing.assert_allclose(bundle.predict(rows), wanted, atol=1e-6, rtol=0)

    columns = bundle.graphs["model"].codec.columns
    as_json = rows.select(list(columns)).to_pylist()
    without = [{k: v for k, v in row.items() if v is not None} for row in as_json]
    filled = [{**row, "spend": _FILL if row["spend"] is None else row["spend"]} for row in as_json]
    changed = np.abs(bundle.predict(filled) - wanted)[:, 0] > 1e-6
    np.testing.assert_array_equal(changed, missing, err_msg="the mask is what tells a missing number from its fill")
    with serving(tmp_path, f"click={tmp_path / 'bundle'}") as served:
        for body in (as_json, without):
            answer = served.ask("POST", "/predict", {"rows": body})
            assert answer.status == 200, answer.body
            found = [one["label"] for one in answer.json["predictions"]]
            np.testing.assert_allclose(found, wanted[:, 0], atol=1e-6, rtol=0)
