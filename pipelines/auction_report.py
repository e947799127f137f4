"""One page on what bids buy: bid against market price, and two bidders with the same money."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from .auctions import Comparison, Day
from .evaluation import charts


@dataclass(frozen=True)
class Replayed:
    """What came of sending requests to a running bidder.

    Attributes:
        prices: [N] CPM; NaN where there was no bid.
        seconds: [N] from request to answer.
        shown: a few (request, bid, market price).
    """

    prices: np.ndarray
    seconds: np.ndarray
    num_wins: int
    num_clicks: int
    spend: float
    shown: list[tuple[dict[str, Any], dict[str, Any], float]]


def write_auction_report(path: Path, *, replayed: Replayed, test: Day, compared: Sequence[Comparison], value: float) -> Path:
    """Write the page, with charts inside and no address of anything outside.

    Args:
        compared: empty for a log with too few clicks; the page then says nothing of clicks.
        value: of a click.
    """
    drawn = [
        (
            f"Every bid is 1000 x {value:.4f} x P(click). Where it is above the market price, it wins and pays that price.",
            charts.market_prices(test.p, test.market, slope=1000 * value, name="prices"),
        )
    ]
    rows: list[tuple[str, ...]] = []
    if compared:
        groups = [f"1/{1 / c.share:.0f}" for c in compared]
        clicks = [[o.num_clicks for o in pair] for pair in zip(*((c.proportional, c.constant) for c in compared))]
        labels = ("bid in proportion to P(click)", "one bid for all")
        drawn.append(
            (
                "Clicks bought with the same money: a share of what all impressions of the day cost.",
                charts.two_by_group(groups, clicks[0], clicks[1], labels, name="clicks"),
            )
        )
        for c in compared:
            for label, o in zip(labels, (c.proportional, c.constant)):
                rows.append((f"{c.budget:,.1f}", label, f"{o.num_wins:,}", str(o.num_clicks), f"{o.spend:,.1f}", f"{o.ecpc:.3f}"))
    num_bids = int((~np.isnan(replayed.prices)).sum())
    facts = (
        f"{len(replayed.prices):,} OpenRTB requests sent to a running server: {num_bids:,} bids, {replayed.num_wins:,} wins "
        f"for {replayed.spend:,.2f}. Charts: the whole test log, {len(test.p):,} impressions."
    )
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "evaluation" / "templates")
    page = jinja2.Environment(autoescape=True, loader=loader, trim_blocks=True).get_template("auctions.html.j2")
    path.write_text(page.render(facts=facts, charts=[(c, Markup(svg)) for c, svg in drawn], rows=rows), encoding="utf-8")
    return path
