"""Who may bid on what: the part of a decision on bids that does not change from request to request with the same terms.

Blocks, sizes, currencies and attributes are the same for most requests of a publisher; what is left to bid with after them is found
once for each. Nothing here knows of time, money spent, floors or predictions.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from ..config.errors import nearest
from .bid_config import BidConfig, CampaignConfig, CreativeConfig
from .bid_mapping import OfferRow, RowMapping
from .openrtb import BANNER_MARKUP, SECOND_PRICE, Auction, Bid, Impression, NoBid

USD = "USD"


class Asked(Struct, gc=False):
    """What of a request is its own, beside its terms (`bid_nodes.OWN`): `imps` are the id and the `bidfloor` of each impression."""

    id: str
    tmax: int | None
    imps: list[tuple[str, float | None]]

    @classmethod
    def of(cls, request: Auction) -> "Asked":
        return cls(request.id, request.tmax, [(imp.id, imp.bidfloor) for imp in request.imp])


class Offer(Struct, gc=False):
    """A creative that fits an impression. `row` is its row among those to be scored."""

    campaign: int
    creative: CreativeConfig
    row: int


class Fit(Struct, gc=False):
    """An impression, by its number in the request, and the creatives that may be shown there, by campaign.

    `offers` and their `rows` are those where every campaign takes part, and no other impression comes before.
    """

    imp: int
    floor_currency: str
    creatives: list[tuple[int, Sequence[CreativeConfig]]]
    offers: list[Offer]
    rows: list[OfferRow]


class Terms(Struct, gc=False):
    """What may be bid on a request. `currency` and `rate` are those of the bids."""

    currency: str
    rate: float
    is_first_price: bool
    mapping: RowMapping
    fits: list[Fit]


class Campaign:
    """A campaign with what can be computed before any request."""

    def __init__(self, config: CampaignConfig, tasks: Sequence[str]) -> None:
        value = config.value
        self.config = config
        self.shading, self.max_cpm = config.shading, config.max_cpm
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


class Rules:
    """Finds the terms of requests.

    Args:
        campaigns: in the config's order.

    Attributes:
        rates: one unit of a currency in the config's.
    """

    def __init__(self, config: BidConfig, campaigns: Sequence[Campaign]) -> None:
        self._config = config
        self._campaigns = list(enumerate(campaigns))
        self.rates = {**config.rates, config.currency: 1.0}

    def terms(self, request: Auction, mapping: RowMapping) -> Terms | NoBid:
        """What may be bid on a request, or why nothing. Its ids, `tmax` and floors do not matter; see `Asked`."""
        currency = self._currency(request.cur)
        if not currency:
            return NoBid.CURRENCY
        if not self._may_sit(request):
            return NoBid.BLOCKED
        allowed = [numbered for numbered in self._campaigns if not numbered[1].is_blocked(request)]
        if not allowed:
            return NoBid.BLOCKED
        fits = []
        for number, imp in enumerate(request.imp):
            creatives = [(i, found) for i, campaign in allowed if (found := campaign.fitting(imp))]
            if creatives:
                rows: list[OfferRow] = []
                offers = self.offers(number, creatives, mapping, rows)
                fits.append(Fit(number, imp.bidfloorcur or USD, creatives, offers, rows))
        if not fits:
            return NoBid.NO_BANNER_THAT_FITS
        return Terms(currency, self.rates[currency], request.at not in (None, SECOND_PRICE), mapping, fits)

    def offers(
        self, imp: int, creatives: list[tuple[int, Sequence[CreativeConfig]]], mapping: RowMapping, rows: list[OfferRow]
    ) -> list[Offer]:
        """The offers of these campaigns for one impression; adds the rows they need, each once."""
        if not mapping.of_offer:
            rows.append(OfferRow(imp, ()))
            return [Offer(i, creative, len(rows) - 1) for i, found in creatives for creative in found]
        seen: dict[tuple, int] = {}
        offers = []
        for i, found in creatives:
            for creative in found:
                values = mapping.offer_values(self._config.campaigns[i], creative)
                row = seen.setdefault(values, len(rows))
                if row == len(rows):
                    rows.append(OfferRow(imp, values))
                offers.append(Offer(i, creative, row))
        return offers

    def floor(self, bidfloor: float, floor_currency: str, terms: Terms) -> float | None:
        """The floor in the bids' currency, exact where it is given in it; None where there is no rate."""
        if floor_currency == terms.currency:
            return bidfloor
        floor_rate = self.rates.get(floor_currency)
        return None if floor_rate is None else bidfloor * floor_rate / terms.rate

    def _currency(self, allowed: list[str] | None) -> str:
        """Ours where the request allows it or says nothing, else the first that has a rate, else ""."""
        if not allowed or self._config.currency in allowed:
            return self._config.currency
        return next((c for c in allowed if c in self.rates), "")

    def _may_sit(self, request: Auction) -> bool:
        seat = self._config.seat
        return not (request.wseat and seat not in request.wseat) and not (request.bseat and seat in request.bseat)


def separators(features: Mapping[str, object]) -> dict[str, str]:
    """Of the raw columns that a model cuts at a separator, by column; `features` are `Transforms.features`."""
    return {f.column: f.separator for f in features.values() if getattr(f, "separator", "")}  # type: ignore[attr-defined]
