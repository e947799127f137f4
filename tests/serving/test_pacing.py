"""Budgets over simulated days, and the outcome of every bid."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from torchrec_models.pipelines.serving.bid_config import BudgetConfig
from torchrec_models.pipelines.serving.pacing import NANOS, DailyBudget, Notices, cumulative_shares

MIDNIGHT = 20_000 * 86_400  # of some day, in UTC


def simulate(
    config: BudgetConfig, *, per_second: float = 1.0, hours: list[float] | None = None, days: int = 1
) -> list[list[float]]:
    """Spend at the end of each hour, day by day, in shares of the budget.

    Traffic is `per_second` auctions on average, spread over the day as `hours` weigh; a bid of 0.01 is won every third time at
    0.005, and the notice comes two seconds later.
    """
    pacer, draw = DailyBudget(config, seed=0), random.Random(1)
    notices = Notices([pacer], ["c"], seconds=600, now=MIDNIGHT)
    weights = hours or [1.0] * 24
    mean = sum(weights) / 24
    due: list[tuple[float, str]] = []
    numbers = itertools.count()
    out = []
    for day in range(days):
        at_hour = []
        for second in range(86_400):
            now = MIDNIGHT + day * 86_400 + second
            while due and due[0][0] <= now:
                notices.win(due.pop(0)[1], 5.0, now)
            notices.expire(now)  # as Bidder.plan does
            rate = per_second * weights[second // 3600] / mean
            for _ in range(int(rate) + (draw.random() < rate % 1)):
                if pacer.joins(now) and pacer.affords(round(0.01 * NANOS), now):
                    bid = str(next(numbers))
                    notices.bid(bid, 0, price=10.0, rate=1.0, now=now)
                    if draw.random() < 1 / 3:
                        due.append((now + 2, bid))
            assert pacer.spent + pacer.reserved <= pacer.budget
            if second % 3600 == 3599:
                at_hour.append(pacer.spent / pacer.budget)
        out.append(at_hour)
    return out


def test_an_even_budget_is_spent_evenly_and_never_exceeded() -> None:
    """All auctions would cost 86,400 / 3 * 0.005 = 144: the budget is a third of that."""
    (spent,) = simulate(BudgetConfig(daily=48.0))
    for hour, share in enumerate(spent[1:], 2):
        assert share == pytest.approx(hour / 24, abs=0.02)
    assert 0.98 < spent[-1] <= 1.0


def test_a_plan_by_hour_follows_the_traffic_it_expects() -> None:
    hours = [1.0] * 8 + [4.0] * 12 + [2.0] * 4
    (spent,) = simulate(BudgetConfig(daily=48.0, hours=hours), hours=hours)
    planned = cumulative_shares(hours)
    for hour, share in enumerate(spent[1:], 2):
        assert share == pytest.approx(planned[hour], abs=0.025)


def test_asap_spends_until_nothing_is_left() -> None:
    """48 at 144 per day: a third of the day, plus reservations that end a little early."""
    (spent,) = simulate(BudgetConfig(daily=48.0, pacing="asap"))
    assert spent[3] == pytest.approx(12 / 24, abs=0.02)  # three times as fast as the plan
    assert 0.9 < spent[7] <= 1.0
    assert spent[-1] > 0.999


def test_a_budget_above_all_traffic_joins_every_auction() -> None:
    (spent,) = simulate(BudgetConfig(daily=288.0))
    assert spent[-1] == pytest.approx(0.5, abs=0.02)


def test_every_day_starts_anew() -> None:
    first, second = simulate(BudgetConfig(daily=20.0), per_second=0.5, days=2)
    assert 0.97 < first[-1] <= 1.0
    assert second[0] < 0.1
    assert 0.97 < second[-1] <= 1.0


def test_the_plan_is_linear_within_an_hour_and_days_start_at_local_midnight() -> None:
    budget = DailyBudget(BudgetConfig(daily=24.0, hours=[2.0] * 12 + [0.0] * 12, utc_offset_minutes=480))
    local_midnight = MIDNIGHT - 8 * 3600
    assert budget.day(local_midnight) == budget.day(local_midnight + 86_399) == budget.day(local_midnight - 1) + 1
    assert budget.planned(local_midnight) == 0
    assert budget.planned(local_midnight + 5400) == pytest.approx(3 * NANOS)
    assert budget.planned(local_midnight + 13 * 3600) == budget.budget


def test_the_rate_moves_by_a_tenth_each_minute() -> None:
    budget = DailyBudget(BudgetConfig(daily=1.0))
    budget.joins(MIDNIGHT + 1)
    assert budget.pass_rate == pytest.approx(0.1)
    for minute in range(1, 4):
        budget.joins(MIDNIGHT + 60 * minute)
        assert budget.pass_rate == pytest.approx(0.1 * 1.1**minute)
    budget.settle(reserved=0, spent=NANOS // 2, now=MIDNIGHT + 200)
    budget.joins(MIDNIGHT + 240)
    assert budget.pass_rate == pytest.approx(0.1 * 1.1**3 * 0.9)


# --- notices ----------------------------------------------------------------------------------------------------------


def make(**options: Any) -> tuple[DailyBudget, Notices]:
    pacer = DailyBudget(BudgetConfig(daily=1.0, pacing="asap"))
    return pacer, Notices([pacer], ["c"], seconds=60, now=MIDNIGHT, **options)


def test_a_win_costs_its_price_once_and_frees_the_rest() -> None:
    pacer, notices = make()
    notices.bid("b", 0, price=8.0, rate=2.0, now=MIDNIGHT)
    assert (pacer.reserved, pacer.spent) == (16_000_000, 0)  # 8 / 1000 at two of ours each
    assert notices.win("b", 3.0, MIDNIGHT + 1)
    assert (pacer.reserved, pacer.spent) == (0, 6_000_000)
    assert not notices.win("b", 3.0, MIDNIGHT + 2)  # sent again
    assert not notices.lose("b", MIDNIGHT + 2)
    assert (pacer.reserved, pacer.spent, notices.num_wins) == (0, 6_000_000, 1)


@pytest.mark.parametrize("price", [-1.0, 8.1, math.nan, math.inf])
def test_a_price_that_cannot_be_is_refused_and_the_bid_stays_open(price: float) -> None:
    pacer, notices = make()
    notices.bid("b", 0, price=8.0, rate=1.0, now=MIDNIGHT)
    with pytest.raises(ValueError, match=r"is not between 0 and the bid's 8\.0"):
        notices.win("b", price, MIDNIGHT + 1)
    assert notices.num_open == 1
    assert pacer.spent == 0


def test_losses_and_silence_free_the_price() -> None:
    pacer, notices = make()
    for bid in "abc":
        notices.bid(bid, 0, price=8.0, rate=1.0, now=MIDNIGHT)
    notices.lose("b", MIDNIGHT + 1)
    assert pacer.reserved == 16_000_000
    notices.expire(MIDNIGHT + 59)
    assert notices.num_open == 2
    notices.expire(MIDNIGHT + 60)
    assert (pacer.reserved, notices.num_open, notices.num_expired, notices.num_losses) == (0, 0, 2, 1)
    with pytest.raises(KeyError, match="no open bid 'a'"):
        notices.win("a", 1.0, MIDNIGHT + 61)


def test_the_hard_limit_counts_bids_that_are_out() -> None:
    pacer, notices = make()
    notices.bid("a", 0, price=600.0, rate=1.0, now=MIDNIGHT)
    assert pacer.affords(400_000_000, MIDNIGHT)
    assert not pacer.affords(400_000_001, MIDNIGHT)


def test_the_journal_outlives_the_process(tmp_path: Path) -> None:
    journal = tmp_path / "new" / "spend.jsonl"
    _, notices = make(journal=journal)
    for bid in "ab":
        notices.bid(bid, 0, price=100.0, rate=1.0, now=MIDNIGHT)
        notices.win(bid, 70.0, MIDNIGHT + 1)
    lines = journal.read_text().splitlines()
    assert [json.loads(line)["nanos"] for line in lines] == [70_000_000] * 2
    journal.write_text("\n".join([*lines, lines[0][:20]]))  # killed while writing a third
    pacer, notices = make(journal=journal)
    assert pacer.spent == 140_000_000
    assert not notices.win("a", 70.0, MIDNIGHT + 2)  # the exchange repeats itself
    assert journal.read_text().splitlines() == lines
    tomorrow = DailyBudget(BudgetConfig(daily=1.0))
    Notices([tomorrow], ["c"], seconds=60, now=MIDNIGHT + 86_400, journal=journal)
    assert tomorrow.spent == 0


def test_a_journal_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spend.jsonl").write_text('{"bid": "a"}\n')
    with pytest.raises(ValueError, match=r"spend\.jsonl, line 1: not a win"):
        make(journal=tmp_path / "spend.jsonl")
