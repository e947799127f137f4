"""bid.yaml: which OpenRTB fields a model's columns are, what a click is worth, what may be spent.

Strict: every mistake is reported at once. All amounts of money are in `currency`; a price per thousand impressions is called cpm.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..config.data import Section
from ..config.errors import ConfigError, check_structure
from ..config.text import read_yaml

Scalar = str | int | float | bool
HOURS_PER_DAY = 24


class TimeConfig(Section):
    """Where `time.hour` and `time.weekday` come from: the server's clock, or a field of the request."""

    path: str = Field("", description="OpenRTB path of a timestamp; default: the clock when the request arrives")
    format: str = Field("unix_seconds", description="of that field: unix_seconds, unix_milliseconds, or a strptime pattern")
    utc_offset_minutes: int = Field(0, ge=-1440, le=1440, description="of the local time that the model was trained on")
    first_weekday: Literal["monday", "sunday"] = Field("monday", description="the day that is 0; the model's training log decides")


class ValuePerClick(Section):
    """value = amount * P(click)"""

    per: Literal["click"]
    amount: float = Field(gt=0, description="what one click is worth")
    task: str = Field("", description="the model's task that is P(click); default: its only task")


class ValuePerAction(Section):
    """value = amount * P(click) * P(action | click): a CPA target. The second factor is a task of the model, or a rate."""

    per: Literal["action"]
    amount: float = Field(gt=0, description="what one action (conversion) is worth")
    task: str = Field("", description="the model's task that is P(click); default: its only task")
    rate: float | None = Field(None, gt=0, le=1, description="P(action | click), measured over the campaign")
    rate_task: str = Field("", description="the model's task that is P(action | click)")


class BudgetConfig(Section):
    """What a campaign may spend between two midnights of `utc_offset_minutes`."""

    daily: float = Field(gt=0)
    pacing: Literal["even", "asap"] = Field("even", description="even: over the day, as `hours` says; asap: until it is spent")
    hours: list[Annotated[float, Field(ge=0)]] = Field([], description="24 weights: the share of traffic expected in each hour")
    utc_offset_minutes: int = Field(0, ge=-1440, le=1440)


class CreativeConfig(Section):
    """One ad. `adm` is its markup (`adid` where the exchange has it already); `attr` are AdCOM creative attributes."""

    id: str
    w: int = Field(ge=1)
    h: int = Field(ge=1)
    adm: str = ""
    adid: str = ""
    attr: list[int] = Field([])
    secure: bool = Field(True, description="all its URLs are HTTPS; impressions with secure=1 get no other")


class CampaignConfig(Section):
    """Who bids, with which creatives, and how much."""

    id: str
    value: Annotated[ValuePerClick | ValuePerAction, Field(discriminator="per")]
    advertiser_domains: list[str] = Field(min_length=1, description="checked against badv, sent as adomain")
    categories: list[str] = Field(min_length=1, description="of the advertiser, checked against bcat and acat")
    cattax: int = Field(1, description="AdCOM category taxonomy of `categories`; 1 is IAB content taxonomy 1.0")
    shading: float = Field(1.0, gt=0, le=1, description="first-price auctions: bid this share of the value")
    max_cpm: float | None = Field(None, gt=0)
    budget: BudgetConfig | None = None
    creatives: list[CreativeConfig] = Field(min_length=1)


