"""Processes, and how tables are spread over them: all of TorchRec's wiring.

One process is not a special case: it is a group of one, so that a laptop runs the code that a cluster runs.
"""

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, ShardingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.types import ModuleSharder, ShardedModule, ShardingPlan

from torchrec_models.losses import FixedWeights, ScheduledWeights, TaskWeighting, UncertaintyWeights, WeightSchedule
from torchrec_models.model import TrainTask, build
from torchrec_models.net import Net
from torchrec_models.schema import Schema, Table

from .config import RunConfig, ShardingConfig
from .optim import fuse_sparse_optimizer
from .rendezvous import fresh_store

logger = logging.getLogger(__name__)

T = TypeVar("T")

INIT_CHUNK_ROWS = 65_536
"""Rows drawn from one random stream: initial weights depend on table, row and seed, never on how the table is sharded."""


@dataclass(frozen=True)
class Processes:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: object) -> object:
        """The first process's value, everywhere. Any picklable object; small ones only."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every process's value, everywhere, in rank order. Any picklable object; small ones only."""
        values = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def gather_rows(self, rows: Tensor) -> Tensor:
        """[n, ...] of every process (equal n) -> [world_size * n, ...], in rank order, on every process."""
        if self.world_size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world_size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)


@contextmanager
def processes(*, timeout_seconds: float = 300.0) -> Iterator[Processes]:
    """Join the process group that torchrun describes, or a group of one.

    The timeout bounds every collective: a peer that died makes the others fail instead of waiting for ever.
    """
    if dist.is_initialized():  # a caller that already owns a group, such as a notebook or a test, keeps it
        yield Processes(dist.get_rank(), dist.get_world_size(), _device())
        return
    timeout = timedelta(seconds=timeout_seconds)
    device = _device()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        store, rank, world_size = fresh_store(timeout=timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


class Watchdog:
    """Ends this process when a step outlives its limit, so that torchelastic restarts the job.

    A collective whose peer was killed may never return to Python, so no exception can be raised there: exiting is the only
    sure way out. `limit_seconds` counts from the last `feed()`; nothing is watched before the first one.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self._paused = False
        self._fed = threading.Event()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def feed(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="step watchdog", daemon=True)
            self._thread.start()
        self._paused = False
        self._fed.set()

    def pause(self) -> None:
        """Until the next `feed()`: evaluation and checkpoints take as long as they take."""
        self._paused = True

    def stop(self) -> None:
        self._done.set()
        self._fed.set()

    def _watch(self) -> None:
        while not self._done.is_set():
            if not self._fed.wait(self.limit_seconds) and not self._paused:
                logger.error("no step finished within %.0f s: a peer is gone or stuck; ending this process", self.limit_seconds)
                os._exit(75)  # EX_TEMPFAIL: the launcher may try again
            self._fed.clear()


# --- sharding ---------------------------------------------------------------------------------------------------------


class _BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec offers row-wise bags on CUDA only; on gloo they train correctly too."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types = super().sharding_types(compute_device_type)
        wanted = [ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value]
        return types + [t for t in wanted if t not in types]


def sharders() -> list[ModuleSharder[nn.Module]]:
    return [_BagSharder(), EmbeddingCollectionSharder()]


def shard(
    task: nn.Module,
    tables: tuple[Table, ...],
    *,
    config: ShardingConfig,
    procs: Processes,
    rows_per_process: int,
    seed: int,
) -> DistributedModelParallel:
    """Plan, shard and initialise a task whose tables are on the meta device and carry in-backward optimizers.

    Args:
        rows_per_process: batch size of one process, for the planner's cost model.

    Raises:
        torchrec.distributed.planner.types.PlannerError: when tables do not fit; its text has numbers and remedies.
    """
    plan = make_plan(task, tables, config=config, procs=procs, rows_per_process=rows_per_process)
    model = DistributedModelParallel(task, device=procs.device, plan=plan, sharders=sharders())
    init_tables(model, tables, seed=seed)
    return model


def make_plan(
    task: nn.Module, tables: tuple[Table, ...], *, config: ShardingConfig, procs: Processes, rows_per_process: int
) -> ShardingPlan:
    on_cuda = procs.device.type == "cuda"
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", procs.world_size))
    topology = Topology(
        world_size=procs.world_size,
        local_world_size=local_world_size,
        compute_device=procs.device.type,
        hbm_cap=_bytes(config.hbm_gib) or (torch.cuda.get_device_properties(procs.device).total_memory if on_cuda else None),
        ddr_cap=_bytes(config.ddr_gib) or _physical_memory_bytes() // local_world_size,
    )
    planner = EmbeddingShardingPlanner(
        topology=topology, batch_size=rows_per_process, constraints=constraints(tables, config, procs.world_size), debug=False
    )
    return planner.collective_plan(task, sharders(), dist.GroupMember.WORLD)


def constraints(tables: tuple[Table, ...], config: ShardingConfig, world_size: int) -> dict[str, ParameterConstraints]:
    """What the planner may choose, per table.

    Only fused kernels, unless data_parallel is asked for: left alone, the planner makes small tables data-parallel, which
    takes their in-backward optimizer away and hands them silently to the dense one.
    """
    out = {}
    for table in tables:
        base = table.name.removesuffix("_first_order")
        types = [config.tables[base]] if base in config.tables else list(config.types)
        if world_size == 1 and "table_wise" in types:
            types = ["table_wise"]  # the planner would pick row_wise, which sorts ids into one bucket
        kernels = {EmbeddingComputeKernel.DENSE if t == "data_parallel" else EmbeddingComputeKernel.FUSED for t in types}
        if "column_wise" in types and table.dim < 8:
            types = [t for t in types if t != "column_wise"] or ["table_wise"]  # a column shard has at least 4 columns
        out[table.name] = ParameterConstraints(
            sharding_types=types,
            compute_kernels=[k.value for k in kernels],
            min_partition=max(4, table.dim // world_size // 4 * 4) if "column_wise" in types else None,
        )
    return out


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _physical_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# --- tables -----------------------------------------------------------------------------------------------------------

_WEIGHT = re.compile(r"\.(?:embedding_bags|embeddings)\.([^.]+)\.weight$")


def table_weights(module: nn.Module) -> dict[str, Tensor | ShardedTensor]:
    """Table name -> its weight in the module's state dict (sharded or whole)."""
    return {match[1]: value for key, value in module.state_dict().items() if (match := _WEIGHT.search(key))}


@torch.no_grad()
def init_tables(module: nn.Module, tables: tuple[Table, ...], *, seed: int) -> None:
    """Fill every table with N(0, init_std), the same numbers whatever the sharding (padding columns are zero)."""
    weights = table_weights(module)
    assert set(weights) == {t.name for t in tables}, sorted(set(weights) ^ {t.name for t in tables})
    for table in tables:
        weight = weights[table.name]
        if isinstance(weight, ShardedTensor):
            for part in weight.local_shards():
                _fill(part.tensor, table, *part.metadata.shard_offsets, seed=seed)
        else:
            _fill(weight, table, 0, 0, seed=seed)


def _fill(part: Tensor, table: Table, first_row: int, first_column: int, *, seed: int) -> None:
    end_row, end_column = first_row + part.shape[0], first_column + part.shape[1]
    part.zero_()
    for start in range(first_row // INIT_CHUNK_ROWS * INIT_CHUNK_ROWS, end_row, INIT_CHUNK_ROWS):
        stop = min(start + INIT_CHUNK_ROWS, table.num_rows)
        key = hashlib.blake2b(f"{seed}/{table.name}/{start}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
        chunk = torch.empty(stop - start, table.dim).normal_(0.0, table.init_std or 1.0, generator=generator)
        if table.init_std == 0:
            continue
        low, high = max(start, first_row), min(stop, end_row)
        width = min(end_column, table.dim) - first_column
        if width > 0 and high > low:
            piece = chunk[low - start : high - start, first_column : first_column + width]
            part[low - first_row : high - first_row, :width].copy_(piece)


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """A task ready to run on this process.

    Attributes:
        task: what a pipeline drives: DistributedModelParallel (fused), DistributedDataParallel or the task itself (unfused).
        plain: the task without wrappers; its state keys are the same in every mode.
        embedding_parameters: the whole tables, in unfused mode (empty when they are sharded).
    """

    task: nn.Module
    plain: TrainTask
    embedding_parameters: dict[str, nn.Parameter]

    @property
    def is_sharded(self) -> bool:
        return isinstance(self.task, DistributedModelParallel)

    def state_dict(self) -> dict[str, Tensor]:
        return self.task.state_dict() if self.is_sharded else self.plain.state_dict()


def build_task(config: RunConfig, schema: Schema, procs: Processes) -> Built:
    """The run's model on this process: sharded with fused optimizers, or (`mode: unfused`) whole, with DDP around it.

    Initial weights depend on `train.seed` alone.
    """
    train = config.train
    fused = train.mode == "fused"
    options = {k: v for k, v in config.model.items() if k != "name"}
    torch.manual_seed(train.seed)
    task = build(
        schema,
        config.model["name"],
        options,
        device=procs.device,
        table_device="meta" if fused else procs.device,
        width_multiple=table_width_multiple(config),
        whole_tables=not fused,
        weighting=task_weighting(config, schema),
    )
    tables = task.model.embedding.tables
    parameters = {k: p for k, p in task.model.embedding.named_parameters() if _WEIGHT.search(f".{k}")}
    net = task.model.net
    if train.precision == "bfloat16":
        # tables and loss stay float32
        net.forward = torch.autocast(procs.device.type, dtype=torch.bfloat16)(net.forward)  # type: ignore[method-assign]
    if train.compile:
        for part in sorted({m.uncompiled for m in net.modules() if isinstance(m, Net) and m.uncompiled}):
            logger.warning("train.compile: %s is compiled but for %s", config.model["name"], part)
        net.compile()
    if not fused:
        init_tables(task, tables, seed=train.seed)
        wrapped: nn.Module = task
        if procs.world_size > 1:
            wrapped = nn.parallel.DistributedDataParallel(task, broadcast_buffers=False)
        return Built(wrapped, task, parameters)
    fuse_sparse_optimizer(parameters.values(), train.sparse, device=procs.device)
    rows = -(-train.batch_size // procs.world_size)
    model = shard(task, tables, config=config.sharding, procs=procs, rows_per_process=rows, seed=train.seed)
    return Built(model, model.module, {})


def task_weighting(config: RunConfig, schema: Schema) -> TaskWeighting:
    weighting = config.train.task_weighting
    if weighting.kind == "uncertainty":
        return UncertaintyWeights(schema.tasks)
    if weighting.schedules:
        schedules = {name: WeightSchedule(**schedule.model_dump()) for name, schedule in weighting.schedules.items()}
        return ScheduledWeights(schema.tasks, schedules)
    return FixedWeights(schema.tasks)


def table_width_multiple(config: RunConfig) -> int:
    """Fused kernels need widths that are multiples of 4; whole tables have just the width asked for."""
    return 4 if config.train.mode == "fused" else 1


def unpipelined(built: Built, pipeline: TrainPipelineSparseDist) -> list[str]:
    """Sharded modules whose input distribution does not overlap with compute. TorchRec only logs it; a step must have run."""
    sharded = {id(m): name for name, m in built.plain.named_modules() if isinstance(m, ShardedModule)}
    pipelined = {id(m) for m in pipeline._pipelined_modules}
    return sorted(name for key, name in sharded.items() if key not in pipelined)


@torch.no_grad()
def average_buffers(built: Built, procs: Processes) -> None:
    """Batch-norm statistics are gathered per process; make them one before they are used or saved."""
    if procs.world_size == 1:
        return
    for name, buffer in sorted(built.plain.named_buffers()):
        if buffer.is_floating_point() and not _WEIGHT.search(name):
            dist.all_reduce(buffer)
            buffer /= procs.world_size
