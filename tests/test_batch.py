from dataclasses import fields

import pytest
import torch
from fixtures import SCHEMAS, make_batch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from torchrec_models.batch import Batch

SCHEMA = SCHEMAS["everything"]


class Recorder:
    """Stands for a tensor and counts what is done to it."""

    def __init__(self) -> None:
        self.done: list[tuple] = []

    def to(self, *, device, non_blocking):
        self.done.append(("to", device, non_blocking))
        return self

    def pin_memory(self):
        self.done.append(("pin_memory",))
        return self

    def record_stream(self, stream):
        self.done.append(("record_stream", stream))


def test_every_field_is_moved_pinned_and_recorded():
    """Whatever fields a batch has: one that is forgotten is memory that CUDA may reuse while it is read."""
    parts = {f.name: Recorder() for f in fields(Batch)}
    batch = Batch(**parts)
    moved = batch.to(torch.device("meta"), non_blocking=True)
    pinned = moved.pin_memory()
    pinned.record_stream("stream")
    for name, part in parts.items():
        assert part.done == [("to", torch.device("meta"), True), ("pin_memory",), ("record_stream", "stream")], name
        assert getattr(pinned, name) is part


def test_to_makes_a_new_batch():
    batch = make_batch(SCHEMA, 5)
    moved = batch.to(torch.device("meta"))
    assert moved is not batch and isinstance(moved, Pipelineable)
    for f in fields(Batch):
        before, after = getattr(batch, f.name), getattr(moved, f.name)
        assert after is not before and _device(before) == "cpu" and _device(after) == "meta", f.name
    assert moved.sparse.keys() == ["user", "tags", "top_tag"] and moved.sequence.keys() == ["history", "liked", "words", "item"]
    assert moved.num_rows == batch.num_rows == 5


def _device(part: Tensor | KeyedJaggedTensor) -> str:
    return (part.values() if isinstance(part, KeyedJaggedTensor) else part).device.type


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs CUDA")
def test_pinned_and_on_the_gpu():
    batch = make_batch(SCHEMA, 5)
    pinned = batch.pin_memory()
    for f in fields(Batch):
        part = getattr(pinned, f.name)
        assert (part.values() if isinstance(part, KeyedJaggedTensor) else part).is_pinned(), f.name
    moved = pinned.to(torch.device("cuda"), non_blocking=True)
    moved.record_stream(torch.cuda.current_stream())
    torch.testing.assert_close(moved.sequence.values().cpu(), batch.sequence.values())
    torch.testing.assert_close(moved.dense.cpu(), batch.dense)
