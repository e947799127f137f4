"""`trm calibrate`: fits the calibration of a checkpoint on rows that it was not trained on; `trm export` puts it into the graph."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchrec_models import metrics as M
from torchrec_models.batch import Batch

from . import checkpoint, checkpoint_folder
from .calibration import Affine, Calibration, Floats, Method, fit
from .config import RunConfig
from .data.prepare import open_prepared
from .data.shards import Cache
from .distributed import Built, Processes, build_task, processes
from .scoring import evaluation_loader, evaluation_mode, for_each_batch

_SHOWN = ("log_loss", "ece", "copc")


def calibrate_run(
    path: Path, *, split: str = "valid", method: Method = "platt", negative_rate: float = 1.0, which: str = "best"
) -> str:
    """Fit on a split and write `<run>/calibration.json`; returns the text for the terminal.

    Args:
        split: valid or test; training rows would flatter the model.
        method: see `calibration.fit`.
        negative_rate: the share of negatives that the log kept, 1 for all of them.

    Raises:
        ValueError: for a run without binary tasks, a split that is not there or is the training split, and what `fit` refuses.
        CheckpointError: no usable checkpoint.
    """
    if split == "train":
        raise ValueError("split train: the model has seen these rows, and is too sure of them; use valid or test")
    Affine().with_negatives_kept(negative_rate)
    with processes() as procs:
        if procs.world_size > 1:
            raise ValueError("trm calibrate runs on one process; leave torchx run out")
        folder = checkpoint_folder.choose(path, which=which)
        config, schema = checkpoint_folder.read_config(folder), checkpoint_folder.read_schema(folder)
        binary = [(i, t.name) for i, t in enumerate(schema.tasks) if t.kind == "binary"]
        if not binary:
            raise ValueError(f"{path}: the model has no binary task; there are no probabilities to calibrate")
        if config.train.sampling and not config.train.sampling.selection and negative_rate != 1:
            raise ValueError(
                "--negative-rate: train.sampling is undone in the loss already, and this run's logits are those of all rows; "
                "leave it out. It is for logs that lack negatives themselves: train on those without train.sampling"
            )
        cache = open_prepared(config)
        cache.split(split)
        checkpoint_folder.check_cache(folder, cache)
        built = build_task(config, schema, procs)
        checkpoint.load_weights(folder, built.state_dict(), averaged=config.train.ema > 0)
        splits = [split, *(["test"] if split != "test" and "test" in cache.splits else [])]
        with evaluation_mode(built):
            rows = {name: _logits(built, cache, name, config, procs) for name in splits}
    logits, labels, weights = rows[split]
    tasks = {name: fit(logits[:, i], labels[:, i], method=method, weights=weights[:, i]) for i, name in binary}
    metrics = {
        name: {
            task: {
                "before": _metrics(Affine(), z[:, i], y[:, i], w[:, i]),
                "after": _metrics(tasks[task], z[:, i], y[:, i], w[:, i]),
            }
            for i, task in binary
        }
        for name, (z, y, w) in rows.items()
    }
    corrected = {name: one.with_negatives_kept(negative_rate) for name, one in tasks.items()}
    found = Calibration(folder.name, split, method, negative_rate, corrected, metrics)
    run = folder.resolve().parent.parent
    found.save(run)
    return _text(found, run, config)


def _logits(built: Built, cache: Cache, split: str, config: RunConfig, procs: Processes) -> tuple[Floats, Floats, Floats]:
    """(logits, labels, weights) of a split, [N, T] float64: logits, because float32 probabilities near 1 are all the same."""

    def outputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        _, (_, logits_BT, labels_BT, _) = built.task(batch)
        return logits_BT, labels_BT, batch.weights

    found = for_each_batch(evaluation_loader(cache, split, config, procs), procs, outputs, progress=f"scoring {split}")
    z, y, w = (x.double().numpy() for x in found)
    return z, y, w


def _metrics(affine: Affine, logits: Floats, labels: Floats, weights: Floats) -> dict[str, float | None]:
    """Log loss, ECE (100 bins of equal weight), and clicks over predicted clicks (COPC; None without predicted ones)."""
    p = affine.probabilities(logits)
    y, s, w = (torch.from_numpy(np.ascontiguousarray(x)) for x in (labels, p, weights))
    predicted = float((weights * p).sum())
    copc = float((weights * labels).sum()) / predicted if predicted else None
    return {"log_loss": M.log_loss(y, s, weights=w), "ece": M.ece(y, s, weights=w), "copc": copc}


def _text(found: Calibration, run: Path, config: RunConfig) -> str:
    lines = []
    for split, tasks in found.metrics.items():
        for task, result in tasks.items():
            lines.append(f"{task} on {split}{' (fitted on it)' if split == found.split else ''}")
            lines.append(f"  {'':10}{'before':>12}{'after':>12}")
            for name in _SHOWN:
                values = (result[when][name] for when in ("before", "after"))
                cells = "".join(f"{'-':>12}" if value is None else f"{value:>12.5f}" for value in values)
                lines.append(f"  {name:10}{cells}")
    for task, affine in found.tasks.items():
        lines.append(f"{task}: logit = {affine.scale:.5f} * z {affine.shift:+.5f}" + _correction(found))
    if config.train.early_stopping and found.split == "valid":
        lines.append("valid also chose the checkpoint; with two numbers fitted this matters little, --split test avoids it")
    return "\n".join([*lines, f"{run / 'calibration.json'}; next: trm export {run}"])


def _correction(found: Calibration) -> str:
    return f" (log {found.negative_rate:g} of it for negatives left out)" if found.negative_rate != 1 else ""
