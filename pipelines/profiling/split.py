"""Where the time of a training step goes, and a timeline that Perfetto shows, both from torch.profiler."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from torchrec_models.pipelines.train import NOTING

from .verdict import PARTS, Part

# Ranges of TorchRec's pipelines (torchrec/distributed/train_pipeline/train_pipelines.py), and ours. What they hold is theirs,
# unless an operator below it is of the sparse part.
_RANGES: dict[str, Part | None] = {
    "next_batch": None,  # of cached batches: nothing; of a loader: waiting, which `both` against `cached` shows better
    "load_batch": None,
    "copy_batch_to_gpu": "host_to_device",
    "inplace_copy_batch_to_gpu": "host_to_device",
    "wait_for_batch": "host_to_device",
    "start_sparse_data_dist": "sparse",
    "wait_sparse_data_dist": "sparse",
    "forward": "dense",
    "backward": "dense",
    "zero_grad": "optimizer",
    "optimizer": "optimizer",
    NOTING.strip("# "): "logging",
}
_RANGE = re.compile(r"^## (\w+?)(?: \d+)? ##$")
# Operators of tables. Whole tables (mode: unfused) are read by torch's own, which nets use, too, for positions.
_SHARDED = re.compile(r"fbgemm|lookup|_dist\]|all_?to_?all|reduce_scatter", re.IGNORECASE)
_WHOLE = re.compile(r"fbgemm|embedding", re.IGNORECASE)


def shares(events: Iterable[FunctionEvent], *, is_sharded: bool, on_device: bool) -> dict[Part, float]:
    """Part -> its share of all time seen; operators outside every range (backward threads of a GPU) are the net's.

    Args:
        is_sharded: tables are TorchRec's; False: whole ones, read by torch's operators.
        on_device: count the time of the kernels that operators launched, not the host's.
    """
    sparse = _SHARDED if is_sharded else _WHOLE
    microseconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)
    for event in events:
        if event.device_type == DeviceType.CPU and (part := _part_of(event, sparse)):  # kernels are counted with what launched them
            microseconds[part] += event.self_device_time_total if on_device else event.self_cpu_time_total
    total = sum(microseconds.values())
    return {part: value / total if total else 0.0 for part, value in microseconds.items()}


def _part_of(event: FunctionEvent, sparse: re.Pattern[str]) -> Part | None:
    """The part of the innermost range or operator around an event that has one."""
    at: FunctionEvent | None = event
    while at is not None:
        if (match := _RANGE.match(at.name)) and match[1] in _RANGES:
            return _RANGES[match[1]]
        if sparse.search(at.name):
            return "sparse"
        at = at.cpu_parent
    return "dense"


def profiled(
    steps: Callable[[], object], *, is_sharded: bool, device: torch.device, timeline: Path | None = None
) -> dict[Part, float]:
    """Shares of the parts while `steps` runs; also written as a Chrome trace, if a path is given."""
    on_device = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with profile(activities=activities) as profiler:
        steps()
    if timeline:
        profiler.export_chrome_trace(str(timeline))
    return shares(profiler.events() or [], is_sharded=is_sharded, on_device=on_device)
