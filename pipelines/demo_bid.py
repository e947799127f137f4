"""`trm demo-bid`: a log of auctions to a running bidder: prepare, train, evaluate, export, serve, and bid on the log's last day.

Without a log of your own, one is generated in iPinYou's format.
"""

import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_models import Bundle

from .auction_report import Replayed, write_auction_report
from .auctions import Comparison, Day, compare
from .calibrate import calibrate_run
from .config import QueryConfig, RunConfig, load, write_yaml
from .config.text import read_yaml
from .data.auctions import auction_log, write_log
from .data.prepare import prepare
from .data.sources import open_source
from .evaluation.run import evaluate_run
from .export.run import export_run
from .train import train

FOLDER = Path("runs/demo_bid")
DATA = Path("data/auctions")
SPLITS = {"train": range(5), "valid": range(5, 6), "test": range(6, 7)}  # days of the generated log
NUM_ROWS, NUM_DAYS = 260_000, 7
FEW_CLICKS = 50  # fewer say nothing about a model
FEN = 100
_READY = re.compile(r"serving .* on (http://[\d.]+:\d+)")


def demo_bid(*, data_dir: Path | None = None, num_requests: int = 10_000, num_rows: int = NUM_ROWS) -> None:
    """The whole road, and what came of it. What is done already is not done again.

    Args:
        data_dir: a folder with train.log.txt and test.log.txt of iPinYou (season 2 or 3); default: a generated log.
        num_requests: bid requests to send, the first of the test log.
        num_rows: of the generated log.

    Raises:
        ValueError: files that are missing, or a server that does not start.
    """
    folder = FOLDER / (data_dir.name if data_dir else "generated")
    config = _config(data_dir, folder, num_rows=num_rows)
    prepare(config)
    result = train(config)
    evaluate_run(result.run, split="test")
    bundle_folder = folder / "bundle"
    if config.data.valid:  # else there are no rows to fit a calibration on that are not the test's
        print(calibrate_run(result.run))
    export_run(result.run, out=bundle_folder, overwrite=True)
    bundle = Bundle(bundle_folder)
    tuning, test = (_table(config, paths) for paths in (config.data.valid or config.data.train, config.data.test))
    days = [_day(bundle, table) for table in (tuning, test)]
    # what one click cost in the log is what a click is taken to be worth, as in Zhang et al. 2014
    clicks = int(days[0].clicks.sum())
    value = round(float(days[0].market.sum() / 1000 / clicks), 6) if clicks else 0.2
    bid_yaml = write_bid_config(folder / "bid.yaml", value=value, table=test)
    asked = test.slice(0, num_requests)
    with serving(bundle_folder, bid_yaml, log=folder / "serve.log") as address:
        replayed = send(address, asked)
    expected = 1000 * value * days[1].p[: asked.num_rows]
    compared = compare(*days) if min(d.clicks.sum() for d in days) >= FEW_CLICKS else []
    report = write_auction_report(folder / "report.html", replayed=replayed, test=days[1], compared=compared, value=value)
    print(summary(config, replayed, expected, days[1], compared, value=value, report=report, bundle=bundle_folder, bid=bid_yaml))


def _config(data_dir: Path | None, folder: Path, *, num_rows: int) -> RunConfig:
    overrides = [f"run={folder / 'model'}", f"data.cache={folder / 'cache'}"]
    if data_dir:
        missing = [str(p) for p in (data_dir / "train.log.txt", data_dir / "test.log.txt") if not p.is_file()]
        if missing:
            raise ValueError(f"missing: {', '.join(missing)}; give the folder of one iPinYou campaign")
        overrides += [f"data.train={data_dir / 'train.log.txt'}", f"data.test={data_dir / 'test.log.txt'}"]
    else:
        data = DATA / f"{num_rows}"
        generate(data, num_rows)
        overrides += [f"data.{name}={data / f'{name}.log.txt'}" for name in SPLITS]
        overrides += ["train.epochs=2", "train.early_stopping={metric: log_loss, patience: 1}"]
    return load(_shipped("deepfm.yaml"), overrides)


def _shipped(name: str) -> Path:
    """configs/ipinyou/NAME of the checkout one stands in, else the installed one."""
    here = Path("configs/ipinyou") / name
    return here if here.exists() else Path(str(files("torchrec_models.configs"))) / "ipinyou" / name


