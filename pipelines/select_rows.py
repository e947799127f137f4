"""`trm data select`: the part of the training rows that is worth training on, chosen by models that are trained for a short time.

EL2N (Paul, Ganguli, Dziugaite, "Deep learning on a data diet: finding important examples early in training", NeurIPS 2021, arXiv
2107.07075, definition 2.2): the expected L2 norm of a row's error, E ||p - y||_2, early in training, as a mean over several short
runs. With one binary label, p and y are (1 - p, p) and one-hot, and the norm is sqrt(2) |p - y|.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from . import checkpoint, checkpoint_folder
from .config import RunConfig
from .config.run import CheckpointConfig
from .data.prepare import open_prepared
from .data.selection import Selection, check_free, identity_of
from .data.shards import Cache
from .distributed import Processes, build_task, processes
from .scoring import Scores, evaluation_mode, score
from .train import Trainer

Method = Literal["el2n", "el2n_random", "random"]
METHODS: tuple[Method, ...] = get_args(Method)


def select(
    config: RunConfig,
    out: Path,
    *,
    keep: float,
    method: Method = "el2n_random",
    hard_share: float = 0.5,
    weighted: bool = True,
    runs: int = 3,
    epochs: int = 1,
    seed: int = 0,
    scores_of: Path | None = None,
    progress: bool = True,
) -> Selection:
    """Choose rows of a prepared run's training split and write them to `out`, see data/selection.py.

    The models that score are the config's own, trained on all rows for `epochs` with the seeds train.seed, train.seed + 1, ...

    Args:
        keep: share of the rows, in (0, 1).
        method: `el2n`: the rows with the largest scores; `random`; `el2n_random`: both, see `choose`.
        hard_share, weighted, seed: see `choose`.
        runs: models that score.
        scores_of: an earlier selection of the same rows, whose scores are used; nothing is trained then.

    Raises:
        ValueError: data not prepared; an option outside of its range; something at `out`; scores for labels that are not binary.
        NonFiniteLoss: the loss of a short run became NaN or infinite.
    """
    check_free(out)
    _check(keep=keep, method=method, hard_share=hard_share, runs=runs, epochs=epochs)
    cache = open_prepared(config)
    how: dict[str, Any] = {"method": method, "keep": keep, "seed": seed}
    if method == "el2n_random":
        how |= {"hard_share": hard_share, "weighted": weighted}
    with processes() as procs:
        scores = None
        if method != "random" and scores_of is not None:
            earlier = Selection.open(scores_of, config=config, cache=cache)
            if earlier.scores is None:
                raise ValueError(f"--scores: {scores_of} was chosen at random and has none")
            scores, how["scored"] = earlier.scores, earlier.how["scored"]
        elif method != "random":
            scores = _el2n(config, cache, out, procs, runs=runs, epochs=epochs, progress=progress)
            how["scored"] = {"model": config.model, "runs": runs, "epochs": epochs, "first_seed": config.train.seed}
        num_rows = cache.split("train").num_rows
        rows, weights = choose(
            num_rows, scores, keep=keep, hard_share=_hard_share(method, hard_share), weighted=weighted, seed=seed
        )
        selection = Selection(rows, weights, scores, identity_of(config, cache), how)
        if procs.is_first:
            selection.save(out)
        procs.broadcast(None)  # nobody goes on before the files are there
    return selection


def choose(
    num_rows: int, scores: np.ndarray | None, *, keep: float, hard_share: float, weighted: bool, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """[M] int64 rows, growing, and [M] float32 weights; M = round(keep num_rows), at least 1.

    The share `hard_share` of the M rows is that of the largest scores; the others are drawn from the rest. If `weighted`, each of
    those stands for as many rows of the rest as there are for one drawn, so that the expected loss is that of all rows.
    """
    num_kept = max(1, round(keep * num_rows))
    num_hard = round(hard_share * num_kept)
    is_hard = np.zeros(num_rows, bool)
    if num_hard:
        assert scores is not None
        is_hard[np.argsort(-scores, kind="stable")[:num_hard]] = True
    rest = np.flatnonzero(~is_hard)
    drawn = np.random.default_rng([seed, 0x434F_5245]).choice(rest, num_kept - num_hard, replace=False, shuffle=False)
    weights = np.ones(num_rows, np.float32)
    if weighted and num_hard and len(drawn):
        weights[drawn] = len(rest) / len(drawn)
    rows = np.sort(np.concatenate([np.flatnonzero(is_hard), drawn]))
    return rows, weights[rows]


def el2n(scores: Scores) -> np.ndarray:
    """[N] float32: the L2 norm of all tasks' errors, each sqrt(2) |p - y|; a masked label has no error."""
    error_NT = (scores.predictions - scores.labels) * (scores.weights > 0)
    return (2 * error_NT.double().square().sum(dim=1)).sqrt().float().numpy()


