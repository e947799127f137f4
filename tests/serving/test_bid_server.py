"""`trm serve --bid` as an exchange meets it: a real process, real HTTP."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bundle_cases import CLICK_SCHEMA, click_transforms, export_model, identity_rows, identity_transforms, make_model
from fixtures import categorical, make_schema
from server_process import Served, serving

from torchrec_models import Bundle
from torchrec_models.pipelines.serving.bid_routes import bid_routes
from torchrec_models.pipelines.serving.loading import Reloader, load_model
from torchrec_models.pipelines.serving.metrics import Metrics
from torchrec_models.pipelines.serving.models import Deployment, Models
from torchrec_models.schema import Task

CONFIG: dict[str, Any] = {
    "seat": "s1",
    "currency": "EUR",
    "columns": {
        "device": "device.ext.kind",
        "tags": "user.kwarray",
        "item": "creative.id",
        "history": "user.data[*].segment[*].id",
        "top_tag": "imp.tagid",
        "site": "site.cat",
        "price": "imp.ext.price",
    },
    "left_missing": ["age"],
    "notice_url": "http://127.0.0.1:1",
    "no_bid": "reason",
    "campaigns": [
        {
            "id": "shoes",
            "value": {"per": "click", "amount": 0.1, "task": "click"},
            "advertiser_domains": ["shoes.example"],
            "categories": ["IAB18"],
            "budget": {"daily": 1e6, "pacing": "asap"},
            "creatives": [{"id": "103", "w": 300, "h": 250, "adm": "<b>ä</b>"}, {"id": "104", "w": 728, "h": 90}],
        },
        {
            "id": "hats",
            "value": {"per": "click", "amount": 0.1, "task": "click"},
            "advertiser_domains": ["hats.example"],
            "categories": ["IAB18"],
            "creatives": [{"id": "105", "w": 300, "h": 250}],
        },
    ],
}


def imp(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": str(number), "tagid": "t3", "banner": {"w": 300, "h": 250}, "ext": {"price": 2.5}} | changes


def request(**changes: Any) -> dict[str, Any]:
    fixed = {
        "id": "auction-1",
        "imp": [imp()],
        "at": 2,
        "tmax": 5000,
        "device": {"ext": {"kind": "phone"}},
        "user": {"kwarray": ["t1", "t2"], "data": [{"segment": [{"id": "101"}, {"id": "107"}]}]},
        "site": {"cat": ["a.example"]},
        "zebra": {"unknown": True},
    }
    return fixed | changes


def row(creative: str) -> dict[str, Any]:
    """What the mapping makes of `request()`."""
    return {
        **{"device": "phone", "tags": "t1|t2", "item": creative, "history": ["101", "107"], "top_tag": "t3"},
        **{"site": ["a.example"], "price": 2.5},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bid")
    (folder / "bid.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="module")
def bidder(folder: Path, click_bundles: tuple[Path, Path]) -> Iterator[Served]:
    with serving(folder, f"click={click_bundles[0]}", "--bid", folder / "bid.yaml") as served:
        yield served


@pytest.fixture(scope="module")
def bundle(click_bundles: tuple[Path, Path]) -> Bundle:
    return Bundle(click_bundles[0])


def bids(answer: Any) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    assert answer.headers["x-openrtb-version"] == "2.6"
    (seat,) = answer.json["seatbid"]
    assert seat["seat"] == "s1"
    return seat["bid"]


def test_the_price_is_the_models_probability_times_the_value(bidder: Served, bundle: Bundle) -> None:
    p = {creative: float(bundle.predict([row(creative)])[0, 0]) for creative in ("103", "104", "105")}
    answer = bidder.ask("POST", "/bid", request())
    (bid,) = bids(answer)
    best = max(("103", "105"), key=p.__getitem__)
    assert (answer.json["id"], answer.json["cur"], bid["impid"], bid["crid"]) == ("auction-1", "EUR", "1", best)
    assert bid["price"] == pytest.approx(100 * p[best], abs=1.1e-4)
    assert bid["adomain"] == [{"103": "shoes.example", "105": "hats.example"}[best]]
    sizes = request(imp=[imp(1, banner={"w": 728, "h": 90}), imp(2, banner={"w": 1, "h": 1}), imp(3)])
    two = bids(bidder.ask("POST", "/bid", sizes))
    assert [(b["impid"], b["crid"], b["w"], b["h"]) for b in two] == [("1", "104", 728, 90), ("3", best, 300, 250)]
    assert two[0]["price"] == pytest.approx(100 * p["104"], abs=1.1e-4)


@pytest.mark.parametrize(
    ("changes", "nbr"),
    [
        ({"tmax": 10}, 15),  # no more than the margin
        ({"tmax": -5}, 15),
        ({"imp": [imp(banner={"w": 1, "h": 1})]}, 500),
        ({"badv": ["shoes.example", "hats.example"]}, 501),
        ({"cur": ["GBP"]}, 502),
        ({"imp": [imp(bidfloor=1e6, bidfloorcur="EUR")]}, 503),
    ],
)
def test_no_bids_say_why(bidder: Served, changes: dict[str, Any], nbr: int) -> None:
    answer = bidder.ask("POST", "/bid", request(**changes))
    assert (answer.status, answer.json) == (200, {"id": "auction-1", "nbr": nbr})


def test_no_bids_are_empty_by_default(folder: Path, click_bundles: tuple[Path, Path]) -> None:
    (folder / "quiet.yaml").write_text(yaml.safe_dump({k: v for k, v in CONFIG.items() if k != "no_bid"}))
    with serving(folder, click_bundles[0], "--bid", folder / "quiet.yaml") as served:
        answer = served.ask("POST", "/bid", request(cur=["GBP"]))
        assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not an OpenRTB 2.6 bid request"),
        (b"", "not an OpenRTB 2.6 bid request"),
        ({"id": "a"}, "missing required field `imp`"),
        (request(imp=[imp(bidfloor="1")]), "$.imp[0].bidfloor"),
        (request(imp=[imp(ext={"price": "cheap"})]), "feature 'price'"),
        (request(imp=[imp(ext={"price": [1, 2]})]), "feature 'price'"),
        (request(imp=[imp(ext={"price": {}})]), "feature 'price'"),
        (request(imp=[imp(ext={"price": 10**400})]), "price"),
    ],
)
def test_a_bad_body_gets_its_reason(bidder: Served, body: Any, reason: str) -> None:
    answer = bidder.ask("POST", "/bid", body)
    assert answer.status == (422 if "price" in reason else 400), answer.body
    assert reason in answer.json["error"]


def test_answers_to_one_connection_stay_in_order_and_a_bad_body_fails_alone(bidder: Served) -> None:
    with socket.create_connection(("127.0.0.1", bidder.port), timeout=30) as connection:
        bodies, expected = [], []
        for i in range(60):
            if i % 7 == 3:
                bodies.append(b'{"id": broken')
                expected.append((400, None))
            elif i % 5 == 2:
                bodies.append(json.dumps(request(id=f"r{i}", cur=["GBP"])).encode())
                expected.append((200, f"r{i}"))
            else:
                bodies.append(json.dumps(request(id=f"r{i}")).encode())
                expected.append((200, f"r{i}"))
        head = b"POST /bid HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        connection.sendall(b"".join(head % len(body) + body for body in bodies))
        reader = connection.makefile("rb")
        found = []
        for _ in bodies:
            status = int(reader.readline().split()[1])
            length = 0
            while (line := reader.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            found.append((status, json.loads(reader.read(length)).get("id")))
    assert found == expected


def test_notices_settle_bids_once(bidder: Served) -> None:
    (bid,) = bids(bidder.ask("POST", "/bid", request(badv=["hats.example"])))
    path = re.fullmatch(r"http://127\.0\.0\.1:1(/win/\w+/)\$\{AUCTION_PRICE\}", bid["nurl"])
    assert path
    assert bidder.ask("GET", path[1] + "${AUCTION_PRICE}").status == 400
    assert bidder.ask("GET", path[1] + "nan").status == 400
    assert bidder.ask("POST", path[1] + str(bid["price"] * 2)).status == 400
    assert bidder.ask("GET", path[1] + str(bid["price"] / 2)).status == 204
    assert bidder.ask("POST", path[1] + str(bid["price"] / 2)).status == 204  # sent again
    assert bidder.ask("GET", "/win/nobody/1.0").status == 404
    state = bidder.ask("GET", "/bid").json
    assert (state["wins"], state["currency"]) == (1, "EUR")
    assert state["budgets"]["shoes"]["spent"] == pytest.approx(bid["price"] / 2000, rel=1e-6)
    assert state["budgets"].keys() == {"shoes"}
    assert state["no_bids"].keys() >= {"currency", "below_floor", "budget"}
    (bid,) = bids(bidder.ask("POST", "/bid", request()))
    assert bidder.ask("GET", bid["lurl"].removeprefix("http://127.0.0.1:1").replace("${AUCTION_LOSS}", "102")).status == 204


def test_a_version_that_does_not_fit_gets_no_bids_and_the_old_one_again_does(
    tmp_path: Path, click_bundles: tuple[Path, Path]
) -> None:
    schema = make_schema([categorical("device")], tasks=[Task(name="click"), Task(name="spend", kind="regression")], num_rows=5)
    export_model(make_model(schema, "deepfm"), identity_transforms(schema), identity_rows(schema, 10), tmp_path / "other")
    (tmp_path / "bid.yaml").write_text(yaml.safe_dump(CONFIG))
    link = tmp_path / "current"
    link.symlink_to(click_bundles[0])
    with serving(tmp_path, f"click={link}", "--bid", tmp_path / "bid.yaml", "--watch-seconds", "0.1") as served:
        for target, status in ((tmp_path / "other", 503), (click_bundles[1], 200)):
            (tmp_path / "next").symlink_to(target)
            (tmp_path / "next").rename(link)
            for _ in range(200):
                answer = served.ask("POST", "/bid", request())
                if answer.status == status:
                    break
                time.sleep(0.05)
            assert answer.status == status
            if status == 503:
                assert "the model has no column 'tags'" in answer.json["error"]


def test_a_replaced_version_is_let_go_at_once_and_the_new_one_is_ready_to_bid(
    tmp_path: Path, click_bundles: tuple[Path, Path]
) -> None:
    (tmp_path / "bid.yaml").write_text(yaml.safe_dump(CONFIG))
    link = tmp_path / "current"
    link.symlink_to(click_bundles[0])
    metrics = Metrics()
    deployment = Deployment("click", {"current": link}, load_model("click", link, metrics=metrics))
    models = Models({"click": deployment})
    routes = bid_routes(models, tmp_path / "bid.yaml", now=0.0)
    old = weakref.ref(deployment.current)
    reloader = Reloader(models, metrics, max_batch_rows=64, num_threads=1)
    (tmp_path / "next").symlink_to(click_bundles[1])
    (tmp_path / "next").rename(link)
    assert asyncio.run(reloader.look()) == {"click": {"current": Bundle(click_bundles[1]).version}}
    assert old() is None
    assert list(routes.scorers) == [deployment.current]
    assert routes.scorer_for(deployment.current) is routes.scorers[deployment.current]


def test_nan_in_a_bid_request_is_named(bidder: Served) -> None:
    answer = bidder.ask("POST", "/bid", request(imp=[imp(), imp(2, bidfloor=float("nan"))]))
    assert answer.status == 400
    said = "bid request: JSON has no NaN, and imp[1].bidfloor is NaN; send null for a missing value"
    assert answer.json["error"].endswith(said)


def refused(folder: Path, config: dict[str, Any], *arguments: str | Path) -> str:
    """What `trm serve --bid` says of a config that it does not start with."""
    (folder / "wrong.yaml").write_text(yaml.safe_dump(config))
    code = "import sys; from torchrec_models.pipelines.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", "--port", "0", *map(str, arguments), "--bid", str(folder / "wrong.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_a_config_that_does_not_fit_the_model_is_refused_before_anything_is_served(
    folder: Path, click_bundles: tuple[Path, Path]
) -> None:
    said = refused(
        folder, CONFIG | {"columns": CONFIG["columns"] | {"agent": "device.ua", "site": "site.domain"}}, click_bundles[0]
    )
    assert "columns.agent: the model has no column 'agent'" in said
    assert "columns.site: 'site.domain': gives one value, and the column takes lists" in said
    said = refused(folder, CONFIG, click_bundles[0], "--workers", "2")
    assert "open bids and budgets live in one process" in said


def test_the_mapping_covers_the_models_columns() -> None:
    """Guards this file: CONFIG names every column of the bundle that it is served with."""
    assert {*CONFIG["columns"], *CONFIG["left_missing"]} == set(click_transforms().columns.values())
    assert {t.name for t in CLICK_SCHEMA.tasks} == {"click", "spend"}


def test_metrics_and_openapi_know_of_bids(bidder: Served) -> None:
    names = ("trm_bids_total{", 'trm_no_bids_total{reason="', 'trm_requests_total{path="/bid",status="200"}')
    before = [bidder.metric(name) for name in names]
    bids(bidder.ask("POST", "/bid", request()))
    bids(bidder.ask("POST", "/bid", request()))
    assert "nbr" in bidder.ask("POST", "/bid", request(imp=[imp(banner={"w": 1, "h": 1})])).json
    assert [bidder.metric(name) - b for name, b in zip(names, before)] == [2, 1, 3]
    campaign = CONFIG["campaigns"][0]["id"]
    assert f'trm_bids_total{{campaign="{campaign}"}}' in bidder.ask("GET", "/metrics").body.decode()
    document = bidder.ask("GET", "/openapi.json").json
    operation = document["paths"]["/bid"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/BidRequest"}
    asked, answered = (document["components"]["schemas"][name] for name in ("BidRequest", "BidResponse"))
    assert asked["required"] == ["id", "imp"] and answered["required"] == ["id"]
    assert set(request()) - {"zebra"} <= set(asked["properties"])
