"""OpenRTB 2.6 as we read and write it, against the types of IAB Tech Lab's JSON Schema of 2.6."""

import json
from collections.abc import Sequence
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_models.pipelines.serving import openrtb as O

S, INT, N, L = "string", "integer", "number", "array of string"
LI = "array of integer"
# Types by field in InteractiveAdvertisingBureau/openrtb2.x, jsonschema/*.json at 4891f0b and 309f542 (draft 2020-12, 2.6): facts.
STANDARD: dict[str, dict[str, str]] = {
    "BidRequest": {
        **{
            "id": S,
            "imp": "array of Imp",
            "site": "Site",
            "app": "App",
            "device": "Device",
            "user": "User",
            "test": INT,
            "at": INT,
        },
        **{"tmax": INT, "wseat": L, "bseat": L, "cur": L, "acat": L, "bcat": L, "cattax": INT, "badv": L, "ext": "object"},
    },
    "Imp": {
        **{
            "id": S,
            "banner": "Banner",
            "pmp": "Pmp",
            "displaymanager": S,
            "instl": INT,
            "tagid": S,
            "bidfloor": N,
            "bidfloorcur": S,
        },
        **{"secure": INT, "rwdd": INT, "exp": INT, "ext": "object"},
    },
    "Banner": {
        **{
            "format": "array of Format",
            "w": INT,
            "h": INT,
            "btype": LI,
            "battr": LI,
            "pos": INT,
            "mimes": L,
            "topframe": INT,
            "api": LI,
        },
        **{"id": S, "ext": "object"},
    },
    "Format": dict.fromkeys(("w", "h", "wratio", "hratio", "wmin"), INT),
    "Site": {
        **{
            "id": S,
            "name": S,
            "domain": S,
            "cat": L,
            "sectioncat": L,
            "pagecat": L,
            "page": S,
            "ref": S,
            "search": S,
            "mobile": INT,
        },
        **{"publisher": "Publisher", "content": "Content", "keywords": S, "kwarray": L, "ext": "object"},
    },
    "App": {
        **{
            "id": S,
            "name": S,
            "bundle": S,
            "domain": S,
            "storeurl": S,
            "cat": L,
            "sectioncat": L,
            "pagecat": L,
            "ver": S,
            "paid": INT,
        },
        **{"publisher": "Publisher", "content": "Content", "keywords": S, "kwarray": L, "ext": "object"},
    },
    "Publisher": {"id": S, "name": S, "cat": L, "domain": S, "ext": "object"},
    "Geo": {
        **{"lat": N, "lon": N, "type": INT, "country": S, "region": S, "metro": S, "city": S, "zip": S, "utcoffset": INT},
        **{"ext": "object"},
    },
    "Device": {
        **{
            "geo": "Geo",
            "dnt": INT,
            "lmt": INT,
            "ua": S,
            "ip": S,
            "ipv6": S,
            "devicetype": INT,
            "make": S,
            "model": S,
            "os": S,
            "osv": S,
        },
        **{
            "h": INT,
            "w": INT,
            "ppi": INT,
            "pxratio": N,
            "js": INT,
            "language": S,
            "carrier": S,
            "mccmnc": S,
            "connectiontype": INT,
        },
        **{"ifa": S, "ext": "object"},
    },
    "User": {
        **{"id": S, "buyeruid": S, "yob": INT, "gender": S, "keywords": S, "kwarray": L, "customdata": S, "geo": "Geo"},
        **{"data": "array of Data", "ext": "object"},
    },
    "Data": {"id": S, "name": S, "segment": "array of Segment", "ext": "object"},
    "Segment": {"id": S, "name": S, "value": S, "ext": "object"},
    "BidResponse": {"id": S, "seatbid": "array of SeatBid", "cur": S, "nbr": INT},
    "SeatBid": {"bid": "array of Bid", "seat": S},
    "Bid": {
        **{"id": S, "impid": S, "price": N, "nurl": S, "lurl": S, "adm": S, "adid": S, "adomain": L, "cid": S, "crid": S},
        **{"cattax": INT, "cat": L, "attr": LI, "w": INT, "h": INT, "mtype": INT},
    },
}
REQUIRED = {"BidRequest": {"id", "imp"}, "Imp": {"id"}, "BidResponse": {"id"}, "SeatBid": {"bid"}, "Bid": {"id", "impid", "price"}}


def type_name(annotation: Any) -> str:
    """The JSON Schema type that a field's annotation stands for."""
    if hasattr(annotation, "__metadata__"):
        return type_name(annotation.__origin__)
    arms = [a for a in get_args(annotation) if a is not NoneType]
    if get_origin(annotation) in (list, Sequence):
        return f"array of {type_name(arms[0])}"
    if get_origin(annotation) is dict:
        return "object"
    if arms:
        return type_name(arms[0])
    return {str: S, int: INT, float: N}.get(annotation) or annotation.__name__


