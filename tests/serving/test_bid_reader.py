"""Bid requests read from JSON by C give what msgspec, mapping and transforms give; what C does not decide is left to them."""

import copy
import json
import random
from typing import Any

import msgspec
import numpy as np
import pytest
from bundle_cases import CLICK_SCHEMA, click_transforms
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchrec_models.pipelines.serving.bid_config import parse_bid_config
from torchrec_models.pipelines.serving.bid_mapping import OfferRow, RowMapping
from torchrec_models.pipelines.serving.bid_reader import BidReader
from torchrec_models.pipelines.serving.bid_terms import Asked
from torchrec_models.pipelines.serving.codec import RowCodec
from torchrec_models.pipelines.serving.encoder import RowEncoder
from torchrec_models.pipelines.serving.openrtb import Auction, BidRequest, decode_auction, decode_request
from torchrec_models.pipelines.serving.slots import SlotLayout

NOW = 1_382_527_872.0  # Wednesday 2013-10-23, 11:31:12 UTC
CAMPAIGN = {
    "id": "7",
    "value": {"per": "click", "amount": 0.5},
    "advertiser_domains": ["shoes.example"],
    "categories": ["IAB18-5"],
    "creatives": [{"id": "103", "w": 300, "h": 250}],
}
MAPPINGS: dict[str, dict[str, Any]] = {
    "usual": {
        "columns": {
            **{"device": "device.ext.kind", "tags": "user.kwarray", "item": "creative.id", "top_tag": "imp.tagid"},
            **{"history": "user.data[*].segment[*].id", "site": "site.cat", "price": "imp.ext.price"},
        },
        "left_missing": ["age"],
    },
    "clock": {
        "columns": {
            **{"device": "site.publisher.id", "tags": "user.data[*].name", "item": "time.hour", "top_tag": "time.weekday"},
            **{"history": "user.data[*].segment[*].value", "site": "user.data[*].id", "age": "device.geo.lat"},
        },
        "constants": {"price": 2.5},
        "time": {"utc_offset_minutes": 330},
    },
    "timestamp": {
        "columns": {
            **{"device": "imp.banner.w", "item": "imp.banner.pos", "age": "time.hour", "tags": "imp.banner.mimes"},
            **{"top_tag": "campaign.id", "history": "imp.banner.battr", "site": "imp.banner.mimes", "price": "imp.bidfloor"},
        },
        "time": {"path": "ext.timestamp", "format": "%Y%m%d%H%M%S"},
    },
    "twice": {
        "columns": {
            **{"device": "device.geo.country", "item": "imp.id", "age": "app.ext.deep.age", "tags": "site.cat", "site": "site.cat"},
            **{"top_tag": "device.geo.country", "history": "bcat", "price": "device.pxratio"},
        },
    },
}
REQUEST: dict[str, Any] = {
    "id": "auction-1",
    "imp": [
        {
            **{"id": "103", "tagid": "t3", "bidfloor": 0.5, "bidfloorcur": "USD", "secure": 1, "pmp": {"private_auction": 0}},
            "banner": {
                "w": 300,
                "h": 250,
                "pos": 104,
                "battr": [103, 104, 9],
                "mimes": ["t1", "t2"],
                "format": [{"w": 300, "h": 250}],
            },
            "ext": {"price": 2.5},
        }
    ],
    "at": 2,
    "tmax": 5000,
    "cur": ["USD"],
    "bcat": ["101", "102"],
    "badv": ["x.example"],
    "device": {"ext": {"kind": "phone"}, "geo": {"lat": 48, "country": "t4", "ext": {}}, "pxratio": 1.5},
    "user": {
        "kwarray": ["t1", "t2|t3", ""],
        "data": [
            {"id": "a.example", "name": "t5", "segment": [{"id": "101", "value": "102"}, {"id": "107"}]},
            {"segment": [{"value": "103"}, {"id": None}]},
            {"name": "t6"},
        ],
    },
    "site": {"cat": ["a.example", "t7"], "publisher": {"id": "d3"}, "ext": None},
    "app": {"ext": {"deep": {"age": "33", "else": [{}]}}},
    "ext": {"timestamp": "20131023113112"},
    "zebra": {"unknown": [True, False, None, {"é": "\\u00e9", "n": [1.5e3, -7, {}, []]}]},
}