def generate(folder: Path, num_rows: int) -> None:
    """Write train.log.txt, valid.log.txt and test.log.txt: five days, one, one."""
    if (folder / "test.log.txt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    table = auction_log(num_rows, num_days=NUM_DAYS).table
    day = pc.utf8_slice_codeunits(table["timestamp"], 6, 8).cast(pa.int32())
    first = pc.min(day).as_py()
    for name, days in SPLITS.items():
        part = table.filter(pc.is_in(day, value_set=pa.array([first + d for d in days], pa.int32())))
        partial = folder / f"{name}.partial"
        write_log(part, partial)
        partial.rename(folder / f"{name}.log.txt")


def _table(config: RunConfig, paths: list[str] | QueryConfig) -> pa.Table:
    """All columns of a log as text, as they stand in the file."""
    return pa.Table.from_batches([p.batch for p in open_source(config, paths, columns=config.data.column_names).batches()])


def _day(bundle: Bundle, table: pa.Table) -> Day:
    def numbers(name: str) -> np.ndarray:
        return table[name].cast(pa.float64()).to_numpy()

    return Day(p=bundle.predict(table)[:, 0].astype(np.float64), market=numbers("payprice") / FEN, clicks=numbers("click"))


def write_bid_config(path: Path, *, value: float, table: pa.Table) -> Path:
    """configs/ipinyou/bid.yaml with this value of a click and these creatives; no budget: the replay takes seconds, not a day."""
    problems: list[str] = []
    raw = read_yaml(_shipped("bid.yaml").read_text(), problems)
    assert not problems, problems
    (campaign,) = raw["campaigns"]
    seen = table.select(["creative", "slotwidth", "slotheight"]).group_by(["creative", "slotwidth", "slotheight"]).aggregate([])
    campaign["creatives"] = [
        {"id": str(c["creative"]), "w": int(c["slotwidth"]), "h": int(c["slotheight"])} for c in seen.to_pylist()
    ]
    campaign["creatives"] = list({c["id"]: c for c in campaign["creatives"]}.values())
    campaign["value"]["amount"] = value
    for key in ("budget", "max_cpm"):
        campaign.pop(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(write_yaml(raw))
    return path


@contextmanager
def serving(bundle: Path, bid_yaml: Path, *, log: Path) -> Iterator[str]:
    """A real `trm serve --bid` in a process of its own; its address."""
    command = [sys.executable, "-m", "torchrec_models.pipelines.cli", "serve", str(bundle), "--bid", str(bid_yaml), "--port", "0"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while not (found := _READY.search(log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"trm serve did not start; {log} says:\n{log.read_text()}")
            time.sleep(0.05)
        yield found[1]
    finally:
        process.terminate()
        process.wait(timeout=30)


def bid_request(row: dict[str, Any]) -> dict[str, Any]:
    """One line of an iPinYou log as an OpenRTB 2.6 request; what the standard has no field for goes to ext."""
    tags = [t for t in (row["usertag"] or "").split(",") if t]
    floor = int(row["slotprice"] or 0)
    imp = {
        "id": "1",
        "tagid": row["slotid"],
        "banner": {"w": int(row["slotwidth"]), "h": int(row["slotheight"])},
        "bidfloor": floor / FEN,
        "bidfloorcur": "CNY",
        "ext": {"slotvisibility": row["slotvisibility"], "slotprice": floor},
    }
    return {
        "id": row["bidid"],
        "imp": [imp],
        "site": {"domain": row["domain"], "page": row["url"]},
        "device": {"ua": row["useragent"], "ip": row["IP"], "geo": {"region": row["region"], "city": row["city"]}},
        "user": {"id": row["ipinyouid"], "data": [{"id": "ipinyou", "segment": [{"id": t} for t in tags]}]},
        "at": 2,
        "tmax": 100,
        "cur": ["CNY"],
        "ext": {"adexchange": row["adexchange"], "timestamp": row["timestamp"]},
    }


def send(address: str, table: pa.Table) -> Replayed:
    """The exchange's part: each line becomes a request; a bid above the line's market price wins, and the bidder is told."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    prices, seconds = np.full(table.num_rows, np.nan), np.zeros(table.num_rows)
    shown: list[tuple[dict[str, Any], dict[str, Any], float]] = []
    wins = clicks = 0
    spend = 0.0
    for i, row in enumerate(table.to_pylist()):
        body = json.dumps(bid_request(row)).encode()
        start = time.perf_counter()
        connection.request("POST", "/bid", body, {"content-type": "application/json", "x-openrtb-version": "2.6"})
        response = connection.getresponse()
        answer = response.read()
        seconds[i] = time.perf_counter() - start
        if response.status not in (200, 204):
            raise ValueError(f"the server refused request {i + 1} with {response.status}: {answer.decode()}")
        if response.status == 204:
            continue
        bid = json.loads(answer)["seatbid"][0]["bid"][0]
        prices[i] = bid["price"]
        market = float(row["payprice"]) / FEN
        won = bid["price"] > market
        notice = bid["nurl"].replace("${AUCTION_PRICE}", str(market)) if won else bid["lurl"].replace("${AUCTION_LOSS}", "102")
        connection.request("GET", urlsplit(notice).path)
        noticed = connection.getresponse()
        noticed.read()
        assert noticed.status == 204, noticed.status
        if won:
            wins, clicks, spend = wins + 1, clicks + int(row["click"]), spend + market / 1000
        if len(shown) < 3:
            shown.append((json.loads(body), bid, market))
    connection.close()
    return Replayed(prices=prices, seconds=seconds, num_wins=wins, num_clicks=clicks, spend=spend, shown=shown)


def summary(
    config: RunConfig,
    replayed: Replayed,
    expected: np.ndarray,
    test: Day,
    compared: list[Comparison],
    *,
    value: float,
    report: Path,
    bundle: Path,
    bid: Path,
) -> str:
    """The short result, and what to do next."""
    has_bid = ~np.isnan(replayed.prices)
    lines = ["", f"{len(replayed.prices):,} OpenRTB requests to POST /bid; three of them:"]
    for request, answer, market in replayed.shown:
        place = f"{request['site']['domain'][-6:]} {answer['w']}x{answer['h']}"
        lines.append(
            f"  {place:15} P(click) {answer['price'] / 1000 / value:.5f}   bid {answer['price']:.4f} CPM   market {market:.2f}"
        )
    worst = float(np.abs(replayed.prices - expected)[has_bid].max()) if has_bid.any() else 0.0
    lines += [
        f"  {has_bid.sum():,} bids, {replayed.num_wins:,} won for {replayed.spend:,.2f} yuan, {replayed.num_clicks} clicks; "
        f"price - 1000 x {value:.4f} x P(click) of the bundle: at most {worst:.1g}",
        f"  median round trip {np.median(replayed.seconds) * 1000:.2f} ms (one connection, this machine as it is)",
    ]
    num_clicks = int(test.clicks.sum())
    if not compared:
        lines.append(
            f"\n{num_clicks} clicks in the test log: too few to say what the model is worth; no AUC, no cost per click here."
        )
    else:
        metrics = json.loads((Path(config.run) / "evaluation" / "test" / "metrics.json").read_text())["tasks"]["click"]["metrics"]
        auc = m["value"] if isinstance(m := metrics["auc"], dict) else m
        ratio = test.p.sum() / num_clicks
        lines += [
            f"\nTest day: {len(test.p):,} impressions, {num_clicks} clicks, AUC {auc:.4f}, predicted / actual clicks {ratio:.3f}",
            "The same money spent by two bidders (second price, simulated on the market prices of the log):",
            f"  {'budget':>12}   {'bid = s x P(click)':>32}   {'one bid for all':>32}",
            f"  {'':>12} " + f"  {'wins':>9} {'clicks':>7} {'per click':>9}    " * 2,
        ]
        for c in compared:
            row = f"  {c.budget:>8,.0f} yuan "
            for o in (c.proportional, c.constant):
                row += f"  {o.num_wins:>9,} {o.num_clicks:>7} {o.ecpc:>9.3f}    "
            lines.append(row)
    lines += [
        f"\nCharts: {report}",
        "Next:",
        f"  trm serve {bundle} --bid {bid}   the bidder of this demo, on port 8000",
        "  edit that bid.yaml: budget, pacing, shading, floors in other currencies, more campaigns (docs/bidding.md)",
        "  trm demo-bid --data-dir FOLDER   the same on train.log.txt and test.log.txt of an iPinYou campaign",
    ]
    return "\n".join(lines)
