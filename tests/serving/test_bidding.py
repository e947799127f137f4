"""What is bid, on what, for how much: arithmetic against closed forms, rules of OpenRTB 2.6 one by one."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_models.pipelines.config import ConfigError
from torchrec_models.pipelines.serving.bid_config import BidConfig, load_bid_config, parse_bid_config
from torchrec_models.pipelines.serving.bid_mapping import RowMapping, compile_path
from torchrec_models.pipelines.serving.bid_terms import Asked
from torchrec_models.pipelines.serving.bidding import Bidder, Plan, bid_price
from torchrec_models.pipelines.serving.codec import Column
from torchrec_models.pipelines.serving.openrtb import BidRequest, BidResponse, NoBid, decode_request

NOW = 1_382_527_872.0  # Wednesday 2013-10-23, 11:31:12 UTC
COLUMNS = {
    "domain": Column("domain", "domain", "string", "one"),
    "width": Column("width", "width", "string", "one"),
    "segments": Column("segments", "segments", "string", "list"),
    "tags": Column("tags", "tags", "string", "text"),
    "hour": Column("hour", "hour", "number", "one"),
    "weekday": Column("weekday", "weekday", "number", "one"),
    "creative": Column("creative", "creative", "string", "one"),
    "market": Column("market", "market", "string", "one"),
    "age": Column("age", "age", "number", "one"),
}
CAMPAIGN: dict[str, Any] = {
    "id": "shoes",
    "value": {"per": "click", "amount": 0.5},
    "advertiser_domains": ["shoes.example"],
    "categories": ["IAB18-5"],
    "creatives": [{"id": "c1", "w": 300, "h": 250}],
}
CONFIG: dict[str, Any] = {
    "seat": "s1",
    "columns": {
        "domain": "site.domain",
        "width": "imp.banner.w",
        "segments": "user.data[*].segment[*].id",
        "tags": "user.kwarray",
        "hour": "time.hour",
        "weekday": "time.weekday",
        "creative": "creative.id",
    },
    "constants": {"market": "cn"},
    "left_missing": ["age"],
    "campaigns": [CAMPAIGN],
}
IMP: dict[str, Any] = {"id": "1", "banner": {"w": 300, "h": 250}}


def config(**changes: Any) -> BidConfig:
    return parse_bid_config(CONFIG | changes)


def mapping(given: BidConfig) -> RowMapping:
    return RowMapping(given, COLUMNS, {"tags": ","})


def request(**changes: Any) -> BidRequest:
    return decode_request(json.dumps({"id": "r", "imp": [IMP]} | changes).encode())


def plan_of(bidder: Bidder, asked: BidRequest, now: float) -> Plan | NoBid:
    return bidder.plan(Asked.of(asked), bidder.terms(asked, mapping(bidder.config)), now)


def bid(asked: BidRequest, *, p: float = 0.01, **changes: Any) -> Any:
    """(impid, price, cid, crid, cur) of every bid, or the reason why there is none; every row is answered with `p`."""
    given = config(**changes)
    bidder = Bidder(given, ["click"], now=NOW)
    plan = plan_of(bidder, asked, NOW)
    answer = plan if isinstance(plan, NoBid) else bidder.answer(plan, [[p]] * len(plan.rows), NOW)
    if isinstance(answer, NoBid):
        return answer
    assert answer.seatbid and answer.id == asked.id
    return [(b.impid, b.price, b.cid, b.crid, answer.cur) for b in answer.seatbid[0].bid]


def campaign(**changes: Any) -> dict[str, Any]:
    return CAMPAIGN | changes


# --- price ------------------------------------------------------------------------------------------------------------


def test_the_truthful_price_is_value_times_probability_per_thousand() -> None:
    assert bid(request(at=2), p=0.0123) == [("1", 6.15, "shoes", "c1", "USD")]
    assert bid(request(), p=0.0123) == [("1", 6.15, "shoes", "c1", "USD")]  # at is 2 where it is not given


def test_a_first_price_is_shaded_and_never_below_the_floor() -> None:
    shaded = [campaign(shading=0.6)]
    assert bid(request(at=1), p=0.0123, campaigns=shaded) == [("1", 3.69, "shoes", "c1", "USD")]
    assert bid(request(at=2), p=0.0123, campaigns=shaded) == [("1", 6.15, "shoes", "c1", "USD")]
    for floor, price in ((3.69, 3.69), (5.0, 5.0), (6.15, 6.15)):
        found = bid(request(at=1, imp=[IMP | {"bidfloor": floor}]), p=0.0123, campaigns=shaded)
        assert found == [("1", price, "shoes", "c1", "USD")]
    assert bid(request(at=1, imp=[IMP | {"bidfloor": 6.1501}]), p=0.0123, campaigns=shaded) == NoBid.BELOW_FLOOR


def test_an_action_is_worth_its_rate_or_its_own_prediction() -> None:
    rate = [campaign(value={"per": "action", "amount": 20.0, "rate": 0.05})]
    assert bid(request(), p=0.01, campaigns=rate) == [("1", 10.0, "shoes", "c1", "USD")]
    given = config(campaigns=[campaign(value={"per": "action", "amount": 20.0, "task": "click", "rate_task": "buy"})])
    bidder = Bidder(given, ["buy", "click"], now=NOW)
    plan = plan_of(bidder, request(), NOW)
    assert not isinstance(plan, NoBid)
    answer = bidder.answer(plan, [[0.1, 0.02]], NOW)
    assert isinstance(answer, BidResponse) and answer.seatbid
    assert answer.seatbid[0].bid[0].price == pytest.approx(1000 * 20 * 0.02 * 0.1)


def test_max_cpm_caps_the_value() -> None:
    assert bid(request(), p=0.9, campaigns=[campaign(max_cpm=7.5)]) == [("1", 7.5, "shoes", "c1", "USD")]


@given(
    value=st.floats(0, 1e6),
    floor=st.floats(0, 1e3),
    first_price=st.booleans(),
    shading=st.floats(0.01, 1),
    max_cpm=st.none() | st.floats(0.01, 1e6),
)
def test_a_price_is_between_the_floor_and_the_worth(
    value: float, floor: float, first_price: bool, shading: float, max_cpm: float | None
) -> None:
    price = bid_price(value, floor=floor, first_price=first_price, shading=shading, max_cpm=max_cpm)
    worth = min(value, max_cpm or math.inf)
    if price is None:
        assert worth < floor or worth * (shading if first_price else 1) < 1e-4
    else:
        assert floor <= price <= worth * (1 + 1e-9) + 1e-9
        wanted = max(worth * (shading if first_price else 1), floor)
        assert wanted - 1.01e-4 <= price <= wanted + 1e-9
        assert price == floor or price == pytest.approx(round(price, 4), abs=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, 1e-9])
def test_what_is_worth_nothing_gets_no_bid(value: float) -> None:
    assert bid_price(value, floor=0.0, first_price=True) is None


def test_bidding_the_value_wins_most_in_a_second_price_auction() -> None:
    """Profit E[(v - c) 1(b > c)] with competitors c uniform on [0, 1]: v b - b^2 / 2, largest at b = v (Vickrey 1961)."""
    competitors = (np.arange(20_000) + 0.5) / 20_000
    value = 0.37
    bids = np.linspace(0, 1, 101)
    profit = [((value - competitors) * (b > competitors)).mean() for b in bids]
    np.testing.assert_allclose(profit, value * bids - bids**2 / 2, atol=1e-4)
    truthful = bid_price(value, floor=0.0, first_price=False)
    assert truthful == bids[int(np.argmax(profit))]
    # first price: E[(v - b) 1(b > c)] = (v - b) b is largest at half the value
    shaded = bid_price(value, floor=0.0, first_price=True, shading=0.5)
    assert shaded == pytest.approx(bids[int(np.argmax((value - bids) * bids))], abs=0.01)


# --- currencies and floors --------------------------------------------------------------------------------------------


def test_currencies() -> None:
    rates = {"rates": {"EUR": 1.25, "CNY": 0.125}}
    assert bid(request(cur=["EUR", "CNY"]), p=0.01, **rates) == [("1", 4.0, "shoes", "c1", "EUR")]
    assert bid(request(cur=["CNY", "USD"]), p=0.01, **rates) == [("1", 5.0, "shoes", "c1", "USD")]
    assert bid(request(cur=["GBP", "CNY"]), p=0.01, **rates) == [("1", 40.0, "shoes", "c1", "CNY")]
    assert bid(request(cur=["GBP"]), **rates) == NoBid.CURRENCY


def test_floors_in_other_currencies() -> None:
    rates = {"rates": {"EUR": 1.25}, "currency": "CNY"}
    rates["rates"] |= {"USD": 8.0}  # type: ignore[operator]
    for floor, currency, found in (
        (0.625, "USD", [("1", 5.0, "shoes", "c1", "CNY")]),
        (0.625, None, [("1", 5.0, "shoes", "c1", "CNY")]),  # USD where nothing is said
        (0.626, None, NoBid.BELOW_FLOOR),
        (5.0, "CNY", [("1", 5.0, "shoes", "c1", "CNY")]),
        (0.01, "GBP", NoBid.CURRENCY),
        (0.0, "GBP", [("1", 5.0, "shoes", "c1", "CNY")]),
    ):
        imp = IMP | {"bidfloor": floor} | ({"bidfloorcur": currency} if currency else {})
        assert bid(request(imp=[imp]), p=0.01, **rates) == found, (floor, currency)


def test_max_cpm_is_in_the_configs_currency() -> None:
    changes = {"rates": {"EUR": 2.0}, "campaigns": [campaign(max_cpm=3.0)]}
    assert bid(request(cur=["EUR"]), p=0.9, **changes) == [("1", 1.5, "shoes", "c1", "EUR")]


# --- who may bid on what ----------------------------------------------------------------------------------------------

BIDS = [("1", 5.0, "shoes", "c1", "USD")]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"badv": ["other.example", "myshoes.example"]}, BIDS),
        ({"badv": ["Shoes.example"]}, NoBid.BLOCKED),
        ({"badv": ["example"]}, NoBid.BLOCKED),  # a parent domain
        ({"bcat": ["IAB18-50", "IAB1"]}, BIDS),
        ({"bcat": ["IAB18-5"]}, NoBid.BLOCKED),
        ({"bcat": ["IAB18"]}, NoBid.BLOCKED),
        ({"bcat": ["IAB1"], "cattax": 7}, NoBid.BLOCKED),  # cannot be compared
        ({"acat": ["IAB18"]}, BIDS),
        ({"acat": ["IAB1"]}, NoBid.BLOCKED),
        ({"wseat": ["s1", "s2"]}, BIDS),
        ({"wseat": ["s2"]}, NoBid.BLOCKED),
        ({"bseat": ["s1"]}, NoBid.BLOCKED),
        ({"bseat": ["s2"]}, BIDS),
    ],
)
def test_blocks(changes: dict[str, Any], found: Any) -> None:
    assert bid(request(**changes)) == found


@pytest.mark.parametrize(
    ("imp", "found"),
    [
        ({"id": "1"}, NoBid.NO_BANNER_THAT_FITS),
        ({"id": "1", "banner": {}}, NoBid.NO_BANNER_THAT_FITS),
        ({"id": "1", "banner": {"w": 250, "h": 300}}, NoBid.NO_BANNER_THAT_FITS),
        ({"id": "1", "banner": {"w": 1, "h": 1, "format": [{"w": 728, "h": 90}, {"w": 300, "h": 250}]}}, BIDS),
        ({"id": "1", "banner": {"w": 300, "h": 250, "format": [{"w": 728, "h": 90}]}}, NoBid.NO_BANNER_THAT_FITS),
        (IMP | {"pmp": {"private_auction": 1}}, NoBid.NO_BANNER_THAT_FITS),
        (IMP | {"pmp": {"private_auction": 0}}, BIDS),
        (IMP | {"secure": 1}, BIDS),
    ],
)
def test_what_fits(imp: dict[str, Any], found: Any) -> None:
    assert bid(request(imp=[imp])) == found


def test_attributes_and_secure_choose_among_creatives() -> None:
    loud = {"id": "loud", "w": 300, "h": 250, "attr": [1, 6], "secure": False}
    two = [campaign(creatives=[loud, CAMPAIGN["creatives"][0]])]
    assert bid(request(), campaigns=two)[0][3] == "loud"
    assert bid(request(imp=[IMP | {"secure": 1}]), campaigns=two)[0][3] == "c1"
    assert bid(request(imp=[{"id": "1", "banner": {"w": 300, "h": 250, "battr": [6]}}]), campaigns=two)[0][3] == "c1"


def test_each_impression_gets_the_best_offer() -> None:
    campaigns = [
        campaign(creatives=[{"id": "a", "w": 300, "h": 250}, {"id": "b", "w": 300, "h": 250}, {"id": "c", "w": 728, "h": 90}]),
        campaign(id="hats", value={"per": "click", "amount": 0.9}, creatives=[{"id": "d", "w": 300, "h": 250}]),
    ]
    given = config(campaigns=campaigns)
    bidder = Bidder(given, ["click"], now=NOW)
    imps = [IMP | {"id": "x"}, {"id": "y", "banner": {"w": 728, "h": 90}}, {"id": "z"}]
    asked = request(imp=imps)
    plan = plan_of(bidder, asked, NOW)
    assert not isinstance(plan, NoBid)
    assert [row["creative"] for row in mapping(given).rows(asked, plan.rows, NOW)] == ["a", "b", "d", "c"]
    for answers, expected in (
        ([0.01, 0.03, 0.01, 0.02], [("x", "b", 15.0), ("y", "c", 10.0)]),
        ([0.01, 0.015, 0.01, 0.02], [("x", "d", 9.0), ("y", "c", 10.0)]),
    ):
        answer = bidder.answer(plan, [[p] for p in answers], NOW)
        assert isinstance(answer, BidResponse) and answer.seatbid
        found = [(b.impid, b.crid, b.price) for b in answer.seatbid[0].bid]
        assert found == [(i, c, pytest.approx(p)) for i, c, p in expected]
        assert len({b.id for b in answer.seatbid[0].bid}) == 2


def test_creatives_share_a_row_where_the_model_cannot_tell_them_apart() -> None:
    columns = {k: v for k, v in CONFIG["columns"].items() if k != "creative"}
    creatives = [{"id": str(i), "w": 300, "h": 250} for i in range(3)]
    given = config(columns=columns, left_missing=["age", "creative"], campaigns=[campaign(creatives=creatives)])
    plan = plan_of(Bidder(given, ["click"], now=NOW), request(), NOW)
    assert not isinstance(plan, NoBid)
    assert len(plan.rows) == 1
    assert [offer.creative.id for offer in plan.chances[0].offers] == ["0", "1", "2"]


def test_a_spent_budget_leaves_the_impression_to_the_next_campaign() -> None:
    rich = campaign(id="rich", value={"per": "click", "amount": 1.0}, budget={"daily": 0.015, "pacing": "asap"})
    given = config(campaigns=[rich, CAMPAIGN], notice_url="https://bid.example/")
    bidder = Bidder(given, ["click"], now=NOW)
    found = []
    for _ in range(3):
        plan = plan_of(bidder, request(), NOW)
        assert not isinstance(plan, NoBid)
        answer = bidder.answer(plan, [[0.01]] * len(plan.rows), NOW)
        assert isinstance(answer, BidResponse) and answer.seatbid
        found.append(answer.seatbid[0].bid[0])
    assert [(b.cid, b.price) for b in found] == [("rich", 10.0), ("shoes", 5.0), ("shoes", 5.0)]
    assert found[0].nurl == f"https://bid.example/win/{found[0].id}/${{AUCTION_PRICE}}"
    bidder.notices.win(found[0].id, 4.0, NOW + 1)  # 0.004 of 0.015: there is room for another 0.010
    plan = plan_of(bidder, request(), NOW + 2)
    assert not isinstance(plan, NoBid)
    answer = bidder.answer(plan, [[0.01]] * len(plan.rows), NOW + 2)
    assert isinstance(answer, BidResponse) and answer.seatbid
    assert answer.seatbid[0].bid[0].cid == "rich"


# --- mapping ----------------------------------------------------------------------------------------------------------


def rows_of(asked: BidRequest, **changes: Any) -> list[dict[str, Any]]:
    given = config(**changes)
    plan = plan_of(Bidder(given, ["click"], now=NOW), asked, NOW)
    assert not isinstance(plan, NoBid)
    return mapping(given).rows(asked, plan.rows, NOW)


def test_rows_hold_what_the_paths_say() -> None:
    data = [{"segment": [{"id": "a"}, {"name": "no id"}]}, {}, {"segment": [{"id": "b"}]}]
    user = {"data": data, "kwarray": ["x", "y"]}
    (row,) = rows_of(request(site={"domain": "d.example"}, user=user))
    assert row == {
        **{"domain": "d.example", "width": 300, "segments": ["a", "b"], "tags": "x,y", "hour": 11, "weekday": 2},
        **{"creative": "c1", "market": "cn", "age": None},
    }
    (row,) = rows_of(request())
    assert {row[k] for k in ("domain", "segments", "tags", "age")} == {None}


def test_time_in_the_models_own_way() -> None:
    ways: list[tuple[dict[str, Any], Any, tuple]] = [
        ({"utc_offset_minutes": 480, "first_weekday": "sunday"}, None, (19, 3)),
        ({"path": "ext.time", "format": "%Y%m%d%H%M%S%f", "first_weekday": "sunday"}, "20131027003112417", (0, 0)),
        ({"path": "imp[0].ext.time", "format": "unix_milliseconds"}, None, (None, None)),
        ({"path": "ext.time", "format": "unix_milliseconds"}, NOW * 1000 + 3600e3, (12, 2)),
    ]
    for time, stamp, expected in ways:
        (row,) = rows_of(request(ext={"time": stamp}), time=time)
        assert (row["hour"], row["weekday"]) == expected, time
    for wrong in ("yesterday", [1], 1e300, "nan"):
        with pytest.raises(ValueError, match=r"is not a time of the format 'unix_seconds' - at `\$.ext.time`"):
            rows_of(request(ext={"time": wrong}), time={"path": "ext.time"})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("site.publisher.cat", ["IAB1"]),
        ("site.publisher.cat[0]", "IAB1"),
        ("site.publisher.cat[1]", None),
        ("user.data[1].segment[*].id", ["b"]),
        ("user.data[*].segment[0].id", ["a", "b"]),
        ("user.data[7].segment[0].id", None),
        ("user.data[*].ext.k", [5]),
        ("device.ext.a.b", 7),
        ("device.ext.a.b.c", None),
        ("device.ext.list[*]", [1, 2]),
        ("device.ext.objects[*].k", [8]),
        ("device.ext.objects[0].k", 8),
        ("device.ext.objects", [{"k": 8}, 3, None]),
        ("device.ext.list[1]", 2),
        ("app.bundle", None),
    ],
)
def test_paths(path: str, expected: Any) -> None:
    given = request(
        site={"publisher": {"cat": ["IAB1"]}},
        user={"data": [{"segment": [{"id": "a"}], "ext": {"k": 5}}, {"segment": [{"id": "b"}]}]},
        device={"ext": {"a": {"b": 7}, "list": [1, 2], "objects": [{"k": 8}, 3, None]}},
    )
    assert compile_path(path, BidRequest).get(given) == expected


def test_every_mistake_in_a_mapping_is_named() -> None:
    columns = {
        "domain": "site.domian",
        "width": "imp[0].banner.w",
        "segments": "site.domain",
        "tags": "user.data.segment",
        "hour": "time.minute",
        "creative": "user.data[*].id",
        "agee": "site.id",
        "age": "site.publisher",
    }
    with pytest.raises(ConfigError) as caught:
        mapping(config(columns=columns, constants={}, left_missing=[], time={"path": "ext"}))
    text = str(caught.value)
    for part in (
        "columns.domain: 'site.domian': Site has no field 'domian'; did you mean 'domain'?",
        "columns.width: 'imp[0].banner.w': write imp without an index",
        "columns.segments: 'site.domain': gives one value, and the column takes lists",
        "columns.tags: 'user.data.segment': 'data' is a list; write data[*] or data[0]",
        "columns.hour: 'time.minute': time has: hour, weekday",
        "columns.creative: 'user.data[*].id': gives a list, and the column takes one value",
        "columns.agee: the model has no column 'agee'; did you mean 'age'?",
        "columns.age: 'site.publisher': ends in an object; go on with one of id, name",
        "columns: the model also reads weekday, market; give a path, a constant, or name them in left_missing",
    ):
        assert part in text, text


def test_every_mistake_in_a_config_is_named(tmp_path: Any) -> None:
    path = tmp_path / "bid.yaml"
    path.write_text(
        """
