"""A generated log of won auctions in the format of iPinYou's season 2 and 3, whose click probabilities are known.

Columns and codes follow Liao, Peng, Liu, Shen, "iPinYou global RTB bidding algorithm competition dataset", ADKDD 2014: one
tab-separated line per impression, without header, prices in fen (1/100 yuan) per thousand impressions.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

COLUMNS = (
    *("click", "weekday", "hour", "bidid", "timestamp", "logtype", "ipinyouid", "useragent", "IP", "region", "city", "adexchange"),
    *("domain", "url", "urlid", "slotid", "slotwidth", "slotheight", "slotvisibility", "slotformat", "slotprice", "creative"),
    *("bidprice", "payprice", "keypage", "advertiser", "usertag"),
)
SIZES = ((300, 250), (728, 90), (160, 600), (336, 280), (950, 90), (250, 250), (1000, 90))
CREATIVES = tuple(str(7300 + i) for i in range(len(SIZES)))  # one per size
MAX_BID = 300  # fen CPM: what the log's bidder offered for everything
_AGENTS = ("windows_ie", "windows_chrome", "android_browser", "mac_safari", "ios_safari", "windows_firefox")
_VISIBILITIES = ("FirstView", "SecondView", "ThirdView", "FourthView", "OtherView", "Na")
_NUM_DOMAINS, _SLOTS_PER_DOMAIN, _NUM_TAGS, _NUM_CITIES = 300, 3, 60, 40
_FIRST_DAY = np.datetime64("2013-10-19T00:00:00")
_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class AuctionLog:
    """A generated log.

    Attributes:
        table: the columns of `COLUMNS`, in order of time.
        probability: [num_rows] float64, P(click | the row).
    """

    table: pa.Table
    probability: np.ndarray


def auction_log(num_rows: int, *, num_days: int = 7, click_rate: float = 0.01, seed: int = 0) -> AuctionLog:
    """Impressions with clicks from a logistic model with known weights, and market prices.

    logit = b + domain + slot size + agent + city + hour + visibility + mean of the tags' weights, with b such that the mean
    probability is `click_rate`; log(payprice) ~ Normal(4.0 + 0.3 (domain + size), 0.7), cut to [floor, 300]: others value good
    places too, but know nothing of the user.

    Args:
        num_days: from 2013-10-19 (a Saturday) on.
        click_rate: iPinYou's own is about 0.0007; a log that is to teach something in a minute needs more.
        seed: equal arguments give an equal log with one numpy version.
    """
    random = np.random.default_rng(seed)
    pick = random.integers
    share = 1 / (np.arange(_NUM_DOMAINS) + 3)
    domain = random.choice(_NUM_DOMAINS, num_rows, p=share / share.sum())
    slot = pick(0, _SLOTS_PER_DOMAIN, num_rows)
    size = pick(0, len(SIZES), (_NUM_DOMAINS, _SLOTS_PER_DOMAIN))[domain, slot]
    visibility = pick(0, len(_VISIBILITIES), (_NUM_DOMAINS, _SLOTS_PER_DOMAIN))[domain, slot]
    floor = random.choice([0, 0, 5, 20, 50], (_NUM_DOMAINS, _SLOTS_PER_DOMAIN))[domain, slot]
    exchange = pick(1, 4, _NUM_DOMAINS)[domain]
    agent = random.choice(len(_AGENTS), num_rows, p=[0.42, 0.3, 0.12, 0.06, 0.06, 0.04])
    city = pick(0, _NUM_CITIES, num_rows)
    second = np.sort(pick(0, num_days * _DAY_SECONDS, num_rows))
    hour = second % _DAY_SECONDS // 3600
    num_tags = random.geometric(0.25, num_rows) - 1
    num_tags = np.minimum(num_tags, 12)
    tags = pick(0, _NUM_TAGS, num_tags.sum())

    weights = {name: random.normal(0, scale, count) for name, scale, count in (
        ("domain", 0.7, _NUM_DOMAINS), ("size", 0.4, len(SIZES)), ("agent", 0.4, len(_AGENTS)), ("city", 0.25, _NUM_CITIES),
        ("visibility", 0.4, len(_VISIBILITIES)), ("tag", 1.2, _NUM_TAGS))}  # fmt: skip
    place = weights["domain"][domain] + weights["size"][size]
    of_row = np.repeat(np.arange(num_rows), num_tags)
    tag_mean = np.bincount(of_row, weights["tag"][tags], minlength=num_rows) / np.maximum(num_tags, 1)
    logit = place + weights["agent"][agent] + weights["city"][city] + weights["visibility"][visibility] + tag_mean
    logit += 0.3 * np.sin((hour - 14) / 24 * 2 * np.pi)
    logit += _offset(logit, click_rate)
    probability = 1 / (1 + np.exp(-logit))
    price = np.exp(random.normal(4.0 + 0.3 * place, 0.7))
    price = np.clip(np.round(price), np.maximum(floor, 1), MAX_BID).astype(np.int64)

    domain_hex = np.array([f"{i * 2654435761 % 2**64:016x}{i:016x}" for i in range(_NUM_DOMAINS)])
    stamps = pa.array(_FIRST_DAY + second.astype("timedelta64[s]"))
    offsets = pa.array(np.concatenate([[0], np.cumsum(num_tags)]), pa.int32())
    tag_names = pa.array((10_000 + np.arange(_NUM_TAGS)).astype(str)).take(pa.array(tags))
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, tag_names), ",")
    table = {
        "click": (random.random(num_rows) < probability).astype(np.int8),
        "weekday": pc.day_of_week(stamps, count_from_zero=True, week_start=7),
        "hour": hour,
        "bidid": _hex_ids(random, num_rows),
        "timestamp": pc.binary_join_element_wise(pc.strftime(stamps, "%Y%m%d%H%M%S"), "000", ""),
        "logtype": np.ones(num_rows, np.int8),
        "ipinyouid": np.char.add("U", pick(0, max(num_rows // 3, 1), num_rows).astype(str)),
        "useragent": np.array(_AGENTS)[agent],
        "IP": np.char.add(np.char.add("10.0.", pick(0, 200, num_rows).astype(str)), ".*"),
        "region": 200 + city // 10,
        "city": 216 + city,
        "adexchange": exchange,
        "domain": domain_hex[domain],
        "url": domain_hex[domain],
        "urlid": ["null"] * num_rows,
        "slotid": np.char.add(np.char.add(domain.astype(str), "_"), slot.astype(str)),
        "slotwidth": np.array(SIZES)[size, 0],
        "slotheight": np.array(SIZES)[size, 1],
        "slotvisibility": np.array(_VISIBILITIES)[visibility],
        "slotformat": ["Na"] * num_rows,
        "slotprice": floor,
        "creative": np.array(CREATIVES)[size],
        "bidprice": np.full(num_rows, MAX_BID),
        "payprice": price,
        "keypage": ["null"] * num_rows,
        "advertiser": ["2259"] * num_rows,
        "usertag": pc.if_else(pa.array(num_tags == 0), "null", joined),
    }
    return AuctionLog(pa.table(table), probability)


def _hex_ids(random: np.random.Generator, count: int) -> pa.Array:
    """32 random hexadecimal digits each."""
    text = pa.py_buffer(random.bytes(16 * count).hex().encode())
    return pa.StringArray.from_buffers(count, pa.py_buffer(np.arange(0, 32 * count + 1, 32, dtype=np.int32)), text)


def _offset(logit: np.ndarray, mean: float) -> float:
    """b such that the mean of sigmoid(logit + b) is `mean`, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-logit - middle))).mean() < mean else (low, middle)
    return (low + high) / 2


def write_log(table: pa.Table, path: Path) -> None:
    """The log's own format: tab separated, no header, nothing quoted."""
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    csv.write_csv(table, path, write_options=options)
