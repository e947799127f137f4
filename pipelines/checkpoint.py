"""Checkpoints: sharded tensors by torch.distributed.checkpoint, everything else beside them, and a manifest written last.

    <run>/checkpoints/step-00000500/
        __0_0.distcp ... .metadata     model, optimizer (dense and sparse), averaged weights; any number of processes reads them
        rng-<rank>.pt                  random number generators of each process
        progress.json                  step, data position, best metric, learning-rate state
        config.json  schema.json       the resolved config and the schema
        plan.txt                       how tables were sharded
        transforms/                    what turns raw columns into ids and floats
        manifest.json                  size and checksum of every file above

checkpoint_folder.py finds, verifies and drops these folders.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from torchrec_models.model import Ranker, Retriever, build
from torchrec_models.schema import Schema

from .checkpoint_folder import (
    CheckpointError,
    Progress,
    choose,
    drop_old,
    link_tree,
    mark_best,
    read_config,
    read_progress,
    read_schema,
    write_manifest,
)
from .config import RunConfig
from .distributed import Built, Processes, table_width_multiple, task_weighting
from .optim import TrainOptimizer


def save(
    run: Path,
    *,
    built: Built,
    optimizer: TrainOptimizer,
    progress: Progress,
    config: RunConfig,
    schema: Schema,
    transforms: Path,
    procs: Processes,
    is_best: bool,
) -> Path:
    """Write `<run>/checkpoints/step-N`, mark the best one, drop the oldest. Every process must call it."""
    final = run / "checkpoints" / f"step-{progress.step:08d}"
    partial = final.with_name(final.name + ".partial")
    if procs.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    state = _state(built, optimizer)
    with _first_failure():
        dcp.save(state, checkpoint_id=partial)
    torch.save(_rng_state(procs), partial / f"rng-{procs.rank}.pt")
    dist.barrier()
    if procs.is_first:
        (partial / "progress.json").write_text(json.dumps(asdict(progress), indent=1))
        (partial / "config.json").write_text(config.model_dump_json(indent=1))
        (partial / "schema.json").write_text(json.dumps(schema.to_dict(), indent=1))
        plan = built.task.plan if built.is_sharded else "not sharded"
        (partial / "plan.txt").write_text(f"{procs.world_size} processes\n{plan}\n")
        link_tree(transforms, partial / "transforms")
        write_manifest(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        if is_best:
            mark_best(run, final, progress)
        drop_old(run, keep=config.train.checkpoint.keep)
    dist.barrier()
    return final


@contextmanager
def _first_failure() -> Iterator[None]:
    """DCP wraps what went wrong (disk full, Ctrl-C) into a BaseException that shows a traceback; raise what it was."""
    try:
        yield
    except CheckpointException as error:
        failures = [cause for cause, _ in error.failures.values()]
        raise failures[0] from None


def _state(built: Built, optimizer: TrainOptimizer) -> dict[str, Any]:
    average = {"average": optimizer.average} if optimizer.average else {}  # DCP cannot read an empty dict back
    return {"model": built.state_dict(), "optimizer": optimizer.state_dict(), **average}


def _rng_state(procs: Processes) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if procs.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(procs.device)
    return state


def resume(folder: Path, *, built: Built, optimizer: TrainOptimizer, procs: Processes) -> Progress:
    """Load everything back, on any number of processes and any sharding plan. Every process must call it; `check_cache` first.

    Raises:
        CheckpointError: an optimizer state that cannot be carried over to this sharding.
    """
    optimizer.init_state()
    state = _state(built, optimizer)
    moments, same_shape = _split_moments(folder, state["optimizer"]["state"], procs)
    dcp.load({**state, "optimizer": {"state": same_shape}}, checkpoint_id=folder)
    for moment in moments:
        moment.read(folder)
    built.task.load_state_dict(state["model"]) if built.is_sharded else built.plain.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress = read_progress(folder)
    if procs.is_first and progress.best_step == progress.step:
        mark_best(folder.parents[1], folder, progress)  # killed between the checkpoint and its mark
    optimizer.schedule.plateau_factor = progress.plateau_factor
    ranks = len(list(folder.glob("rng-*.pt")))
    rng = torch.load(folder / f"rng-{procs.rank % ranks}.pt", weights_only=True)
    torch.set_rng_state(rng["cpu"])
    if procs.device.type == "cuda" and "cuda" in rng:
        torch.cuda.set_rng_state(rng["cuda"], procs.device)
    return progress


def load_weights(folder: Path, module_state: Mapping[str, Any], *, averaged: bool, no_dist: bool = False) -> None:
    """Fill a model's state dict in place, dense weights from their moving average where the run keeps one."""
    dcp.load({"model": dict(module_state)}, checkpoint_id=folder, no_dist=no_dist)
    if averaged:
        dense = {k.removeprefix("average."): None for k in _metadata(folder) if k.startswith("average.")}
        dcp.load({"average": {k: module_state[k] for k in dense}}, checkpoint_id=folder, no_dist=no_dist)


