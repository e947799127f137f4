"""What a campaign may still spend today, and how fast. Money is counted in whole nanos: 1e-9 of the currency, 1e-6 of a CPM.

Time is an argument everywhere (Unix seconds), so that a day can be simulated.
"""

import json
import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .bid_config import HOURS_PER_DAY, BudgetConfig

NANOS = 1_000_000_000
CPM_NANOS = NANOS // 1000  # of one impression at a CPM of 1
_DAY_SECONDS = 86_400
_HOUR_SECONDS = 3_600


class Pacer(Protocol):
    """The hook: decides whether a campaign takes part in an auction, and is told what it won."""

    def joins(self, now: float) -> bool:
        """Whether to take part; asked once per impression that the campaign could bid on."""
        ...

    def affords(self, nanos: int, now: float) -> bool:
        """Whether a bid of this price may go out."""
        ...

    def reserve(self, nanos: int, now: float) -> None:
        """A bid went out."""
        ...

    def settle(self, *, reserved: int, spent: int, now: float) -> None:
        """A bid's outcome is known, or will never be: `spent` is 0 for a loss."""
        ...


class Unlimited:
    """The pacer of a campaign without a budget."""

    def joins(self, now: float) -> bool:
        return True

    def affords(self, nanos: int, now: float) -> bool:
        return True

    def reserve(self, nanos: int, now: float) -> None:
        pass

    def settle(self, *, reserved: int, spent: int, now: float) -> None:
        pass


