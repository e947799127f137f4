"""A real server under more work than it takes: every request is answered, rightly or with a 503, and no connection is lost."""

import http.client
import json
import selectors
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import Answer, Served, serving

from torchrec_models import Bundle

ROW = {"device": "phone", "age": 33, "tags": "t1|t2", "item": 101, "history": [100, 103], "top_tag": "t1", "price": 2.5}
LIMIT = 4  # requests in work
AT_ONCE = 100  # refusals: docs/serving.md
MANY_ROWS = 4000  # scored one by one below: longer in work than it takes to refuse many


@pytest.fixture(scope="module")
def bundle(click_bundles: tuple[Path, Path]) -> Bundle:
    return Bundle(click_bundles[0])


@pytest.fixture
def server(click_bundles: tuple[Path, Path], tmp_path: Path) -> Iterator[Served]:
    options = ["--max-concurrency", str(LIMIT), "--max-rows", str(MANY_ROWS), "--max-batch-rows", "1", "--watch-seconds", "0"]
    with serving(tmp_path, f"click={click_bundles[0]}", *options) as served:
        yield served


def row(number: int) -> dict[str, Any]:
    return ROW | {"price": number % 50}


def probabilities(bundle: Bundle) -> list[float]:
    """Of each `row`."""
    return [float(p) for p in bundle.predict([row(number) for number in range(50)])[:, 0]]


def check_refusal(answer: Answer) -> None:
    assert answer.status == 503 and answer.headers["retry-after"] == "1", answer.headers
    assert answer.json["error"] == "the server has all the work it can do; try again"
    assert "connection" not in answer.headers  # it stays open


def test_refusals_do_not_wait_for_those_who_are_served(server, bundle):
    expected = probabilities(bundle)
    large = json.dumps({"rows": [row(i) for i in range(MANY_ROWS)]})
    holders = [server.connect() for _ in range(LIMIT)]
    for holder in holders:
        holder.request("POST", "/predict", large)
    probe = server.connect()
    for _ in range(10_000):  # until all holders are in work
        probe.request("POST", "/predict", json.dumps(row(3)))
        answer = Answer(probe.getresponse())
        if answer.status != 200:
            break
        assert answer.json["predictions"]["click"] == pytest.approx(expected[3], abs=1e-6)
    check_refusal(answer)
    flood = [server.connect() for _ in range(AT_ONCE // 2)]
    for connection in flood:
        connection.request("POST", "/predict", json.dumps(row(5)))
    order: list[http.client.HTTPConnection] = []
    with selectors.DefaultSelector() as ready:
        for connection in (*holders, *flood):
            ready.register(connection.sock, selectors.EVENT_READ, connection)
        while len(order) < len(holders) + len(flood):
            for key, _ in ready.select(30):
                order.append(key.data)
                ready.unregister(key.fileobj)
    assert set(order[: len(flood)]) == set(flood)
    for connection in flood:
        check_refusal(Answer(connection.getresponse()))
    for holder in holders:
        answer = Answer(holder.getresponse())
        found = [p["click"] for p in answer.json["predictions"]]
        assert answer.status == 200 and found == pytest.approx([expected[i % 50] for i in range(MANY_ROWS)], abs=1e-6)


def test_a_flood_gets_answers_or_refusals_and_nothing_else(server, bundle):
    expected = probabilities(bundle)
    seen: list[tuple[str, int]] = []
    problems: list[str] = []

    def ask(who: str, connection: http.client.HTTPConnection, numbers: list[int]) -> int:
        """One request of these rows; its status."""
        body = row(numbers[0]) if len(numbers) == 1 else {"rows": [row(number) for number in numbers]}
        connection.request("POST", "/predict", json.dumps(body))
        answer = Answer(connection.getresponse())
        if answer.status == 200:
            found = answer.json["predictions"]
            clicks = [p["click"] for p in (found if len(numbers) > 1 else [found])]
            assert clicks == pytest.approx([expected[number % 50] for number in numbers], abs=1e-6)
        else:
            check_refusal(answer)
        seen.append((who, answer.status))
        return answer.status

    def run(who: str, requests: list[list[int]], *, again: bool) -> None:
        connection = server.connect()
        try:
            for numbers in requests:
                while ask(who, connection, numbers) != 200 and again:
                    pass
            while ask("after", connection, [7]) != 200:  # on the same connection
                pass
        except Exception as error:
            problems.append(f"{who}: {error!r}")

    work = [("large", [list(range(300))] * 10, False)] * (2 * LIMIT)
    work += [("flood", [[i] for i in range(40)], False)] * 16
    work += [("good", [[i] for i in range(30)], True)]  # asks until it is answered
    threads = [threading.Thread(target=run, args=(who, requests), kwargs={"again": again}) for who, requests, again in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert seen.count(("good", 200)) == 30 and seen.count(("after", 200)) == len(work)
    assert sum(who == "flood" for who, _ in seen) == 16 * 40 and seen.count(("flood", 503)) > 100
    assert seen.count(("large", 200)) >= LIMIT
    statuses = [status for _, status in seen]
    for status in (200, 503):
        counted = server.metric(f'trm_requests_total{{path="/predict",status="{status}"')
        assert counted == statuses.count(status)
    later = server.connect()
    assert server.metric("trm_requests_in_work") == 1  # the one that asks
    for number in range(20):  # and then all is as before
        assert ask("later", later, [number]) == 200
