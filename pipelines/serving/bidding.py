"""From a bid request to bids: who may bid on what, for how much. No HTTP and no model here.

`plan` says which rows to score, `answer` turns their predictions into a response.
price = shading * min(1000 * amount * P(click) [* P(action | click)], max_cpm), at least the floor, in a currency that is allowed
"""

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.errors import ConfigError, nearest
from .bid_config import BidConfig, CampaignConfig, CreativeConfig
from .bid_mapping import Row, RowMapping
from .openrtb import BANNER_MARKUP, SECOND_PRICE, Bid, BidRequest, BidResponse, Imp, NoBid, SeatBid
from .pacing import CPM_NANOS, NANOS, DailyBudget, Notices, Pacer, Unlimited

_ID_BYTES = 8
_IDS_DRAWN = 256
_NOTICES = {"win": "wins", "loss": "losses", "none": "without_notice"}

PRICE_DECIMALS = 4
USD = "USD"


def bid_price(value: float, *, floor: float, first_price: bool, shading: float = 1.0, max_cpm: float | None = None) -> float | None:
    """What to bid for an impression, or None where it is not worth its floor. All are CPM in one currency.

    In a second-price auction the value itself: there, telling the truth is a dominant strategy (Vickrey 1961). In a first-price
    auction `shading` times the value, raised to the floor where that is still no more than the value. Rounded down to 4 decimals.
    """
    worth = value if max_cpm is None else min(value, max_cpm)
    if not floor <= worth < math.inf:  # NaN is worth nothing
        return None
    price = max(worth * shading if first_price else worth, floor)
    rounded = math.floor(price * 10**PRICE_DECIMALS + 1e-6) / 10**PRICE_DECIMALS
    price = max(rounded, floor)
    return price if price > 0 else None


@dataclass(frozen=True, slots=True)
class Offer:
    """A creative that fits an impression. `row` is its row among those to be scored."""

    campaign: int
    creative: CreativeConfig
    row: int


@dataclass(frozen=True, slots=True)
class Chance:
    """An impression with a floor (CPM in the plan's currency) and all that could be offered for it."""

    imp: Imp
    floor: float
    offers: list[Offer]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is left to do for a request once its rows are scored. `currency` and `rate` are those of the bids."""

    request: BidRequest
    currency: str
    rate: float
    rows: list[Row]
    chances: list[Chance]


class _Campaign:
    """A campaign with what can be computed before any request."""

    def __init__(self, config: CampaignConfig, tasks: Sequence[str]) -> None:
        value = config.value
        self.config = config
        self.click = self._task(value.task, tasks, f"campaign {config.id!r}: value.task")
        self.amount = value.amount
        self.action: int | None = None
        if value.per == "action":
            self.amount *= value.rate or 1.0
            if value.rate_task:
                self.action = self._task(value.rate_task, tasks, f"campaign {config.id!r}: value.rate_task")
        self.domains = tuple(d.lower() for d in config.advertiser_domains)
        self.creatives: dict[tuple[int | None, int | None], list[CreativeConfig]] = {}
        for creative in config.creatives:
            self.creatives.setdefault((creative.w, creative.h), []).append(creative)

    @staticmethod
    def _task(name: str, tasks: Sequence[str], where: str) -> int:
        if not name and len(tasks) == 1:
            return 0
        if name in tasks:
            return tasks.index(name)
        given = repr(name) if name else "nothing"
        raise ValueError(f"{where}: given {given}; the model's tasks: {', '.join(tasks) or 'none'}{nearest(name, tasks)}")

    def value_cpm(self, answers: Sequence[float]) -> float:
        """What a thousand such impressions are worth, in the config's currency."""
        value = 1000 * self.amount * answers[self.click]
        return value if self.action is None else value * answers[self.action]

    def is_blocked(self, request: BidRequest) -> bool:
        """By advertiser domain or category. Categories of another taxonomy than ours cannot be compared, and block."""
        if request.badv and any(is_below(ours, theirs.lower(), ".") for theirs in request.badv for ours in self.domains):
            return True
        if (request.bcat or request.acat) and (request.cattax or 1) != self.config.cattax:
            return True
        ours = self.config.categories
        if request.bcat and any(category_is_below(c, blocked) for blocked in request.bcat for c in ours):
            return True
        return bool(request.acat) and not all(any(category_is_below(c, ok) for ok in request.acat or ()) for c in ours)


def is_below(name: str, parent: str, separator: str) -> bool:
    """Whether a domain is another one or lies below it: www.ford.com below ford.com."""
    return name == parent or name.endswith(separator + parent)


def category_is_below(category: str, parent: str) -> bool:
    """Whether a content category is another one or lies below it: IAB7-39 below IAB7."""
    return category == parent or category.startswith(parent + "-")