class Case:
    """One mapping, both ways."""

    def __init__(self, name: str) -> None:
        transforms = click_transforms()
        config = parse_bid_config({"campaigns": [CAMPAIGN]} | MAPPINGS[name])
        separators = {"tags": "|"}
        self.mapping = RowMapping(config, RowCodec(transforms).columns, separators)
        self.encoder = RowEncoder(transforms, SlotLayout.from_schema(CLICK_SCHEMA))
        reader = BidReader.of(self.encoder.reader, self.mapping)
        assert reader is not None, "these tests need a C compiler"
        self.reader = reader
        self.terms: dict[bytes, Any] = {}  # by key, of all requests that were checked
        self.values = self.mapping.offer_values(config.campaigns[0], config.campaigns[0].creatives[0])

    def by_c(self, body: bytes) -> tuple[list, list] | None:
        """None where C does not decide the row."""
        ids, dense = np.full(self.encoder.num_slots, -1, np.int64), np.full(self.encoder.num_dense, np.nan, np.float32)
        for _ in range(2):  # one request may have several rows
            if not self.reader.encode(self.values, ids.ctypes.data, dense.ctypes.data):
                return None
        return ids.tolist(), dense.tolist()

    def by_python(self, request: BidRequest) -> tuple[list, list]:
        rows = self.mapping.rows(request, [OfferRow(0, self.values)], NOW)
        ids, dense = self.encoder.encode(rows)
        return ids[0].tolist(), dense[0].tolist()

    def check(self, body: bytes) -> bool:
        """Whether C decided the request and its row. If so, rightly."""
        found_of_request = self.reader.read(body, NOW)
        if found_of_request is None:
            return False
        asked, key = found_of_request
        request = decode_request(body)
        assert len(request.imp) == 1
        auction = decode_auction(body)
        assert _is_part(auction, request)
        if asked is None:
            assert key == b"" and b"\\" in body
        else:
            assert asked == Asked.of(auction)
            assert self.terms.setdefault(key, terms_of(auction)) == terms_of(auction)
        found = self.by_c(body)
        if found is None:
            return False
        assert found == self.by_python(request), body
        return True


def terms_of(auction: Auction) -> Any:
    """All that decides on a bid, but for what is the request's own."""
    found = msgspec.to_builtins(auction)
    imps = [{name: value for name, value in imp.items() if name not in ("id", "bidfloor")} for imp in found["imp"]]
    return {name: value for name, value in found.items() if name not in ("id", "tmax")} | {"imp": imps}


def _is_part(small: Any, large: Any) -> bool:
    if isinstance(small, list):
        return len(small) == len(large) and all(map(_is_part, small, large))
    if hasattr(small, "__struct_fields__"):
        return all(_is_part(getattr(small, name), getattr(large, name)) for name in small.__struct_fields__)
    return small == large


CASES = {name: Case(name) for name in MAPPINGS}


def paths(value: Any, here: tuple = ()) -> list[tuple]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, one in below for path in paths(one, (*here, key)))]


PATHS = paths(REQUEST)[1:]
NUMBERS = (0, -1, 7, 1.0, 2.5, -0.0, 1e300, 2**53 + 1, 2**63, -(2**63), 10**17)
TEXTS = ("", "t3", "101", "007", "é", "\U0001f600", "a|b", "a\\b", '"', "\n", "\x00", "\ud800", "20131023113112", "x" * 300)
LISTS: tuple[list, ...] = ([], ["t1"], [7, 8], ["101", None], [{"id": "101"}])
LEAVES = st.sampled_from([None, True, *NUMBERS, *TEXTS, *LISTS, {}, {"id": "9"}])
NAMES = st.sampled_from([*sorted({str(p[-1]) for p in PATHS}), "é", ""])


