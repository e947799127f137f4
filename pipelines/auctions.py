"""What bids would have won: second-price auctions replayed on a log that knows the market price of every impression.

A bid wins where it is above the market price, and pays that price; this is how bidding on iPinYou is measured (Zhang, Yuan, Wang
and Shen, "Real-time bidding benchmarking with iPinYou", 2014). Prices are CPM, money is CPM / 1000, all in one currency.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What a strategy got for its money. `ecpc` is NaN without clicks."""

    num_wins: int
    num_clicks: int
    spend: float

    @property
    def ecpc(self) -> float:
        return self.spend / self.num_clicks if self.num_clicks else float("nan")


def replay(bids: Floats, market: Floats, clicks: NDArray, *, budget: float = np.inf) -> Outcome:
    """The auctions in order; bidding ends before the first win that the budget does not cover.

    Args:
        bids, market: [N] CPM.
        clicks: [N] 0 or 1.
    """
    wins = np.flatnonzero(bids > market)
    spent = np.cumsum(market[wins]) / 1000
    num_wins = int(np.searchsorted(spent, budget * (1 + 1e-12), side="right"))
    wins = wins[:num_wins]
    return Outcome(num_wins, int(clicks[wins].sum()), float(spent[num_wins - 1]) if num_wins else 0.0)


def scale_to_spend(strategy: Callable[[float], Floats], market: Floats, budget: float, *, high: float) -> float:
    """The parameter in (0, high] at which a strategy, never stopped, spends the budget: by bisection, since spend grows with it."""
    low = 0.0
    for _ in range(50):
        middle = (low + high) / 2
        spend = market[strategy(middle) > market].sum() / 1000
        low, high = (middle, high) if spend < budget else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Comparison:
    """Two strategies with the same money: a bid in proportion to P(click), and one bid for everything.

    Attributes:
        share: of what buying every impression of the test log would cost.
        budget: that share, in money.
    """

    share: float
    budget: float
    proportional: Outcome
    constant: Outcome


@dataclass(frozen=True)
class Day:
    """One day of the log: P(click) by the model, market prices, clicks. [N] each."""

    p: Floats
    market: Floats
    clicks: NDArray


def compare(tuning: Day, test: Day, *, shares: tuple[float, ...] = (1 / 2, 1 / 4, 1 / 8, 1 / 16)) -> list[Comparison]:
    """Each strategy's one parameter is set on one day, so that it spends the share of that day's cost, and used on another day."""
    out = []
    for share in shares:
        goal = share * tuning.market.sum() / 1000
        top = float(tuning.market.max())
        scale = scale_to_spend(lambda s: s * tuning.p, tuning.market, goal, high=top / float(tuning.p.min()) + 1)
        constant = scale_to_spend(lambda s: np.full(len(tuning.p), s), tuning.market, goal, high=top + 1)
        budget = share * test.market.sum() / 1000
        out.append(
            Comparison(
                share,
                budget,
                replay(scale * test.p, test.market, test.clicks, budget=budget),
                replay(np.full(len(test.p), constant), test.market, test.clicks, budget=budget),
            )
        )
    return out