def _el2n(config: RunConfig, cache: Cache, out: Path, procs: Processes, *, runs: int, epochs: int, progress: bool) -> np.ndarray:
    """[N] float32, mean over the runs; the same on every process."""
    not_binary = [f"{task.name} ({task.kind})" for task in cache.schema.tasks if task.kind != "binary"]
    if not_binary or not cache.schema.tasks:
        given = ", ".join(not_binary) or "no label"
        raise ValueError(
            f"EL2N is the error of predicted probabilities and needs binary labels; there is {given}: use --method random"
        )
    only_train = replace(cache, splits={"train": cache.split("train")})
    total = np.zeros(cache.split("train").num_rows)
    folder = out.with_name(f"{out.name}.scoring")
    try:
        for run in range(runs):
            short = _short_run(config, folder / f"{run}", seed=config.train.seed + run, epochs=epochs)
            if procs.is_first:
                shutil.rmtree(folder, ignore_errors=True)
                Path(short.run).mkdir(parents=True)
            procs.broadcast(None)
            Trainer(short, only_train, procs, show=progress).fit()
            built = build_task(short, cache.schema, procs)
            trained = checkpoint_folder.choose(Path(short.run), which="last")
            checkpoint.load_weights(trained, built.state_dict(), averaged=short.train.ema > 0)
            with evaluation_mode(built):
                total += el2n(score(built, only_train, "train", short, procs, progress="scoring" if progress else ""))
    finally:
        if procs.is_first:
            shutil.rmtree(folder, ignore_errors=True)
    return (total / runs).astype(np.float32)


def _short_run(config: RunConfig, folder: Path, *, seed: int, epochs: int) -> RunConfig:
    train = {
        "seed": seed,
        "epochs": epochs,
        "steps": 0,
        "sampling": None,
        "early_stopping": None,
        "evaluate_every_steps": 0,
        "checkpoint": CheckpointConfig(keep=1),
        "tensorboard": False,
    }
    return config.model_copy(update={"run": str(folder), "train": config.train.model_copy(update=train)})


def _hard_share(method: Method, hard_share: float) -> float:
    return {"el2n": 1.0, "random": 0.0}.get(method, hard_share)


def _check(*, keep: float, method: str, hard_share: float, runs: int, epochs: int) -> None:
    rules: tuple[tuple[str, float | str, Callable, str], ...] = (
        ("--keep", keep, lambda x: 0 < x < 1, "a share between 0 and 1"),
        ("--method", method, lambda x: x in METHODS, ", ".join(METHODS)),
        ("--hard-share", hard_share, lambda x: 0 < x < 1, "a share between 0 and 1"),
        ("--runs", runs, lambda x: x >= 1, "1 or more"),
        ("--epochs", epochs, lambda x: x >= 1, "1 or more"),
    )
    for name, given, holds, allowed in rules:
        if not holds(given):
            raise ValueError(f"{name}: given {given}; allowed: {allowed}")