class Bidder:
    """Decides on bids.

    Args:
        config: bid.yaml.
        tasks: of the model, the columns of its answers.
        now: Unix seconds, for what was spent today already.

    Raises:
        ConfigError: for campaigns whose task the model does not have.
        ValueError: for a journal of wins that cannot be read.
    """

    def __init__(self, config: BidConfig, tasks: Sequence[str], *, now: float) -> None:
        self.config = config
        self.campaigns: list[_Campaign] = []
        problems = []
        for campaign in config.campaigns:
            try:
                self.campaigns.append(_Campaign(campaign, tasks))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("bid config", problems)
        self.pacers: list[Pacer] = [DailyBudget(c.budget) if c.budget else Unlimited() for c in config.campaigns]
        journal = Path(config.spend_file) if config.spend_file else None
        ids = [c.id for c in config.campaigns]
        self.notices = Notices(self.pacers, ids, seconds=config.notice_seconds, now=now, journal=journal)
        self.rates = {**config.rates, config.currency: 1.0}
        self.no_bids: dict[NoBid, int] = dict.fromkeys(NoBid, 0)
        self.num_bids = [0] * len(config.campaigns)
        self._random_ids: list[str] = []

    # --- before scoring

    def plan(self, request: BidRequest, mapping: RowMapping, now: float) -> Plan | NoBid:
        """Which rows to score, or why there is nothing to bid on.

        Raises:
            ValueError: for a timestamp in the request that is none.
        """
        self.notices.expire(now)  # else prices reserved in vain could keep a campaign from ever bidding again
        currency = self._currency(request.cur)
        if not currency:
            return NoBid.CURRENCY
        if not self._may_sit(request):
            return NoBid.BLOCKED
        rate = self.rates[currency]
        allowed = [i for i, c in enumerate(self.campaigns) if not c.is_blocked(request)]
        if not allowed:
            return NoBid.BLOCKED
        reason = NoBid.NO_BANNER_THAT_FITS
        rows: list[Row] = []
        chances: list[Chance] = []
        shared: Row | None = None
        for imp in request.imp:
            fitting = [(i, creative) for i in allowed for creative in self._fitting(self.campaigns[i], imp)]
            if not fitting:
                continue
            floor = self._floor(imp, currency, rate)
            if floor is None:
                reason = NoBid.CURRENCY
                continue
            joined = {i for i in dict.fromkeys(i for i, _ in fitting) if self.pacers[i].joins(now)}
            if not joined:
                reason = NoBid.BUDGET
                continue
            if shared is None:
                shared = mapping.of_request(request, now)
            offers = list(self._rows(fitting, joined, mapping, mapping.of_imp(imp, shared), rows))
            chances.append(Chance(imp, floor, offers))
        return Plan(request, currency, rate, rows, chances) if chances else reason

    def _rows(
        self, fitting: list[tuple[int, CreativeConfig]], joined: set[int], mapping: RowMapping, base: Row, rows: list[Row]
    ) -> Iterator[Offer]:
        """The offers for one impression; adds the rows they need, each once."""
        if not mapping.depends_on_offer:
            rows.append(base)
            yield from (Offer(i, creative, len(rows) - 1) for i, creative in fitting if i in joined)
            return
        seen: dict[tuple, int] = {}
        for i, creative in fitting:
            if i in joined:
                own = mapping.of_offer(campaign=self.config.campaigns[i], creative=creative)
                key = tuple(own.values())
                if key not in seen:
                    seen[key] = len(rows)
                    rows.append(base | own)
                yield Offer(i, creative, seen[key])

    def _currency(self, allowed: list[str] | None) -> str:
        """Ours where the request allows it or says nothing, else the first that has a rate, else ""."""
        if not allowed or self.config.currency in allowed:
            return self.config.currency
        return next((c for c in allowed if c in self.rates), "")

    def _may_sit(self, request: BidRequest) -> bool:
        seat = self.config.seat
        return not (request.wseat and seat not in request.wseat) and not (request.bseat and seat in request.bseat)

    def _floor(self, imp: Imp, currency: str, rate: float) -> float | None:
        """The floor in the bids' currency, exact where it is given in it; None where there is no rate."""
        floor_currency = imp.bidfloorcur or USD
        if not imp.bidfloor or floor_currency == currency:
            return imp.bidfloor or 0.0
        floor_rate = self.rates.get(floor_currency)
        return None if floor_rate is None else imp.bidfloor * floor_rate / rate

    @staticmethod
    def _fitting(campaign: _Campaign, imp: Imp) -> Iterator[CreativeConfig]:
        banner = imp.banner
        if banner is None or (imp.pmp is not None and imp.pmp.private_auction):  # we have no deals
            return
        sizes = [(f.w, f.h) for f in banner.format or ()] or [(banner.w, banner.h)]
        for size in dict.fromkeys(sizes):
            for creative in campaign.creatives.get(size, ()):
                is_blocked = banner.battr and any(a in banner.battr for a in creative.attr)
                if not is_blocked and (creative.secure or not imp.secure):
                    yield creative

    # --- after scoring

    def answer(self, plan: Plan, answers: Sequence[Sequence[float]], now: float) -> BidResponse | NoBid:
        """The best offer for each impression, or why there is none.

        Args:
            answers: of the model, [N][T] for the N rows of the plan.
        """
        bids: list[Bid] = []
        reason = NoBid.BELOW_FLOOR
        first_price = plan.request.at not in (None, SECOND_PRICE)
        for chance in plan.chances:
            ranked = []
            for offer in chance.offers:
                campaign = self.campaigns[offer.campaign]
                max_cpm = campaign.config.max_cpm
                price = bid_price(
                    campaign.value_cpm(answers[offer.row]) / plan.rate,
                    floor=chance.floor,
                    first_price=first_price,
                    shading=campaign.config.shading,
                    max_cpm=max_cpm / plan.rate if max_cpm else None,
                )
                if price is not None:
                    ranked.append((price, offer))
            ranked.sort(key=lambda pair: -pair[0])  # stable: ties go to what stands first in the config
            for price, offer in ranked:
                if self.pacers[offer.campaign].affords(math.ceil(price * plan.rate * CPM_NANOS), now):
                    bids.append(self._bid(chance.imp, offer, price, plan, now))
                    break
            else:
                reason = NoBid.BUDGET if ranked else reason
        if not bids:
            return reason
        seat = SeatBid(bid=bids, seat=self.config.seat or None)
        return BidResponse(id=plan.request.id, seatbid=[seat], cur=plan.currency)

    def _bid(self, imp: Imp, offer: Offer, price: float, plan: Plan, now: float) -> Bid:
        campaign, creative = self.campaigns[offer.campaign].config, offer.creative
        bid = self._random_id()
        self.num_bids[offer.campaign] += 1
        base = self.config.notice_url.rstrip("/")
        if base:
            self.notices.bid(bid, offer.campaign, price=price, rate=plan.rate, now=now)
        return Bid(
            id=bid,
            impid=imp.id,
            price=price,
            cid=campaign.id,
            crid=creative.id,
            w=creative.w,
            h=creative.h,
            adomain=campaign.advertiser_domains,
            cat=campaign.categories,
            cattax=campaign.cattax if campaign.cattax != 1 else None,
            attr=creative.attr or None,
            mtype=BANNER_MARKUP,
            adm=creative.adm or None,
            adid=creative.adid or None,
            nurl=f"{base}/win/{bid}/${{AUCTION_PRICE}}" if base else None,
            lurl=f"{base}/loss/{bid}/${{AUCTION_LOSS}}" if base else None,
        )

    def _random_id(self) -> str:
        """16 hexadecimal digits that nobody can guess, drawn many at a time: each drawing is a system call."""
        if not self._random_ids:
            drawn = secrets.token_hex(_ID_BYTES * _IDS_DRAWN)
            self._random_ids = [drawn[i : i + 2 * _ID_BYTES] for i in range(0, len(drawn), 2 * _ID_BYTES)]
        return self._random_ids.pop()

    def metrics(self, now: float) -> dict[str, dict[tuple[str, ...], float]]:
        """For machines: `state` by metric and labels, and the bids offered by campaign since the start."""
        state = self.state(now)
        found: dict[str, dict[tuple[str, ...], float]] = {
            "trm_bids": {(c.id,): float(n) for c, n in zip(self.config.campaigns, self.num_bids)},
            "trm_no_bids": {(reason,): float(count) for reason, count in state["no_bids"].items()},
            "trm_bid_notices": {(kind,): float(state[key]) for kind, key in _NOTICES.items()},
            "trm_open_bids": {(): float(state["open_bids"])},
            "trm_budget": {},
            "trm_pass_rate": {},
        }
        for campaign, budget in state["budgets"].items():
            found["trm_budget"] |= {(campaign, part, self.config.currency): budget[part] for part in ("daily", "spent", "reserved")}
            found["trm_pass_rate"][(campaign,)] = budget["pass_rate"]
        return found

    def state(self, now: float) -> dict[str, Any]:
        """For people: outcomes of bids, reasons of no-bids, and by campaign what its budget has left and how it is paced."""
        self.notices.expire(now)
        budgets = {
            c.id: {
                "daily": pacer.budget / NANOS,
                "spent": pacer.spent / NANOS,
                "reserved": pacer.reserved / NANOS,
                "pass_rate": pacer.pass_rate,
            }
            for c, pacer in zip(self.config.campaigns, self.pacers)
            if isinstance(pacer, DailyBudget)
        }
        notices = self.notices
        return {
            "currency": self.config.currency,
            "budgets": budgets,
            "open_bids": notices.num_open,
            "wins": notices.num_wins,
            "losses": notices.num_losses,
            "without_notice": notices.num_expired,
            "no_bids": {reason.name.lower(): count for reason, count in self.no_bids.items()},
        }

    def no_bid(self, request: BidRequest, reason: NoBid) -> BidResponse | None:
        """The response that says why, where the config asks for one; None is an empty answer."""
        self.no_bids[reason] += 1
        return BidResponse(id=request.id, nbr=int(reason)) if self.config.no_bid == "reason" else None


def separators(features: Mapping[str, object]) -> dict[str, str]:
    """Of the raw columns that a model cuts at a separator, by column; `features` are `Transforms.features`."""
    return {f.column: f.separator for f in features.values() if getattr(f, "separator", "")}  # type: ignore[attr-defined]
