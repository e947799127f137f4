"""Time is given to the innermost range or operator that says whose it is."""

import pytest
import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from torchrec_models.pipelines.profiling.split import shares


def work(weight: torch.Tensor) -> None:
    with record_function("## forward 3 ##"):
        loss = torch.nn.functional.embedding(torch.zeros(20_000, dtype=torch.int64), weight).exp().sum()
    with record_function("## backward 3 ##"):
        loss.backward()
    with record_function("## optimizer ##"):
        torch.rand(300, 300) @ torch.rand(300, 300)
    with record_function("## next_batch ##"):  # waiting is no part of a step
        torch.rand(500, 500) @ torch.rand(500, 500)


@pytest.fixture(scope="module")
def events() -> list[FunctionEvent]:
    weight = torch.rand(50, 16, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work(weight)
    return list(profiler.events() or [])


def own(events: list[FunctionEvent], *names: str) -> float:
    """Time of these events and of all below them."""
    return sum(e.cpu_time_total for e in events if e.name in names)


def test_whole_tables_are_read_by_torchs_operators(events: list[FunctionEvent]) -> None:
    found = shares(events, is_sharded=False, on_device=False)
    step = own(events, "## forward 3 ##", "## backward 3 ##", "## optimizer ##")
    sparse = own(events, "aten::embedding", "autograd::engine::evaluate_function: EmbeddingBackward0")
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["sparse"] == pytest.approx(sparse / step) and found["sparse"] > 0.01
    assert found["optimizer"] == pytest.approx(own(events, "## optimizer ##") / step)
    assert found["dense"] == pytest.approx(1 - found["sparse"] - found["optimizer"])


def test_beside_sharded_tables_torchs_embeddings_are_the_nets(events: list[FunctionEvent]) -> None:
    assert shares(events, is_sharded=True, on_device=False)["sparse"] == 0


def test_no_event_gives_no_share() -> None:
    assert set(shares([], is_sharded=True, on_device=False).values()) == {0.0}