class BidConfig(Section):
    seat: str = Field("", description="our seat at the exchange, checked against wseat and bseat")
    currency: str = Field("USD", description="of all amounts here and, where the request allows it, of bids; ISO 4217")
    rates: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="one unit of a foreign currency in `currency`")
    columns: dict[str, str] = Field(description="raw column of the model -> OpenRTB path")
    constants: dict[str, Scalar] = Field({}, description="raw column of the model -> the value it always has")
    left_missing: list[str] = Field([], description="raw columns of the model that are missing in every request")
    time: TimeConfig = TimeConfig()
    notice_url: str = Field("", description="public address of this server; bids then carry win and loss notices")
    notice_seconds: float = Field(600, gt=0, description="how long a bid's price stays reserved for its win notice")
    spend_file: str = Field("", description="journal of wins; a restarted server reads it and goes on with what is left")
    no_bid: Literal["empty", "reason"] = Field("empty", description="204, or 200 with a reason code in nbr")
    margin_milliseconds: float = Field(10, ge=0, description="of tmax, kept for the way back through the network")
    campaigns: list[CampaignConfig] = Field(min_length=1)

    @property
    def has_budgets(self) -> bool:
        return any(c.budget for c in self.campaigns)


def load_bid_config(path: str | Path) -> BidConfig:
    """Read and validate a bid.yaml.

    Raises:
        ConfigError: with every mistake found.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read as a text file: {error}"]) from None
    problems: list[str] = []
    raw = read_yaml(text, problems)
    if raw is None and problems:
        raise ConfigError(str(path), problems)
    return parse_bid_config(raw, source=str(path), problems=problems)


def parse_bid_config(raw: Any, *, source: str = "bid.yaml", problems: list[str] | None = None) -> BidConfig:
    """Validate a config given as plain Python data; see `load_bid_config`."""
    problems = problems or []
    if not isinstance(raw, dict):
        raise ConfigError(source, [*problems, "expected sections such as columns: and campaigns:"])
    found, _, _ = check_structure(BidConfig, raw)
    problems += found
    if not problems:
        config = BidConfig.model_validate_json(json.dumps(raw))
        problems += _cross_problems(config)
    if problems:
        raise ConfigError(source, problems)
    return config


def _cross_problems(config: BidConfig) -> Iterator[str]:
    given = [*config.columns, *config.constants, *config.left_missing]
    for name in sorted({n for n in given if given.count(n) > 1}):
        yield f"{name}: stands in more than one of columns, constants and left_missing; keep one"
    if config.currency in config.rates:
        yield f"rates.{config.currency}: is `currency` itself, which is 1"
    for where, name in [("currency", config.currency), *((f"rates.{n}", n) for n in config.rates)]:
        if len(name) != 3 or not (name.isascii() and name.isalpha() and name.isupper()):
            yield f"{where}: given {name!r}; must be an ISO 4217 code such as EUR"
    if config.spend_file and not config.has_budgets:
        yield "spend_file: has no effect where no campaign has a budget; leave it out"
    ids = [c.id for c in config.campaigns]
    for i, campaign in enumerate(config.campaigns):
        here = f"campaigns[{i}]"
        if campaign.id in ids[:i]:
            yield f"{here}.id: {campaign.id!r} is the id of campaigns[{ids.index(campaign.id)}] already"
        if campaign.budget and not config.notice_url:
            yield f"{here}.budget: needs notice_url, or nothing would tell what was spent"
        if campaign.budget and campaign.budget.hours and len(campaign.budget.hours) != HOURS_PER_DAY:
            yield f"{here}.budget.hours: {len(campaign.budget.hours)} weights given; must be {HOURS_PER_DAY}, one per hour"
        if campaign.budget and campaign.budget.hours and not sum(campaign.budget.hours):
            yield f"{here}.budget.hours: all weights are 0"
        if campaign.budget and campaign.budget.hours and campaign.budget.pacing == "asap":
            yield f"{here}.budget.hours: has no effect with pacing: asap; leave it out"
        value = campaign.value
        if value.per == "action" and bool(value.rate) == bool(value.rate_task):
            yield f"{here}.value: an action needs either rate or rate_task, P(action | click)"
        creative_ids = [c.id for c in campaign.creatives]
        for j, creative in enumerate(campaign.creatives):
            if creative.id in creative_ids[:j]:
                yield f"{here}.creatives[{j}].id: {creative.id!r} is given twice"
