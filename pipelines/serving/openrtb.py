"""OpenRTB 2.6: what we read of a bid request and what we write in a bid response, as msgspec Structs.

Source: IAB Tech Lab, OpenRTB 2.6 (2.6.md of InteractiveAdvertisingBureau/openrtb2.x), sections 3.2 and 4.2; the names are the
standard's. Fields that are not here are ignored, as the standard asks; those that are must have its type, or null where optional.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

VERSION = "2.6"
FIRST_PRICE, SECOND_PRICE = 1, 2
BANNER_MARKUP = 1  # bid.mtype

Ext = dict[str, Any]
Price = Annotated[float, Meta(ge=0)]
Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]  # what a column can hold


# --- what decides on a bid, for a request that was held against everything below already ----------------------------------


class Size(Struct, kw_only=True, gc=False):
    w: Int | None = None
    h: Int | None = None


class Place(Struct, kw_only=True, gc=False):
    """A banner's place on a page."""

    format: Sequence[Size] | None = None
    w: Int | None = None
    h: Int | None = None
    battr: list[Int] | None = None


class Pmp(Struct, kw_only=True, gc=False):
    private_auction: Int | None = None


class Impression(Struct, kw_only=True, gc=False):
    """One impression on offer. `bidfloor` is a CPM in `bidfloorcur`."""

    id: str
    banner: Place | None = None
    pmp: Pmp | None = None
    bidfloor: Price | None = None
    bidfloorcur: str | None = None
    secure: Int | None = None


class Auction(Struct, kw_only=True, gc=False):
    """`tmax` is in milliseconds; `cur` are the currencies a bid may have; `at` is 1 (first price) or 2 (second)."""

    id: str
    imp: Annotated[Sequence[Impression], Meta(min_length=1)]
    at: Int | None = None
    tmax: Int | None = None
    wseat: list[str] | None = None
    bseat: list[str] | None = None
    cur: list[str] | None = None
    acat: list[str] | None = None
    bcat: list[str] | None = None
    cattax: Int | None = None
    badv: list[str] | None = None


# --- all that we read ---------------------------------------------------------------------------------------------------


class Format(Size, kw_only=True):
    wratio: Int | None = None
    hratio: Int | None = None
    wmin: Int | None = None


class Banner(Place, kw_only=True):
    format: Sequence[Format] | None = None
    btype: list[Int] | None = None
    pos: Int | None = None
    mimes: list[str] | None = None
    topframe: Int | None = None
    api: list[Int] | None = None
    id: str | None = None
    ext: Ext | None = None


class Imp(Impression, kw_only=True):
    banner: Banner | None = None
    displaymanager: str | None = None
    instl: Int | None = None
    tagid: str | None = None
    rwdd: Int | None = None
    exp: Int | None = None
    ext: Ext | None = None


class Publisher(Struct, kw_only=True):
    id: str | None = None
    name: str | None = None
    cat: list[str] | None = None
    domain: str | None = None
    ext: Ext | None = None


class Content(Struct, kw_only=True):
    id: str | None = None
    title: str | None = None
    series: str | None = None
    genre: str | None = None
    url: str | None = None
    cat: list[str] | None = None
    keywords: str | None = None
    language: str | None = None
    livestream: Int | None = None
    len: Int | None = None
    ext: Ext | None = None


class Site(Struct, kw_only=True):
    id: str | None = None
    name: str | None = None
    domain: str | None = None
    cat: list[str] | None = None
    sectioncat: list[str] | None = None
    pagecat: list[str] | None = None
    page: str | None = None
    ref: str | None = None
    search: str | None = None
    mobile: Int | None = None
    publisher: Publisher | None = None
    content: Content | None = None
    keywords: str | None = None
    kwarray: list[str] | None = None
    ext: Ext | None = None


class App(Struct, kw_only=True):
    id: str | None = None
    name: str | None = None
    bundle: str | None = None
    domain: str | None = None
    storeurl: str | None = None
    cat: list[str] | None = None
    sectioncat: list[str] | None = None
    pagecat: list[str] | None = None
    ver: str | None = None
    paid: Int | None = None
    publisher: Publisher | None = None
    content: Content | None = None
    keywords: str | None = None
    kwarray: list[str] | None = None
    ext: Ext | None = None


