"""Rows of many requests in few calls: tasks and stepped coroutines, small and large requests, failures and callers that give up."""

import asyncio

import numpy as np
import pytest

from torchrec_models.pipelines.serving.batcher import Batcher
from torchrec_models.pipelines.serving.stepping import Stepper, current


class Graph:
    """Answers [2 * id, dense]; refuses id 13; remembers the size of each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, ids_NS: np.ndarray, dense_ND: np.ndarray) -> np.ndarray:
        self.calls.append(len(ids_NS))
        if (ids_NS == 13).any():
            raise RuntimeError("unlucky")
        return np.concatenate([2 * ids_NS, dense_ND], axis=1)


def batcher_of(graph: Graph, max_rows: int = 4) -> Batcher:
    return Batcher(graph, num_slots=1, num_dense=1, max_rows=max_rows)


async def ask(batcher: Batcher, *ids: int) -> list[list[float]]:
    return await batcher.submit(np.array(ids, np.int64).reshape(-1, 1), np.full((len(ids), 1), 0.5, np.float32))


def test_requests_of_one_turn_share_calls_and_large_ones_are_cut():
    graph = Graph()

    async def main() -> list[list[list[float]]]:
        batcher = batcher_of(graph)
        requests = [
            ask(batcher, 1),
            ask(batcher, *range(20, 30)),
            ask(batcher),
            ask(batcher, 2, 3),
            ask(batcher, 4, 5, 6),
            ask(batcher, 7),
        ]
        answers = await asyncio.gather(*requests)
        assert batcher.queued_rows == 0
        return answers

    answers = asyncio.run(main())
    assert answers[0] == [[2.0, 0.5]] and answers[2] == [] and answers[5] == [[14.0, 0.5]]
    assert answers[1] == [[2.0 * i, 0.5] for i in range(20, 30)]
    assert answers[4] == [[8.0, 0.5], [10.0, 0.5], [12.0, 0.5]]
    assert sorted(graph.calls) == [2, 3, 4, 4, 4]  # 1 + 2 rows fill a call, 3 + 1 the next; 10 rows are cut into 4, 4 and 2


def test_a_full_batch_goes_at_once_for_stepped_coroutines():
    graph = Graph()
    done: list[object] = []

    async def main() -> None:
        batcher, loop = batcher_of(graph), asyncio.get_running_loop()

        def step(*ids: int) -> None:
            Stepper(ask(batcher, *ids), call_soon=loop.call_soon, on_done=lambda answer, error: done.append(error or answer)).step()

        for i in range(9):
            step(i)
        assert graph.calls == [4, 4] and len(done) == 8  # without a turn of the loop
        assert current() is None
        step(13)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert graph.calls == [4, 4, 2]
    assert done[:8] == [[[2.0 * i, 0.5]] for i in range(8)]
    assert [str(error) for error in done[8:]] == ["unlucky"] * 2  # the call of both rows failed


def test_a_failing_call_fails_its_own_requests_only():
    async def main() -> None:
        batcher = batcher_of(Graph())
        results = await asyncio.gather(
            ask(batcher, 13), *(ask(batcher, i) for i in range(1, 8)), ask(batcher, *range(9, 20)), return_exceptions=True
        )
        assert [type(r) for r in results[:4]] == [RuntimeError] * 4
        assert results[4:8] == [[[2.0 * i, 0.5]] for i in range(4, 8)]
        assert isinstance(results[8], RuntimeError)  # 13 is in one of its pieces
        assert batcher.queued_rows == 0

    asyncio.run(main())


def test_who_gives_up_is_left_out():
    graph = Graph()

    async def main() -> None:
        batcher = batcher_of(graph)
        large = asyncio.create_task(ask(batcher, *range(20, 32)))
        small = asyncio.create_task(ask(batcher, 1))
        stays = asyncio.create_task(ask(batcher, 2))
        await asyncio.sleep(0)
        large.cancel()
        small.cancel()
        assert await stays == [[4.0, 0.5]]
        for task in (large, small):
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0)
        assert batcher.queued_rows == 0

    asyncio.run(main())
    assert graph.calls == [2]


def test_a_stepped_coroutine_waits_for_futures_and_turns():
    order: list[str] = []

    async def work(future: asyncio.Future[str]) -> str:
        order.append("begun")
        await asyncio.sleep(0)
        order.append(await future)
        return await asyncio.to_thread(lambda: "from a thread")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        future, ended = loop.create_future(), loop.create_future()
        Stepper(work(future), call_soon=loop.call_soon, on_done=lambda answer, error: ended.set_result((answer, error))).step()
        assert order == ["begun"]
        future.set_result("the future")
        assert await ended == ("from a thread", None)

    asyncio.run(main())
    assert order == ["begun", "the future"]