class DailyBudget:
    """A budget per day, spent along a plan by probabilistic throttling.

    Every minute the share of auctions that the campaign joins (the pass-through rate) grows by 10 % if less was spent than planned
    until now, and shrinks by 10 % if more: Agarwal, Ghosh, Wei and You, "Budget pacing for targeted online advertisements at
    LinkedIn", KDD 2014. The plan is the budget times the share of the day's traffic expected until now (`hours`). Besides, what is
    spent, what bids still out may cost, and the new bid never exceed the budget together.

    Attributes:
        spent, reserved: nanos of today's wins, and of bids whose outcome is not known.
        pass_rate: share of auctions joined, 0.001 to 1.
    """

    STEP, PERIOD_SECONDS = 0.1, 60
    FIRST_RATE, LEAST_RATE = 0.1, 0.001

    def __init__(self, config: BudgetConfig, *, seed: int | None = None) -> None:
        self.budget = round(config.daily * NANOS)
        self.is_even = config.pacing == "even"
        self.spent = 0
        self.reserved = 0
        self.pass_rate = self.FIRST_RATE if self.is_even else 1.0
        self._offset = config.utc_offset_minutes * 60
        self._planned = cumulative_shares(config.hours)
        self._random = random.Random(seed).random
        self._day = -1
        self._period = -1

    def day(self, now: float) -> int:
        """The number of the day, from midnight to midnight in the campaign's time."""
        return int((now + self._offset) // _DAY_SECONDS)

    def planned(self, now: float) -> float:
        """Nanos that should be spent by now."""
        hours = (now + self._offset) % _DAY_SECONDS / _HOUR_SECONDS
        hour = int(hours)
        before, after = self._planned[hour], self._planned[hour + 1]
        return self.budget * (before + (after - before) * (hours - hour))

    def _advance(self, now: float) -> None:
        period = int(now // self.PERIOD_SECONDS)
        if period == self._period:
            return
        day = self.day(now)
        if day != self._day:
            self._day = day
            self.spent = 0
        elif self.is_even and period > self._period:
            factor = 1 + self.STEP if self.spent < self.planned(now) else 1 - self.STEP
            self.pass_rate = min(max(self.pass_rate * factor, self.LEAST_RATE), 1.0)
        self._period = period

    def joins(self, now: float) -> bool:
        self._advance(now)
        return self.spent + self.reserved < self.budget and (self.pass_rate == 1.0 or self._random() < self.pass_rate)

    def affords(self, nanos: int, now: float) -> bool:
        self._advance(now)
        return self.spent + self.reserved + nanos <= self.budget

    def reserve(self, nanos: int, now: float) -> None:
        self.reserved += nanos

    def settle(self, *, reserved: int, spent: int, now: float) -> None:
        self._advance(now)
        self.reserved -= reserved
        self.spent += spent


def cumulative_shares(hours: Sequence[float]) -> list[float]:
    """[25]: the share of a day's traffic before each hour, and 1 at the end; evenly for no weights."""
    weights = list(hours) or [1.0] * HOURS_PER_DAY
    total = sum(weights)
    return [sum(weights[:i]) / total for i in range(HOURS_PER_DAY)] + [1.0]


# --- what was won -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """A bid whose outcome is not known."""

    campaign: int
    nanos: int
    price: float
    rate: float
    expires: float


class Notices:
    """Open bids and their outcomes: each is settled once, by a win, a loss, or `seconds` without word (taken as a loss).

    Args:
        pacers: by campaign number.
        campaign_ids: their names in the journal.
        seconds: how long a price stays reserved.
        journal: a file that every win is appended to before it is acknowledged; what it says of today is spent already.

    Raises:
        ValueError: if the journal cannot be read.
    """

    def __init__(
        self,
        pacers: Sequence[Pacer],
        campaign_ids: Sequence[str],
        *,
        seconds: float,
        now: float,
        journal: Path | None = None,
    ) -> None:
        self.pacers = pacers
        self.num_wins = self.num_losses = self.num_expired = 0
        self._ids = list(campaign_ids)
        self._seconds = seconds
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._settled: OrderedDict[str, float] = OrderedDict()  # bid -> when it may be forgotten
        self._journal = None
        if journal:
            self._replay(journal, now)
            self._journal = journal.open("a", encoding="utf-8")

    @property
    def num_open(self) -> int:
        return len(self._open)

    def bid(self, bid: str, campaign: int, *, price: float, rate: float, now: float) -> None:
        """A bid goes out.

        Args:
            price: CPM in the bid's currency.
            rate: one unit of that currency in the config's.
        """
        nanos = math.ceil(price * rate * CPM_NANOS)
        self._open[bid] = _Open(campaign, nanos, price, rate, now + self._seconds)
        self.pacers[campaign].reserve(nanos, now)

    def win(self, bid: str, price: float, now: float) -> bool:
        """A bid won at a price (CPM in the bid's currency). Whether this is news: exchanges send notices again.

        Raises:
            KeyError: for a bid that is not open.
            ValueError: for a price that is none or above the bid's.
        """
        self.expire(now)
        if bid in self._settled:
            return False
        found = self._known(bid)
        if not 0 <= price <= found.price * (1 + 1e-9):
            raise ValueError(f"price {price!r} is not between 0 and the bid's {found.price!r}")
        spent = math.ceil(price * found.rate * CPM_NANOS)
        if self._journal:
            line = {"time": now, "bid": bid, "campaign": self._ids[found.campaign], "nanos": spent}
            self._journal.write(json.dumps(line) + "\n")
            self._journal.flush()  # to the kernel: outlives this process; an fsync would stop the event loop for milliseconds
        self._settle(bid, spent, now)
        self.num_wins += 1
        return True

    def lose(self, bid: str, now: float) -> bool:
        """A bid lost. Whether this is news.

        Raises:
            KeyError: for a bid that is not open.
        """
        self.expire(now)
        if bid in self._settled:
            return False
        self._known(bid)
        self._settle(bid, 0, now)
        self.num_losses += 1
        return True

    def expire(self, now: float) -> None:
        """Give back what is reserved for bids that nobody told of in time."""
        while self._open and (first := next(iter(self._open.items())))[1].expires <= now:
            self._open.pop(first[0])
            self.pacers[first[1].campaign].settle(reserved=first[1].nanos, spent=0, now=now)
            self.num_expired += 1
        while self._settled and next(iter(self._settled.values())) <= now:
            self._settled.popitem(last=False)

    def _known(self, bid: str) -> _Open:
        if bid not in self._open:
            raise KeyError(f"no open bid {bid[:80]!r}: never made, made by another process, or older than {self._seconds:g} s")
        return self._open[bid]

    def _settle(self, bid: str, spent: int, now: float) -> None:
        found = self._open.pop(bid)
        self.pacers[found.campaign].settle(reserved=found.nanos, spent=spent, now=now)
        self._settled[bid] = now + self._seconds

    def _replay(self, journal: Path, now: float) -> None:
        if not journal.exists():
            journal.parent.mkdir(parents=True, exist_ok=True)
            return
        lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # cut off in the middle: its win was not acknowledged, and the exchange sends it again
            journal.write_text("".join(lines), encoding="utf-8")
        for number, line in enumerate(lines, 1):
            try:
                win = json.loads(line)
                campaign, nanos, time = win["campaign"], int(win["nanos"]), float(win["time"])
                self._settled[win["bid"]] = time + self._seconds
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{journal}, line {number}: not a win; move the file away, or mend it") from None
            pacer = self.pacers[self._ids.index(campaign)] if campaign in self._ids else None
            if isinstance(pacer, DailyBudget) and pacer.day(time) == pacer.day(now):
                pacer.settle(reserved=0, spent=nanos, now=now)
