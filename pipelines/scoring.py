"""A whole split through the model, on all processes, and back in the order of the split."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from torchrec_models import metrics as M
from torchrec_models.batch import Batch

from .config import RunConfig
from .data.loader import Loader
from .data.shards import Cache
from .distributed import Built, Processes
from .evaluation.columns import group_codes
from .optim import TrainOptimizer
from .retrieve import retrieval_metrics


def lower_is_better(metric: str) -> bool:
    """For a metric of `validation_metrics`, which may carry its task's name in front."""
    return any(way == "lower" and metric.endswith(name) for name, way in M.DIRECTION.items())


@dataclass(frozen=True)
class Scores:
    """What the model says of every row of a split, in the split's order.

    Attributes:
        predictions: [N, T] float32, probabilities for binary tasks.
        labels, weights: [N, T].
    """

    predictions: Tensor
    labels: Tensor
    weights: Tensor


@contextmanager
def evaluation_mode(built: Built, optimizer: TrainOptimizer | None = None) -> Iterator[None]:
    """eval(), no gradients, and the averaged dense weights in place where the optimizer keeps them."""

    def swap() -> None:
        pairs = [(optimizer.dense_params[k], average) for k, average in optimizer.average.items()] if optimizer else []
        for parameter, average in pairs:
            live = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(live)

    built.task.eval()
    with torch.no_grad():
        swap()
        try:
            yield
        finally:
            swap()
            built.task.train()


def evaluation_loader(cache: Cache, split: str, config: RunConfig, procs: Processes) -> Loader:
    size = -(-config.evaluate.batch_size // procs.world_size) * procs.world_size
    return Loader(cache, split, batch_size=size, rank=procs.rank, world_size=procs.world_size, pad=True)


def for_each_batch(
    loader: Loader, procs: Processes, function: Callable[[Batch], tuple[Tensor, ...]], *, progress: str = ""
) -> tuple[Tensor, ...]:
    """Outputs of `function` for all rows of the split, on every process, in split order (on the CPU)."""
    collected: list[tuple[Tensor, ...]] = []
    bar = tqdm(total=loader.num_batches, desc=progress, unit="batch", disable=not progress or not procs.is_first)
    with bar:
        for batch in loader.epoch(0):
            batch = batch.to(procs.device)
            outputs = (batch.row_id, *function(batch))
            collected.append(tuple(procs.gather_rows(x).cpu() for x in outputs))
            bar.update()
    row_id, *outputs_all = (torch.cat(parts) for parts in zip(*collected))
    real = row_id >= 0
    position = row_id[real]
    result = []
    for values in outputs_all:
        ordered = values.new_empty((loader.num_rows, *values.shape[1:]))
        ordered[position] = values[real]
        result.append(ordered)
    assert len(position) == loader.num_rows, (len(position), loader.num_rows)
    return tuple(result)


def score(built: Built, cache: Cache, split: str, config: RunConfig, procs: Processes, *, progress: str = "") -> Scores:
    """Predictions for a split. Call within `evaluation_mode`."""
    binary = torch.tensor([t.kind == "binary" for t in cache.schema.tasks], device=procs.device)

    def predict(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        _, (_, logits_BT, labels_BT, _) = built.task(batch)
        return torch.where(binary, logits_BT.sigmoid(), logits_BT), labels_BT, batch.weights

    return Scores(*for_each_batch(evaluation_loader(cache, split, config, procs), procs, predict, progress=progress))


def validation_metrics(built: Built, cache: Cache, split: str, config: RunConfig, procs: Processes) -> dict[str, float]:
    """Exact metrics of a split, the same on every process; prefixed by the task's name where there are several.

    Call within `evaluation_mode`.
    """
    if config.retrieval is not None:
        return retrieval_metrics(built, cache, split, config, procs)
    scores = score(built, cache, split, config, procs)
    found: dict[str, float] = {}
    if procs.is_first:
        codes = group_codes(cache.split(split).column("group")) if config.data.group else None
        for i, task in enumerate(cache.schema.tasks):
            y, s, w = scores.labels[:, i], scores.predictions[:, i], scores.weights[:, i]
            if task.kind == "binary":
                rows = M.BinaryRows(y, s, weights=w)
                one = rows.metrics()
                if codes is not None:
                    one["gauc"] = rows.per_group_auc(codes).mean().value
            else:
                one = {"rmse": M.rmse(y, s, weights=w), "mae": M.mae(y, s, weights=w)}
            prefix = f"{task.name}_" if len(cache.schema.tasks) > 1 else ""
            found |= {prefix + name: value for name, value in one.items()}
    shared = procs.broadcast(found)
    assert isinstance(shared, dict)
    return shared