rates: {USD: -1}
seet: s1
columns: {a: site.id}
campaigns:
  - id: x
    value: {per: clik, amount: 0}
    advertiser_domains: []
    categories: [IAB1]
    shading: 1.5
    creatives: [{id: c, w: 0, h: 1}]
"""
    )
    with pytest.raises(ConfigError) as caught:
        load_bid_config(path)
    text = str(caught.value)
    for part in (
        "rates.USD: given -1; must be more than 0",
        "seet: unknown key (given 's1'); did you mean 'seat'?",
        "campaigns[0].value.per: given 'clik'; allowed: click, action; did you mean 'click'?",
        "campaigns[0].value.amount: given 0; must be more than 0",
        "campaigns[0].advertiser_domains: given []; must be a list of at least 1",
        "campaigns[0].shading: given 1.5; must be at most 1",
        "campaigns[0].creatives[0].w: given 0; must be at least 1",
    ):
        assert part in text, text


def test_sections_that_contradict_each_other_are_named() -> None:
    broken = campaign(
        value={"per": "action", "amount": 3.0},
        budget={"daily": 1.0, "pacing": "asap", "hours": [1.0] * 23},
        creatives=[CAMPAIGN["creatives"][0]] * 2,
    )
    with pytest.raises(ConfigError) as caught:
        config(campaigns=[broken, CAMPAIGN], rates={"USD": 1.0, "euro": 1.1}, constants={"domain": 5}, left_missing=["age"])
    text = str(caught.value)
    for part in (
        "domain: stands in more than one of columns, constants and left_missing",
        "rates.USD: is `currency` itself",
        "rates.euro: given 'euro'; must be an ISO 4217 code",
        "campaigns[0].budget: needs notice_url",
        "campaigns[0].budget.hours: 23 weights given; must be 24",
        "campaigns[0].budget.hours: has no effect with pacing: asap",
        "campaigns[0].value: an action needs either rate or rate_task",
        "campaigns[0].creatives[1].id: 'c1' is given twice",
        "campaigns[1].id: 'shoes' is the id of campaigns[0] already",
    ):
        assert part in text, text


def test_a_task_that_the_model_lacks_is_named() -> None:
    given = config(campaigns=[campaign(value={"per": "click", "amount": 1.0, "task": "clik"})])
    with pytest.raises(ConfigError, match=r"value\.task: given 'clik'; the model's tasks: click, buy; did you mean 'click'\?"):
        Bidder(given, ["click", "buy"], now=NOW)
    with pytest.raises(ConfigError, match=r"value\.task: given nothing"):
        Bidder(config(), ["click", "buy"], now=NOW)
