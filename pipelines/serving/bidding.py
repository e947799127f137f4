"""From a bid request to bids: who may bid on what, for how much. No HTTP and no model here.

`plan` says which rows to score, `answer` turns their predictions into a response.
price = shading * min(1000 * amount * P(click) [* P(action | click)], max_cpm), at least the floor, in a currency that is allowed
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..config.errors import ConfigError, nearest
from .bid_config import BidConfig, CampaignConfig, CreativeConfig
from .bid_mapping import OfferRow, RowMapping
from .openrtb import BANNER_MARKUP, SECOND_PRICE, Auction, Bid, BidResponse, Impression, NoBid, SeatBid
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


class Offer(Struct, gc=False):
    """A creative that fits an impression. `row` is its row among those to be scored."""

    campaign: int
    creative: CreativeConfig
    row: int


class Chance(Struct, gc=False):
    """An impression with a floor (CPM in the plan's currency) and all that could be offered for it."""

    imp: Impression
    floor: float
    offers: list[Offer]


class Plan(Struct, gc=False):
    """What is left to do for a request once its rows are scored. `currency` and `rate` are those of the bids."""

    request: Auction
    currency: str
    rate: float
    rows: list[OfferRow]
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
        self._domains = frozenset(at for d in config.advertiser_domains for at in at_and_above(d.lower(), ".", of_the_right=True))
        self._categories = [frozenset(at_and_above(c, "-")) for c in config.categories]
        self._all_categories: frozenset[str] = frozenset().union(*self._categories)
        self.creatives: dict[tuple[int | None, int | None], list[CreativeConfig]] = {}
        for creative in config.creatives:
            self.creatives.setdefault((creative.w, creative.h), []).append(creative)
        self.bids = {creative.id: self._bid(creative) for creative in config.creatives}

    @staticmethod
    def _task(name: str, tasks: Sequence[str], where: str) -> int:
        if not name and len(tasks) == 1:
            return 0
        if name in tasks:
            return tasks.index(name)
        given = repr(name) if name else "nothing"
        raise ValueError(f"{where}: given {given}; the model's tasks: {', '.join(tasks) or 'none'}{nearest(name, tasks)}")

    def _bid(self, creative: CreativeConfig) -> Bid:
        """With all that is the same in each of its bids."""
        config = self.config
        return Bid(
            id="",
            impid="",
            price=0.0,
            cid=config.id,
            crid=creative.id,
            w=creative.w,
            h=creative.h,
            adomain=config.advertiser_domains,
            cat=config.categories,
            cattax=config.cattax if config.cattax != 1 else None,
            attr=creative.attr or None,
            mtype=BANNER_MARKUP,
            adm=creative.adm or None,
            adid=creative.adid or None,
        )

    def value_cpm(self, answers: Sequence[float]) -> float:
        """What a thousand such impressions are worth, in the config's currency."""
        value = 1000 * self.amount * answers[self.click]
        return value if self.action is None else value * answers[self.action]

    def is_blocked(self, request: Auction) -> bool:
        """By advertiser domain or category. Categories of another taxonomy than ours cannot be compared, and block."""
        if request.badv and not self._domains.isdisjoint(map(str.lower, request.badv)):
            return True
        if (request.bcat or request.acat) and (request.cattax or 1) != self.config.cattax:
            return True
        if request.bcat and not self._all_categories.isdisjoint(request.bcat):
            return True
        return bool(request.acat) and any(ours.isdisjoint(request.acat or ()) for ours in self._categories)

    def fitting(self, imp: Impression) -> Sequence[CreativeConfig]:
        """The creatives that may be shown there."""
        banner = imp.banner
        if banner is None or (imp.pmp is not None and imp.pmp.private_auction):  # we have no deals
            return ()
        if banner.format:
            sizes = dict.fromkeys((f.w, f.h) for f in banner.format)
            found: Sequence[CreativeConfig] = [c for size in sizes for c in self.creatives.get(size, ())]
        else:
            found = self.creatives.get((banner.w, banner.h), ())
        if imp.secure:
            found = [c for c in found if c.secure]
        if banner.battr:
            found = [c for c in found if not c.attr or not any(a in banner.battr for a in c.attr)]
        return found


def at_and_above(name: str, separator: str, *, of_the_right: bool = False) -> list[str]:
    """A name and all that it lies below: IAB7-39 and IAB7; with `of_the_right`, www.ford.com, ford.com and com."""
    cuts = [i for i, character in enumerate(name) if character == separator]
    return [name, *(name[i + 1 :] if of_the_right else name[:i] for i in cuts)]


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
        self._numbered = list(enumerate(self.campaigns))
        self.pacers: list[Pacer] = [DailyBudget(c.budget) if c.budget else Unlimited() for c in config.campaigns]
        journal = Path(config.spend_file) if config.spend_file else None
        ids = [c.id for c in config.campaigns]
        self.notices = Notices(self.pacers, ids, seconds=config.notice_seconds, now=now, journal=journal)
        self._notice_url = config.notice_url.rstrip("/")
        self.rates = {**config.rates, config.currency: 1.0}
        self.no_bids: dict[NoBid, int] = dict.fromkeys(NoBid, 0)
        self.num_bids = [0] * len(config.campaigns)
        self._random_ids: list[str] = []

    # --- before scoring

    def plan(self, request: Auction, mapping: RowMapping, now: float) -> Plan | NoBid:
        """Which rows to score, or why there is nothing to bid on."""
        self.notices.expire(now)  # else prices reserved in vain could keep a campaign from ever bidding again
        currency = self._currency(request.cur)
        if not currency:
            return NoBid.CURRENCY
        if not self._may_sit(request):
            return NoBid.BLOCKED
        rate = self.rates[currency]
        allowed = [numbered for numbered in self._numbered if not numbered[1].is_blocked(request)]
        if not allowed:
            return NoBid.BLOCKED
        reason = NoBid.NO_BANNER_THAT_FITS
        rows: list[OfferRow] = []
        chances: list[Chance] = []
        for number, imp in enumerate(request.imp):
            fitting = [(i, creatives) for i, campaign in allowed if (creatives := campaign.fitting(imp))]
            if not fitting:
                continue
            floor = self._floor(imp, currency, rate)
            if floor is None:
                reason = NoBid.CURRENCY
                continue
            joined = [pair for pair in fitting if self.pacers[pair[0]].joins(now)]
            if not joined:
                reason = NoBid.BUDGET
                continue
            chances.append(Chance(imp, floor, self._offers(number, joined, mapping, rows)))
        return Plan(request, currency, rate, rows, chances) if chances else reason

    def _offers(
        self, imp: int, joined: list[tuple[int, Sequence[CreativeConfig]]], mapping: RowMapping, rows: list[OfferRow]
    ) -> list[Offer]:
        """The offers for one impression; adds the rows they need, each once."""
        if not mapping.of_offer:
            rows.append(OfferRow(imp, ()))
            return [Offer(i, creative, len(rows) - 1) for i, creatives in joined for creative in creatives]
        seen: dict[tuple, int] = {}
        offers = []
        for i, creatives in joined:
            for creative in creatives:
                values = mapping.offer_values(self.config.campaigns[i], creative)
                row = seen.setdefault(values, len(rows))
                if row == len(rows):
                    rows.append(OfferRow(imp, values))
                offers.append(Offer(i, creative, row))
        return offers

    def _currency(self, allowed: list[str] | None) -> str:
        """Ours where the request allows it or says nothing, else the first that has a rate, else ""."""
        if not allowed or self.config.currency in allowed:
            return self.config.currency
        return next((c for c in allowed if c in self.rates), "")

    def _may_sit(self, request: Auction) -> bool:
        seat = self.config.seat
        return not (request.wseat and seat not in request.wseat) and not (request.bseat and seat in request.bseat)

    def _floor(self, imp: Impression, currency: str, rate: float) -> float | None:
        """The floor in the bids' currency, exact where it is given in it; None where there is no rate."""
        floor_currency = imp.bidfloorcur or USD
        if not imp.bidfloor or floor_currency == currency:
            return imp.bidfloor or 0.0
        floor_rate = self.rates.get(floor_currency)
        return None if floor_rate is None else imp.bidfloor * floor_rate / rate

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
            if len(ranked) > 1:
                ranked.sort(key=itemgetter(0), reverse=True)  # stable: ties go to what stands first in the config
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

    def _bid(self, imp: Impression, offer: Offer, price: float, plan: Plan, now: float) -> Bid:
        name = self._random_id()
        self.num_bids[offer.campaign] += 1
        bid = replace(self.campaigns[offer.campaign].bids[offer.creative.id], id=name, impid=imp.id, price=price)
        base = self._notice_url
        if base:
            self.notices.bid(name, offer.campaign, price=price, rate=plan.rate, now=now)
            bid.nurl, bid.lurl = f"{base}/win/{name}/${{AUCTION_PRICE}}", f"{base}/loss/{name}/${{AUCTION_LOSS}}"
        return bid

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

    def no_bid(self, request: Auction, reason: NoBid) -> BidResponse | None:
        """The response that says why, where the config asks for one; None is an empty answer."""
        self.no_bids[reason] += 1
        return BidResponse(id=request.id, nbr=int(reason)) if self.config.no_bid == "reason" else None


def separators(features: Mapping[str, object]) -> dict[str, str]:
    """Of the raw columns that a model cuts at a separator, by column; `features` are `Transforms.features`."""
    return {f.column: f.separator for f in features.values() if getattr(f, "separator", "")}  # type: ignore[attr-defined]