def parent_of(request: dict[str, Any], path: tuple) -> Any:
    """Where the path's last step leads on from; None where another change took it away."""
    place: Any = request
    for step in path[:-1]:
        is_there = step in place if isinstance(place, dict) else isinstance(place, list) and type(step) is int and step < len(place)
        place = place[step] if is_there else None
    return place


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """The request above with some fields left out, replaced or added."""
    request = copy.deepcopy(REQUEST)
    for path in draw(st.lists(st.sampled_from(PATHS), max_size=4)):
        place, leaf = parent_of(request, path), copy.deepcopy(draw(LEAVES))
        if isinstance(place, list) and place:
            place[draw(st.integers(0, len(place) - 1))] = leaf
        elif isinstance(place, dict):
            change = draw(st.sampled_from(["leave out", "replace", "replace", "add"]))
            if change == "leave out":
                place.pop(path[-1], None)
            else:
                place[draw(NAMES) if change == "add" else path[-1]] = leaf
    return request


@settings(max_examples=2500, deadline=None)
@given(case=st.sampled_from(sorted(CASES)), request=requests(), ascii=st.booleans())
def test_requests_are_read_as_in_python(case: str, request: dict[str, Any], ascii: bool) -> None:
    body = json.dumps(request, ensure_ascii=ascii).encode(errors="surrogatepass")
    CASES[case].check(body)


PIECES = st.sampled_from(
    [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"n", b"null", b"0", b"-", b".", b"e9", b" ", b"\x00", b"\xff", b"\xc3"]
)


@settings(max_examples=1500, deadline=None)
@given(case=st.sampled_from(sorted(CASES)), at=st.integers(0, 1200), length=st.integers(0, 3), pieces=st.lists(PIECES, max_size=3))
@example(case="usual", at=0, length=0, pieces=[b"\xef\xbb\xbf"])
def test_damaged_requests(case: str, at: int, length: int, pieces: list[bytes]) -> None:
    whole = json.dumps(REQUEST).encode()
    CASES[case].check(whole[:at] + b"".join(pieces) + whole[at + length :])
    CASES[case].check(whole[:at])


@pytest.mark.parametrize("case", sorted(CASES))
def test_an_ordinary_request_is_decided(case: str) -> None:
    assert CASES[case].check(json.dumps(REQUEST).encode())
    assert CASES[case].check(json.dumps(REQUEST, indent=2).encode())
    shuffled = list(REQUEST.items())
    random.Random(0).shuffle(shuffled)
    assert CASES[case].check(json.dumps(dict(shuffled), ensure_ascii=False).encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"at": 2', '"at": 2, "at": 2'),
        ('"at": 2', '"at": 2.0'),
        ('"at": 2', '"at": true'),
        ('"at": 2', '"at": "2"'),
        ('"at": 2', '"at": 02'),
        ('"bidfloor": 0.5', '"bidfloor": -0.5'),
        ('"bidfloor": 0.5', '"bidfloor": 1e999'),
        ('"cur": ["USD"]', '"cur": [null]'),
        ('"cur": ["USD"]', '"cur": "USD"'),
        ('"imp": [', '"imp": [{"id": "2"}, '),
        ('"id": "auction-1", ', ""),
        ('"id": "103", "tagid"', '"tagid"'),
        ('"ext": null', '"ext": 7'),
        ('"kind": "phone"', '"kind": true'),
        ('"user": {', '"user": {"ext": [], '),
        ('"segment": [{"id"', '"segment": [null, {"id"'),
        ('"zebra": {', '"zebra": {"open": [}, '),
        ('"zebra": {', '"zebra": {"deep": ' + "[" * 80 + "]" * 80 + ", "),
        ('"zebra": {', '"zebra": {"broken": "\\ud800", '),
    ],
)
def test_what_is_odd_is_not(old: str, new: str) -> None:
    whole = json.dumps(REQUEST)
    assert old in whole
    assert not CASES["usual"].check(whole.replace(old, new, 1).encode())


