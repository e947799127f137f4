"""A trained run -> a bundle, checked on real rows."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from torchrec_models.model import Retriever

from .. import checkpoint
from ..calibration import Calibration
from ..config import RunConfig, write_yaml
from ..data.raw_join import joined_rows
from ..data.transforms import Transforms
from .candidates import candidate_rows
from .export import export


def export_run(
    path: Path, *, out: Path | None = None, which: str = "best", overwrite: bool = False, calibrated: bool = True
) -> str:
    """Export a run's best (or last) checkpoint; returns the text for the terminal.

    Args:
        out: the bundle's folder; default `<run>/bundle`.
        calibrated: put what `trm calibrate` found, if it was run, into the graph.

    Raises:
        ValueError: a calibration of another checkpoint, no raw rows to check with, a bundle in the way, or one that differs from
            PyTorch (see `export`).
        CheckpointError: no usable checkpoint.
    """
    loaded = checkpoint.load_model(path, which=which)
    transforms = Transforms.load(loaded.transforms, after_log=True)
    if transforms.states and isinstance(loaded.model, Retriever):
        raise ValueError(
            f"features of kind covisitation ({', '.join(transforms.states)}) belong to a pair of user and item, and a retriever's "
            "bundle encodes the two apart; train the retriever without them, and the ranker behind it with them"
        )
    run = loaded.checkpoint.resolve().parent.parent
    calibration = Calibration.load(run) if calibrated else None
    if calibration and calibration.checkpoint != loaded.checkpoint.name:
        raise ValueError(
            f"{run / 'calibration.json'} is of {calibration.checkpoint}, and this is {loaded.checkpoint.name}; "
            "run trm calibrate again, or export with --no-calibration"
        )
    out = out or (run if path.name.startswith("step-") else path) / "bundle"
    rows, where = _real_rows(loaded.config, transforms)
    metrics = _test_metrics(run, loaded.checkpoint.name) or loaded.progress.metrics
    report = export(
        loaded.model,
        schema=loaded.schema,
        transforms_folder=loaded.transforms,
        rows=rows,
        out=out,
        config_text=write_yaml(loaded.config.model_dump(mode="json")),
        metrics=metrics,
        parity_rows=loaded.config.export.parity_rows,
        tolerance=loaded.config.export.tolerance,
        source={"run": run.name, "checkpoint": loaded.checkpoint.name, "step": loaded.progress.step},
        calibration=calibration,
        overwrite=overwrite,
        candidates=candidate_rows(loaded.config, transforms) if loaded.schema.candidate_id else None,
    )
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return (
        f"{out}: {size / 2**20:.2f} MiB; {rows.num_rows:,} rows of {where} scored by PyTorch and by ONNX Runtime differ by at most "
        f"{report.max_difference:.2g} (allowed: {loaded.config.export.tolerance:g})\n"
        f"{_calibration_text(calibration)}\n"
        f'next: python -c "from torchrec_models import Bundle; b = Bundle({str(out)!r}); print(b.self_test())"'
    )


def _calibration_text(calibration: Calibration | None) -> str:
    if calibration is None:
        return "not calibrated: trm calibrate RUN fits predicted to actual rates, which bids need"
    how = f"{calibration.method} on {calibration.split}"
    return f"calibrated in the graph ({how}); the metrics that trm evaluate writes are those before calibration"


def _test_metrics(run: Path, checkpoint_name: str) -> dict[str, Any]:
    """What `trm evaluate` found on the test split, if it was this checkpoint that it evaluated."""
    path = run / "evaluation" / "test" / "metrics.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found["tasks"] if found.get("checkpoint") == checkpoint_name else {}


def _real_rows(config: RunConfig, transforms: Transforms) -> tuple[pa.Table, str]:
    """The first rows of the data that is furthest from training: test, else validation, else training files.

    Where covisitation features are computed, as if they were asked for right after the end of the log.
    """
    split = next(name for name in ("test", "valid", "train") if getattr(config.data, name))
    batches, have = [], 0
    for rows in joined_rows(config, getattr(config.data, split), transforms.raw_columns):
        batches.append(rows.slice(0, config.export.parity_rows - have))
        have += batches[-1].num_rows
        if have >= config.export.parity_rows:
            break
    found = pa.concat_tables(batches).unify_dictionaries()
    for state in transforms.states.values():
        column = state.columns[-1]
        found = found.set_column(found.column_names.index(column), column, pa.repeat(state.next_time(), found.num_rows))
    return found, config.data.described(split)
