"""Replayed auctions against closed forms, the generated log against what it says of itself, and the demo with a real server."""

import json
from pathlib import Path

import numpy as np
import pyarrow.csv as csv
import pytest
from sklearn.metrics import roc_auc_score

from torchrec_models.pipelines import demo_bid as demo
from torchrec_models.pipelines.auctions import Day, compare, replay, scale_to_spend
from torchrec_models.pipelines.data.auctions import COLUMNS, MAX_BID, auction_log, write_log
from torchrec_models.pipelines.serving.openrtb import decode_request


def test_a_win_pays_the_market_price_and_stops_before_the_budget() -> None:
    market = np.array([1.0, 2.0, 3.0, 4.0, 1.0])
    clicks = np.array([1, 0, 1, 1, 1])
    outcome = replay(np.array([2.0, 2.0, 5.0, 3.0, 9.0]), market, clicks)
    assert (outcome.num_wins, outcome.num_clicks, outcome.spend) == (3, 3, pytest.approx(0.005))  # an equal bid does not win
    assert outcome.ecpc == pytest.approx(0.005 / 3)
    outcome = replay(np.full(5, 9.0), market, clicks, budget=0.006)
    assert (outcome.num_wins, outcome.num_clicks, outcome.spend) == (3, 2, pytest.approx(0.006))
    assert np.isnan(replay(np.zeros(5), market, clicks).ecpc)


def test_spend_against_uniform_prices_is_half_the_squared_bid() -> None:
    """Prices uniform on [0, 1]: a constant bid b wins a share b at a mean price b / 2."""
    market = (np.arange(100_000) + 0.5) / 100_000
    for b in (0.2, 0.5, 0.9):
        assert replay(np.full(len(market), b), market, market).spend == pytest.approx(100 * b**2 / 2, rel=1e-4)
    found = scale_to_spend(lambda s: np.full(len(market), s), market, 100 * 0.3**2 / 2, high=2.0)
    assert found == pytest.approx(0.3, abs=1e-4)


def test_bidding_by_probability_buys_more_clicks_for_the_same_money() -> None:
    """P(click) is p or 9 p, equally often, and prices know nothing of it: half of the money buys nearly all clicks."""
    random = np.random.default_rng(0)

    def day() -> Day:
        p = random.choice([0.01, 0.09], 200_000)
        return Day(p=p, market=random.uniform(0, 1, len(p)), clicks=(random.random(len(p)) < p).astype(float))

    for c in compare(day(), day(), shares=(0.5, 0.25)):
        assert c.proportional.spend <= c.budget * (1 + 1e-9)
        assert c.constant.spend == pytest.approx(c.budget, rel=0.02)
        # constant: b^2 / 2 = share / 2, so a share b = sqrt(share) of all clicks
        assert c.constant.num_clicks == pytest.approx(200_000 * 0.05 * np.sqrt(c.share), rel=0.05)
        # proportional: 9 s on one half, s on the other, cut at 1, with the same spend
        s = _scale(c.share)
        expected = 100_000 * (0.09 * min(9 * s, 1) + 0.01 * min(s, 1))
        assert c.proportional.num_clicks == pytest.approx(expected, rel=0.05)
        assert c.proportional.num_clicks > c.constant.num_clicks * 1.2


def _scale(share: float) -> float:
    """s with min(9 s, 1)^2 / 4 + min(s, 1)^2 / 4 = share / 2."""
    grid = np.linspace(0, 1, 1_000_001)
    return float(grid[np.searchsorted(np.minimum(9 * grid, 1) ** 2 / 4 + grid**2 / 4, share / 2)])


def test_the_generated_log_is_what_it_says(tmp_path: Path) -> None:
    log = auction_log(60_000, num_days=3, seed=1)
    assert tuple(log.table.column_names) == COLUMNS
    clicks = log.table["click"].to_numpy()
    assert log.probability.mean() == pytest.approx(0.01, rel=1e-6)
    assert clicks.sum() == pytest.approx(log.probability.sum(), abs=4 * np.sqrt(log.probability.sum()))
    assert roc_auc_score(clicks, log.probability) > 0.7
    price, floor = log.table["payprice"].to_numpy(), log.table["slotprice"].to_numpy()
    assert ((price >= np.maximum(floor, 1)) & (price <= MAX_BID)).all()
    first = log.table.slice(0, 1).to_pylist()[0]
    assert first["timestamp"].startswith("20131019")
    assert first["weekday"] == 6  # a Saturday; Sunday is 0, as in iPinYou's logs
    assert log.table.equals(auction_log(60_000, num_days=3, seed=1).table)
    write_log(log.table.slice(0, 100), tmp_path / "log.txt")
    read = csv.read_csv(
        tmp_path / "log.txt",
        read_options=csv.ReadOptions(column_names=list(COLUMNS)),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
    )
    assert read["payprice"].to_pylist() == log.table["payprice"].slice(0, 100).to_pylist()


def test_a_line_becomes_a_request() -> None:
    row = {k: None if v is None else str(v) for k, v in auction_log(10, seed=2).table.slice(3, 1).to_pylist()[0].items()}
    request = decode_request(json.dumps(demo.bid_request(row)).encode())
    assert request.imp[0].banner and request.imp[0].banner.w == int(row["slotwidth"] or 0)
    assert request.imp[0].bidfloor == int(row["slotprice"] or 0) / 100
    assert request.ext == {"adexchange": row["adexchange"], "timestamp": row["timestamp"]}


def test_the_demo_bids_what_its_bundle_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    demo.demo_bid(num_requests=200, num_rows=12_000)
    said = capsys.readouterr().out
    assert "200 OpenRTB requests to POST /bid" in said
    (line,) = [one for one in said.splitlines() if "of the bundle: at most" in one]
    assert float(line.split()[-1]) <= 1.01e-4  # the price's four decimals
    assert "click on valid (fitted on it)" in said
    page = (tmp_path / "runs" / "demo_bid" / "generated" / "report.html").read_text()
    assert page.count("<svg") in (1, 2)
    assert "http://" not in page and "https://" not in page
    assert "trm serve runs/demo_bid/generated/bundle --bid runs/demo_bid/generated/bid.yaml" in said


SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "ipinyou_2259_sample"


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"the iPinYou sample is not at {SAMPLE}")
def test_the_real_sample_has_too_few_clicks_and_the_demo_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    demo.demo_bid(data_dir=SAMPLE, num_requests=200)
    said = capsys.readouterr().out
    assert "too few to say what the model is worth; no AUC, no cost per click" in said
    assert "AUC 0" not in said


def test_a_folder_without_logs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing: .*train\.log\.txt.*test\.log\.txt"):
        demo.demo_bid(data_dir=tmp_path)