class Geo(Struct, kw_only=True):
    lat: float | None = None
    lon: float | None = None
    type: Int | None = None
    country: str | None = None
    region: str | None = None
    metro: str | None = None
    city: str | None = None
    zip: str | None = None
    utcoffset: Int | None = None
    ext: Ext | None = None


class Device(Struct, kw_only=True):
    geo: Geo | None = None
    dnt: Int | None = None
    lmt: Int | None = None
    ua: str | None = None
    ip: str | None = None
    ipv6: str | None = None
    devicetype: Int | None = None
    make: str | None = None
    model: str | None = None
    os: str | None = None
    osv: str | None = None
    h: Int | None = None
    w: Int | None = None
    ppi: Int | None = None
    pxratio: float | None = None
    js: Int | None = None
    language: str | None = None
    carrier: str | None = None
    mccmnc: str | None = None
    connectiontype: Int | None = None
    ifa: str | None = None
    ext: Ext | None = None


class Segment(Struct, kw_only=True):
    id: str | None = None
    name: str | None = None
    value: str | None = None
    ext: Ext | None = None


class Data(Struct, kw_only=True):
    id: str | None = None
    name: str | None = None
    segment: list[Segment] | None = None
    ext: Ext | None = None


class User(Struct, kw_only=True):
    id: str | None = None
    buyeruid: str | None = None
    yob: Int | None = None
    gender: str | None = None
    keywords: str | None = None
    kwarray: list[str] | None = None
    customdata: str | None = None
    geo: Geo | None = None
    data: list[Data] | None = None
    ext: Ext | None = None


class BidRequest(Auction, kw_only=True):
    """One auction, with who is asked for and where."""

    imp: Annotated[Sequence[Imp], Meta(min_length=1)]
    site: Site | None = None
    app: App | None = None
    device: Device | None = None
    user: User | None = None
    test: Int | None = None
    ext: Ext | None = None


class Bid(Struct, kw_only=True, omit_defaults=True):
    """One offer for one impression. `price` is a CPM in the response's `cur`."""

    id: str
    impid: str
    price: float
    cid: str
    crid: str
    w: int
    h: int
    adomain: list[str]
    mtype: int
    nurl: str | None = None
    lurl: str | None = None
    adm: str | None = None
    adid: str | None = None
    cat: list[str] | None = None
    cattax: int | None = None
    attr: list[int] | None = None


class SeatBid(Struct, kw_only=True, omit_defaults=True):
    bid: list[Bid]
    seat: str | None = None


class BidResponse(Struct, kw_only=True, omit_defaults=True):
    """The answer to one request: bids, or why there are none."""

    id: str
    seatbid: list[SeatBid] | None = None
    cur: str | None = None
    nbr: int | None = None


class NoBid(IntEnum):
    """Why there is no bid. Below 500: OpenRTB 3.0, List: No-Bid Reason Codes, which leaves codes from 500 on to the parties."""

    TECHNICAL_ERROR = 1
    INSUFFICIENT_AUCTION_TIME = 15
    NO_BANNER_THAT_FITS = 500
    BLOCKED = 501
    CURRENCY = 502
    BELOW_FLOOR = 503
    BUDGET = 504


_decoder = msgspec.json.Decoder(BidRequest)
decode_auction = msgspec.json.Decoder(Auction).decode


def decode_request(body: bytes) -> BidRequest:
    """A bid request.

    Raises:
        ValueError: with the reason and the field's place, as in `$.imp[0].bidfloor`.
    """
    try:
        request = _decoder.decode(body)
    except UnicodeDecodeError as error:
        raise ValueError(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    ids = [imp.id for imp in request.imp]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"two impressions have the id {twice[:80]!r}; it must be unique within a request - at `$.imp[].id`")
    return request


encode_response = msgspec.json.Encoder().encode