OWN = [('"id": "auction-1"', '"id": "auction-2"'), ('"id": "103", "tagid"', '"id": "7", "tagid"'), ('"tmax": 5000', '"tmax": 50')]
NO_MATTER = [('"bidfloor": 0.5', '"bidfloor": 3'), ('"pos": 104', '"pos": 3'), ('"kwarray": ["t1"', '"kwarray": ["t2"')]
MATTER = [
    ('"at": 2', '"at": 1'),
    ('"cur": ["USD"]', '"cur": ["EUR"]'),
    ('"bcat": ["101", "102"]', '"acat": ["101", "102"]'),
    ('"badv": ["x.example"]', '"badv": []'),
    ('"at": 2', '"at": 2, "wseat": ["7"]'),
    ('"at": 2', '"at": 2, "cattax": 7'),
    ('"bidfloorcur": "USD"', '"bidfloorcur": "EUR"'),
    ('"secure": 1', '"secure": 0'),
    ('"private_auction": 0', '"private_auction": 1'),
    ('"w": 300, "h": 250, "pos"', '"w": 250, "h": 300, "pos"'),
    ('"battr": [103, 104, 9]', '"battr": [103, 104]'),
    ('"format": [{"w": 300, "h": 250}]', '"format": [{"w": 300, "h": 251}]'),
]


@pytest.mark.parametrize(("old", "new"), [*OWN, *NO_MATTER, *MATTER])
def test_requests_have_the_same_key_on_equal_terms_only(old: str, new: str) -> None:
    whole = json.dumps(REQUEST)
    assert old in whole
    one, two = (CASES["usual"].reader.read(text.encode(), NOW) for text in (whole, whole.replace(old, new, 1)))
    assert one is not None and two is not None
    assert (one[1] == two[1]) == ((old, new) not in MATTER)


def test_long_terms_and_ids_with_escapes_have_no_key() -> None:
    reader = CASES["usual"].reader
    blocked = [f"{i}.example" for i in range(400)]
    assert reader.read(json.dumps(REQUEST | {"badv": blocked}).encode(), NOW) == (None, b"")
    assert reader.read(json.dumps(REQUEST | {"id": "caf\u00e9"}).encode(), NOW) == (None, b"")
    found = reader.read(json.dumps(REQUEST | {"id": "caf\u00e9"}, ensure_ascii=False).encode(), NOW)
    assert found is not None and found[0] is not None and found[0].id == "caf\u00e9"


def test_more_items_than_there_is_room_for_are_undecided() -> None:
    for num, decided in ((1000, True), (1024, True), (1025, False), (5000, False)):
        body = json.dumps(REQUEST | {"user": {"data": [{"segment": [{"id": "101"}]}] * num}}).encode()
        assert CASES["usual"].check(body) == decided


@pytest.mark.parametrize(
    ("columns", "constants", "reason"),
    [
        ({"device": "user.data[0].name"}, {}, "an index in user.data[0].name"),
        ({"site": "user.ext.sites[*]"}, {}, "a list below ext"),
        ({}, {"device": True}, "device True"),
        ({"device": "device.ext", "top_tag": "device.ext.kind"}, {}, "ends where another goes on"),
    ],
)
def test_other_mappings_are_left_to_python(columns: dict, constants: dict, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    transforms = click_transforms()
    given = {k: v for k, v in MAPPINGS["usual"]["columns"].items() if k not in constants} | columns
    config = parse_bid_config({"campaigns": [CAMPAIGN], "columns": given, "constants": constants, "left_missing": ["age"]})
    mapping = RowMapping(config, RowCodec(transforms).columns, {"tags": "|"})
    encoder = RowEncoder(transforms, SlotLayout.from_schema(CLICK_SCHEMA))
    with caplog.at_level("INFO"):
        assert BidReader.of(encoder.reader, mapping) is None
    assert reason in caplog.text