@pytest.mark.parametrize("name", STANDARD)
def test_types_are_the_standards(name: str) -> None:
    struct = getattr(O, name)
    found = {field: type_name(hint) for field, hint in get_type_hints(struct, include_extras=True).items()}
    assert found == STANDARD[name]
    required = {f.name for f in msgspec.structs.fields(struct) if f.required}
    assert REQUIRED.get(name, set()) <= required
    if name in ("BidRequest", "Imp", "Device", "User"):
        assert required == REQUIRED.get(name, set())  # ask for no more than the standard does


REQUEST = {
    "id": "80ce30c5",
    "at": 1,
    "cur": ["USD"],
    "imp": [{"id": "1", "bidfloor": 0.03, "banner": {"h": 250, "w": 300, "pos": 0}}],
    "site": {"id": "102855", "cat": ["IAB3-1"], "domain": "www.foobar.com", "publisher": {"id": "8953", "cat": ["IAB3-1"]}},
    "user": {"id": "55816b39", "data": [{"segment": [{"id": "s1"}, {"id": "s2"}]}]},
}


def decode(**changes: Any) -> O.BidRequest:
    return O.decode_request(json.dumps(REQUEST | changes).encode())


def test_a_request_is_read() -> None:
    request = decode(tmax=120)
    assert (request.id, request.at, request.tmax, request.imp[0].bidfloor) == ("80ce30c5", 1, 120, 0.03)
    assert request.site and request.site.publisher and request.site.publisher.cat == ["IAB3-1"]
    assert request.user and request.user.data and request.user.data[0].segment
    assert [s.id for s in request.user.data[0].segment] == ["s1", "s2"]


def test_unknown_fields_nulls_and_whole_prices_are_fine() -> None:
    request = decode(
        site=None, regs={"gdpr": 1}, zebra=[1, {"a": 2}], imp=[{"id": "1", "bidfloor": 3, "video": {"w": "?"}, "qty": {}}]
    )
    assert request.site is None
    assert request.imp[0].bidfloor == 3.0
    assert request.imp[0].banner is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Input data was truncated"),
        (b"nonsense", "malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"imp": [{"id": "1"}]}', "missing required field `id`"),
        (b'{"id": 5, "imp": [{"id": "1"}]}', "Expected `str`, got `int` - at `$.id`"),
        (b'{"id": "a", "imp": []}', "length >= 1 - at `$.imp`"),
        (b'{"id": "a", "imp": [{"id": "1", "bidfloor": "3"}]}', "got `str` - at `$.imp[0].bidfloor`"),
        (b'{"id": "a", "imp": [{"id": "1", "bidfloor": -1}]}', ">= 0.0 - at `$.imp[0].bidfloor`"),
        (b'{"id": "a", "imp": [{"id": "1", "bidfloor": 1e999}]}', "out of range - at `$.imp[0].bidfloor`"),
        (b'{"id": "a", "imp": [{"id": "1", "bidfloor": NaN}]}', "malformed"),
        (b'{"id": "a", "imp": [{"id": "1", "banner": {"w": 9223372036854775808}}]}', "at `$.imp[0].banner.w`"),
        (b'{"id": "a", "imp": [{"id": "1"}, {"id": "1"}]}', "two impressions have the id '1'"),
        (b'{"id": "a\xff", "imp": [{"id": "1"}]}', "not UTF-8"),
        (b'{"id": "a", "imp": [{"id": "1"}], "ext": {"x": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        O.decode_request(body)
    assert reason in str(caught.value)


def test_a_response_leaves_out_what_it_does_not_say() -> None:
    bid = O.Bid(id="b", impid="1", price=1.5, cid="c", crid="x", w=300, h=250, adomain=["a.example"], mtype=1)
    written = json.loads(O.encode_response(O.BidResponse(id="r", seatbid=[O.SeatBid(bid=[bid])], cur="EUR")))
    assert written == {
        "id": "r",
        "cur": "EUR",
        "seatbid": [
            {
                "bid": [
                    {
                        "id": "b",
                        "impid": "1",
                        "price": 1.5,
                        "cid": "c",
                        "crid": "x",
                        "w": 300,
                        "h": 250,
                        "adomain": ["a.example"],
                        "mtype": 1,
                    }
                ]
            }
        ],
    }
    assert json.loads(O.encode_response(O.BidResponse(id="r", nbr=O.NoBid.INSUFFICIENT_AUCTION_TIME))) == {"id": "r", "nbr": 15}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(sorted({f for fields in STANDARD.values() for f in fields}))
objects = st.recursive(
    json_values, lambda inner: st.dictionaries(field_names, inner | st.lists(inner, max_size=2), max_size=5), max_leaves=20
)


@settings(max_examples=300, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(sorted(STANDARD["BidRequest"])), objects, max_size=4))
def test_any_json_is_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        request = decode(**changes)
    except ValueError as error:
        assert str(error)
    else:
        assert request.id == (REQUEST | changes)["id"]
        again = O.decode_request(msgspec.json.encode(request))
        assert again == request


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=60))
def test_any_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        O.decode_request(body)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_request_cut_anywhere_is_refused(data: st.DataObject) -> None:
    body = json.dumps(REQUEST).encode()
    with pytest.raises(ValueError):
        O.decode_request(body[: data.draw(st.integers(0, len(body) - 1))])
