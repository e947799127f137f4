"""From a bid request to bids: who may bid on what, for how much. No HTTP and no model here.

`terms` says what may be bid on a request like this (bid_terms.py), `plan` which rows to score for it now, `answer` turns their
predictions into a response.
price = shading * min(1000 * amount * P(click) [* P(action | click)], max_cpm), at least the floor, in a currency that is allowed
"""

import math
import secrets
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..config.errors import ConfigError
from .bid_config import BidConfig
from .bid_mapping import OfferRow, RowMapping
from .bid_terms import Asked, Campaign, Offer, Rules, Terms
from .openrtb import Auction, Bid, BidResponse, NoBid, SeatBid
from .pacing import CPM_NANOS, NANOS, DailyBudget, Notices, Pacer, Unlimited

_ID_BYTES = 8
_IDS_DRAWN = 256
_NOTICES = {"win": "wins", "loss": "losses", "none": "without_notice"}

PRICE_DECIMALS = 4


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


class Chance(Struct, gc=False):
    """An impression, by its id, with a floor (CPM in the bids' currency) and all that could be offered for it."""

    imp: str
    floor: float
    offers: list[Offer]


class Plan(Struct, gc=False):
    """What is left to do for a request, by its id, once its rows are scored."""

    id: str
    terms: Terms
    rows: list[OfferRow]
    chances: list[Chance]


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
        self.campaigns: list[Campaign] = []
        problems = []
        for campaign in config.campaigns:
            try:
                self.campaigns.append(Campaign(campaign, tasks))
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("bid config", problems)
        self._rules = Rules(config, self.campaigns)
        self.pacers: list[Pacer] = [DailyBudget(c.budget) if c.budget else Unlimited() for c in config.campaigns]
        journal = Path(config.spend_file) if config.spend_file else None
        ids = [c.id for c in config.campaigns]
        self.notices = Notices(self.pacers, ids, seconds=config.notice_seconds, now=now, journal=journal)
        self._seat = config.seat or None
        self._notice_url = config.notice_url.rstrip("/")
        self.no_bids: dict[NoBid, int] = dict.fromkeys(NoBid, 0)
        self.num_bids = [0] * len(config.campaigns)
        self._random_ids: list[str] = []

    # --- before scoring

    def terms(self, request: Auction, mapping: RowMapping) -> Terms | NoBid:
        """See `Rules.terms`."""
        return self._rules.terms(request, mapping)

    def plan(self, asked: Asked, terms: Terms | NoBid, now: float) -> Plan | NoBid:
        """Which rows to score, or why there is nothing to bid on.

        Args:
            terms: of the request, or of another one that differs in what `asked` says alone.
        """
        self.notices.expire(now)  # else prices reserved in vain could keep a campaign from ever bidding again
        if isinstance(terms, NoBid):
            return terms
        reason = NoBid.BUDGET
        pacers, is_alone = self.pacers, len(terms.fits) == 1
        rows: list[OfferRow] = []
        chances: list[Chance] = []
        for fit in terms.fits:
            name, bidfloor = asked.imps[fit.imp]
            floor = self._rules.floor(bidfloor, fit.floor_currency, terms) if bidfloor else 0.0
            if floor is None:
                reason = NoBid.CURRENCY
                continue
            joined = [pair for pair in fit.creatives if pacers[pair[0]].joins(now)]
            if is_alone and len(joined) == len(fit.creatives):
                return Plan(asked.id, terms, fit.rows, [Chance(name, floor, fit.offers)])
            if not joined:
                reason = NoBid.BUDGET
                continue
            chances.append(Chance(name, floor, self._rules.offers(fit.imp, joined, terms.mapping, rows)))
        return Plan(asked.id, terms, rows, chances) if chances else reason

    # --- after scoring

    def answer(self, plan: Plan, answers: Sequence[Sequence[float]], now: float) -> BidResponse | NoBid:
        """The best offer for each impression, or why there is none.

        Args:
            answers: of the model, [N][T] for the N rows of the plan.
        """
        bids: list[Bid] = []
        reason = NoBid.BELOW_FLOOR
        campaigns, terms = self.campaigns, plan.terms
        rate = terms.rate
        for chance in plan.chances:
            ranked = []
            for offer in chance.offers:
                campaign = campaigns[offer.campaign]
                price = bid_price(
                    campaign.value_cpm(answers[offer.row]) / rate,
                    floor=chance.floor,
                    first_price=terms.is_first_price,
                    shading=campaign.shading,
                    max_cpm=campaign.max_cpm / rate if campaign.max_cpm else None,
                )
                if price is not None:
                    ranked.append((price, offer))
            if len(ranked) > 1:
                ranked.sort(key=itemgetter(0), reverse=True)  # stable: ties go to what stands first in the config
            for price, offer in ranked:
                if self.pacers[offer.campaign].affords(math.ceil(price * rate * CPM_NANOS), now):
                    bids.append(self._bid(chance.imp, offer, price, rate, now))
                    break
            else:
                reason = NoBid.BUDGET if ranked else reason
        if not bids:
            return reason
        return BidResponse(id=plan.id, seatbid=[SeatBid(bid=bids, seat=self._seat)], cur=terms.currency)

    def _bid(self, imp: str, offer: Offer, price: float, rate: float, now: float) -> Bid:
        name = self._random_id()
        self.num_bids[offer.campaign] += 1
        template = self.campaigns[offer.campaign].bids[offer.creative.id]
        bid: Bid = template.__copy__()  # type: ignore[attr-defined]  # msgspec's; copy.copy takes three times as long
        bid.id, bid.impid, bid.price = name, imp, price
        base = self._notice_url
        if base:
            self.notices.bid(name, offer.campaign, price=price, rate=rate, now=now)
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

    def no_bid(self, request_id: str, reason: NoBid) -> BidResponse | None:
        """The response that says why, where the config asks for one; None is an empty answer."""
        self.no_bids[reason] += 1
        return BidResponse(id=request_id, nbr=int(reason)) if self.config.no_bid == "reason" else None
