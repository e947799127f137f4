"""A trained run on a split of its cache: exact metrics, intervals, slices, and a report to look at."""

import json
import os
from pathlib import Path

from .. import checkpoint, checkpoint_folder
from ..checkpoint_folder import Progress
from ..config import RunConfig, write_yaml
from ..data.prepare import open_prepared
from ..data.shards import Cache, SplitData
from ..distributed import Processes, build_task, processes
from ..retrieve import popularity_metrics, retrieval_metrics
from ..scoring import Scores, evaluation_mode, score
from .curves import score_curves
from .evaluate import evaluate_columns
from .report import TaskReport, read_history, write_report
from .results import Evaluation, render


def evaluate_run(path: Path, *, split: str = "test", which: str = "best", progress: bool = True) -> str:
    """Evaluate and write `<run>/evaluation/<split>/{metrics.json,report.html}`.

    Args:
        path: a run or checkpoint folder.

    Returns:
        The table for a terminal ("" on all processes but the first).

    Raises:
        ValueError: no such split, data not prepared or changed since.
        CheckpointError: no usable checkpoint.
    """
    with processes() as procs:
        folder = checkpoint_folder.choose(path, which=which)
        config, schema = checkpoint_folder.read_config(folder), checkpoint_folder.read_schema(folder)
        cache = open_prepared(config)
        data = cache.split(split)
        checkpoint_folder.check_cache(folder, cache)
        built = build_task(config, schema, procs)
        checkpoint.load_weights(folder, built.state_dict(), averaged=config.train.ema > 0)
        with evaluation_mode(built):
            if config.retrieval is not None:
                found = retrieval_metrics(built, cache, split, config, procs)
                tasks = {"retrieval": _retrieval(found, cache, split, config)} if procs.is_first else {}
            else:
                scores = score(built, cache, split, config, procs, progress="evaluating" if progress else "")
                tasks = _ranking(scores, cache, data, config) if procs.is_first else {}
        return _write(folder, tasks, config, split, procs) if procs.is_first else ""


def _ranking(scores: Scores, cache: Cache, data: SplitData, config: RunConfig) -> dict[str, TaskReport]:
    training_means = cache.split("train").label_mean
    groups = data.column("group") if config.data.group else None
    slices = {name: data.column(name) for name in config.data.slices}
    reports = {}
    for i, task in enumerate(cache.schema.tasks):
        y, p, w = (x[:, i].numpy() for x in (scores.labels, scores.predictions, scores.weights))
        evaluation = evaluate_columns(
            y,
            p,
            base_rate=training_means[task.name],
            kind=task.kind,
            weights=w,
            groups=groups,
            slices=slices,
            bootstrap=config.evaluate.bootstrap,
            seed=config.train.seed,
        )
        reports[task.name] = TaskReport(evaluation, score_curves(y, p, weights=w) if task.kind == "binary" else None)
    return reports


def _retrieval(found: dict[str, float], cache: Cache, split: str, config: RunConfig) -> TaskReport:
    base = popularity_metrics(cache, split, config)
    num_rows = cache.split(split).num_rows
    return TaskReport(Evaluation(kind="retrieval", num_rows=num_rows, base_name="popularity", metrics=dict(found), base=base))


def _write(folder: Path, tasks: dict[str, TaskReport], config: RunConfig, split: str, procs: Processes) -> str:
    run = folder.resolve().parent.parent
    out = run / "evaluation" / split
    out.mkdir(parents=True, exist_ok=True)
    state: Progress = checkpoint_folder.read_progress(folder)
    metrics = {
        "split": split,
        "checkpoint": folder.name,
        "step": state.step,
        "tasks": {name: task.evaluation.to_dict() for name, task in tasks.items()},
    }
    partial = out / "metrics.json.partial"
    partial.write_text(json.dumps(metrics, indent=1, allow_nan=False))
    os.replace(partial, out / "metrics.json")
    history = run / "metrics.csv"
    report = write_report(
        out,
        title=f"{config.model['name']} on {split}",
        tasks=tasks,
        history=read_history(history) if history.exists() else (),
        config_text=write_yaml(config.model_dump(mode="json")),
        facts={
            "model": config.model["name"],
            "run": str(run),
            "checkpoint": f"{folder.name} (step {state.step})",
            "data": config.data.cache,
            "processes": str(procs.world_size),
        },
    )
    tables = "\n\n".join((f"{name}\n" if len(tasks) > 1 else "") + render(task.evaluation) for name, task in tasks.items())
    return f"{tables}\n\n{report}\n{out / 'metrics.json'}"
