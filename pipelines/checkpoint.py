"""Checkpoints: sharded tensors by torch.distributed.checkpoint, everything else beside them, and a manifest written last.

    <run>/checkpoints/step-00000500/
        __0_0.distcp ... .metadata     model, optimizer (dense and sparse), averaged weights; any number of processes reads them
        rng-<rank>.pt                  random number generators of each process
        progress.json                  step, data position, best metric, learning-rate state
        config.json  schema.json       the resolved config and the schema
        plan.txt                       how tables were sharded
        transforms/                    what turns raw columns into ids and floats
        manifest.json                  size and checksum of every file above

A folder is written under another name and renamed when its manifest is on disk, so a half-written one never looks finished.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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

from .config import RunConfig
from .data.checksums import checksum_of_file
from .data.shards import Cache
from .distributed import Built, Processes, table_width_multiple, task_weighting
from .optim import TrainOptimizer

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
CHECKSUM_BLOCK_BYTES = 1 << 22


@dataclass
class Progress:
    """Where a run stands. `step` steps are done; the next batch is number `step` of the run, counted over all epochs."""

    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    bad_evaluations: int = 0
    plateau_factor: float = 1.0
    stopped: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the text names the file."""


# --- writing ----------------------------------------------------------------------------------------------------------


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
        _link_tree(transforms, partial / "transforms")
        _write_manifest(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        if is_best:
            _mark_best(run, final, progress)
        _drop_old(run, keep=config.train.checkpoint.keep)
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


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links where the file system has them: vocabularies can be large and never change."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    shutil.copytree(source, target, copy_function=link)


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "blake2b": _checksum(path)}
    _write_json(folder / "manifest.json", {"format_version": FORMAT_VERSION, "files": files})


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(CHECKSUM_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _mark_best(run: Path, folder: Path, progress: Progress) -> None:
    _write_json(run / "best.json", {"checkpoint": folder.name, "step": progress.step, "metrics": progress.metrics})


def _drop_old(run: Path, *, keep: int) -> None:
    best = best_name(run)
    for folder in list_checkpoints(run)[:-keep]:
        if folder.name != best:
            folder.rename(folder.with_name(folder.name + ".partial"))  # killed while deleting, half of it must not count
    for stray in (run / "checkpoints").glob("*.partial"):
        shutil.rmtree(stray)


# --- finding ----------------------------------------------------------------------------------------------------------


def list_checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.suffix != ".partial" and p.is_dir())


def best_name(run: Path) -> str:
    path = run / "best.json"
    return json.loads(path.read_text())["checkpoint"] if path.exists() else ""


def verify(folder: Path) -> None:
    """Raises:
    CheckpointError: a file is missing, truncated or altered, or the format is another; names the file.
    """
    manifest = folder / "manifest.json"
    try:
        found = json.loads(manifest.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{manifest} is missing: not a finished checkpoint") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{manifest} is damaged: {error}") from None
    if found.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has format {found.get('format_version')}; this version reads {FORMAT_VERSION}")
    for name, facts in found["files"].items():
        path = folder / name
        if not path.exists():
            raise CheckpointError(f"{path} is missing")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes instead of {facts['bytes']}: truncated or altered")
        if _checksum(path) != facts["blake2b"]:
            raise CheckpointError(f"{path} was altered: its checksum is not the manifest's")


def latest_usable(run: Path) -> Path | None:
    """The newest checkpoint that verifies; each refused one is named in a warning."""
    for folder in reversed(list_checkpoints(run)):
        try:
            verify(folder)
        except CheckpointError as error:
            logger.warning("checkpoint refused: %s; trying the one before", error)
            continue
        return folder
    return None


def choose(path: Path, *, which: str = "best") -> Path:
    """The checkpoint meant by a run folder (`which`: best or last) or by a checkpoint folder itself.

    Raises:
        CheckpointError: there is none, or it does not verify.
    """
    if (path / "manifest.json").exists() or path.name.startswith("step-"):
        verify(path)
        return path
    name = best_name(path) if which == "best" else ""
    folders = list_checkpoints(path)
    if not folders:
        raise CheckpointError(f"{path} holds no checkpoint; train the run first, or give the folder of a run or a checkpoint")
    folder = path / "checkpoints" / name if name else folders[-1]
    verify(folder)
    return folder


def read_progress(folder: Path) -> Progress:
    return Progress(**json.loads((folder / "progress.json").read_text()))


def read_config(folder: Path) -> RunConfig:
    return RunConfig.model_validate_json((folder / "config.json").read_text())


def read_schema(folder: Path) -> Schema:
    return Schema.from_dict(json.loads((folder / "schema.json").read_text()))


# --- reading ----------------------------------------------------------------------------------------------------------


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
        _mark_best(folder.parents[1], folder, progress)  # killed between the checkpoint and its mark
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


def check_cache(folder: Path, cache: Cache) -> None:
    """Whether a cache was encoded by the very transforms that travel with a checkpoint: vocabularies can differ in order alone.

    Raises:
        CheckpointError: it was not.
    """
    theirs, ours = read_schema(folder).to_dict(), cache.schema.to_dict()
    parts = [k for k in ours if theirs.get(k) != ours[k]]
    files = json.loads((folder / "manifest.json").read_text())["files"]
    trained = {name.removeprefix("transforms/") for name in files if name.startswith("transforms/")}
    encoded = {name: entry["checksum"] for name, entry in cache.manifest["transforms"].items()}
    same_names = trained == encoded.keys()
    if not parts and same_names and all(checksum_of_file(folder / "transforms" / n, like=c) == c for n, c in encoded.items()):
        return
    why = f": another schema (they differ in {', '.join(parts)})" if parts else ""
    raise CheckpointError(
        f"{cache.folder} was prepared anew since {folder} was trained, and its ids mean other values now{why}; "
        "train again, into another folder (run=...), or go back to the old cache"
    )


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