@dataclass(frozen=True)
class LoadedModel:
    """A trained model in one process, whole, on the CPU, in eval mode."""

    model: Ranker | Retriever
    schema: Schema
    config: RunConfig
    transforms: Path
    checkpoint: Path
    progress: Progress


def load_model(path: Path, *, which: str = "best") -> LoadedModel:
    """From a run or checkpoint folder, whatever the number of processes that wrote it."""
    folder = choose(path, which=which)
    config, schema = read_config(folder), read_schema(folder)
    options = {k: v for k, v in config.model.items() if k != "name"}
    weighting = task_weighting(config, schema)
    task = build(schema, config.model["name"], options, width_multiple=table_width_multiple(config), weighting=weighting)
    load_weights(folder, task.state_dict(), averaged=config.train.ema > 0, no_dist=True)
    model = task.model.eval()
    return LoadedModel(model, schema, config, folder / "transforms", folder, read_progress(folder))


def _metadata(folder: Path) -> dict[str, Any]:
    return dcp.FileSystemReader(folder).read_metadata().state_dict_metadata


@dataclass
class _Moment:
    """A row-wise moment whose number of column shards differs between checkpoint and model.

    Row-wise Adagrad keeps one number per row; sharded by columns, one per row *and column shard*. The whole row's is the
    mean of its shards', and a shard starts from the whole row's.
    """

    parameter: str
    name: str
    target: ShardedTensor | Tensor
    saved_size: int
    num_rows: int

    def read(self, folder: Path) -> None:
        saved = torch.empty(self.saved_size)
        dcp.load({"optimizer": {"state": {self.parameter: {self.name: saved}}}}, checkpoint_id=folder)
        whole = saved.view(-1, self.num_rows).mean(dim=0)
        assert isinstance(self.target, ShardedTensor), self.parameter
        for shard in self.target.local_shards():
            start = shard.metadata.shard_offsets[0] % self.num_rows
            shard.tensor.copy_(whole[start : start + shard.tensor.shape[0]])


_OTHER_OPTIMIZER = (
    "it was trained with another optimizer, another train.mode, or with data_parallel tables (whose optimizer is the dense one); "
    "go on with the old settings, or train into another folder (run=...)"
)


def _split_moments(
    folder: Path, state: dict[str, dict[str, Any]], procs: Processes
) -> tuple[list[_Moment], dict[str, dict[str, Any]]]:
    """What DCP cannot reshard by itself, and the rest of the optimizer state.

    Raises:
        CheckpointError: state that the checkpoint does not have, in words.
    """
    saved = _metadata(folder)
    wanted = procs.gather({f"optimizer.state.{parameter}.{name}" for parameter, values in state.items() for name in values})
    unread = sorted(k for k in saved if k.startswith("optimizer.state.") and k not in set().union(*wanted))
    if unread:
        raise CheckpointError(f"{folder} has optimizer state that this run has no use for, such as {unread[0]}: {_OTHER_OPTIMIZER}")
    moments: list[_Moment] = []
    same_shape: dict[str, dict[str, Any]] = {}
    for parameter, values in state.items():
        for name, value in values.items():
            found = saved.get(f"optimizer.state.{parameter}.{name}")
            if found is None:
                raise CheckpointError(f"{folder} has no optimizer state {name} for {parameter}: {_OTHER_OPTIMIZER}")
            size = tuple(value.size()) if isinstance(value, (Tensor, ShardedTensor)) else ()
            if not isinstance(found, TensorStorageMetadata) or tuple(found.size) == size:
                same_shape.setdefault(parameter, {})[name] = value
                continue
            big, small = max(size[0], found.size[0]), min(size[0], found.size[0])
            if len(size) != 1 or big % small:
                raise CheckpointError(
                    f"{folder}: {parameter} {name} has size {tuple(found.size)}, this run needs {size}: {_OTHER_OPTIMIZER}"
                )
            moments.append(_Moment(parameter, name, value, found.size[0], small))
    return moments, same_shape
