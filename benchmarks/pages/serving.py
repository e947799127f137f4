"""Tables of docs/results.md: `trm serve` under load."""

from statistics import median
from typing import NamedTuple

from .aims import Aim, at_least
from .results import Results, Row, count, named_one, origin, percent, table

AIM_P50_MS, AIM_P99_MS = 1.0, 5.0
WARM_SAMPLES = 12  # of memory, a minute
NETS = {"deepfm": "DeepFM", "autoint": "AutoInt"}
CLOSED = (
    ("deepfm /predict, closed loop, 16 connections", 20_000),
    ("deepfm /bid, closed loop, 16 connections", 0),
)
OPEN = (
    "deepfm /predict, open loop, 10000/s",
    "deepfm /bid, open loop, 10000/s",
    "autoint /predict, open loop, 2500/s",
    "autoint /predict, open loop, 5000/s",
)
SOAK = "deepfm /predict, soak at 70 % with reloads"
HEAD = ("", "requests/s", "p50 ms", "p99 ms", "p99 of the rounds", "CPU us per request", "`loop_ms`")


class Label(NamedTuple):
    """The parts of a row's name: deepfm /predict, closed loop, 16 connections."""

    who: str
    load: str
    how_much: str


def _label(row: Row) -> Label:
    who, load, how_much = row["model"].split(", ")
    return Label(who, load, how_much)


def _name(row: Row) -> str:
    who, load, how_much = _label(row)
    net, _, path = who.partition(" ")
    if load == "open loop":
        how_much = f"Poisson {count(int(how_much.removesuffix('/s')))}/s"
    return f"{NETS[net]} `{path}`, {load}, {how_much}"


def _place(row: Row) -> tuple[int, bool, str]:
    """Net by net, /predict first, closed loops before open ones."""
    who, load, _ = _label(row)
    net, _, path = who.partition(" ")
    return list(NETS).index(net), path != "/predict", load


def _figures(row: Row) -> tuple[str, ...]:
    rounds = ", ".join(f"{p99:.2f}" for p99 in row["p99_ms_of_rounds"])
    latencies = f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"
    return count(row["requests_per_second"]), *latencies, rounds, count(row["server_cpu_us_per_request"]), str(row["loop_ms"])


def load(results: Results) -> str:
    found = [row for row in results("serving")["rows"] if row["model"].startswith(tuple(NETS)) and " loop, " in row["model"]]
    found.sort(key=_place)
    return f"{table(HEAD, ((_name(row), *_figures(row)) for row in found))}\n\n{origin('serving', found)}"


def floor(results: Results) -> str:
    found = [row for row in results("serving")["rows"] if row["model"].startswith("floor: ")]
    rows = [(row["model"].removeprefix("floor: "), *_figures(row)) for row in found]
    return f"{table(HEAD, rows)}\n\n{origin('serving', found)}"


def peers(results: Results) -> str:
    found = [row for row in results("serving")["rows"] if ", deepfm /predict, " in row["model"]]
    cells: dict[str, dict[int, Row]] = {}
    for row in found:
        cells.setdefault(_label(row).who, {})[row["connections"]] = row
    rows = [
        (
            who,
            *(f"{count(by[n]['requests_per_second'])}" for n in (1, 16, 64)),
            *(f"{by[n]['p50_ms']:.2f}" for n in (1, 16)),
            f"{by[16]['p99_ms']:.2f}",
            count(by[16]["server_cpu_us_per_request"]),
            f"{max(row['rss_mib'] for row in by.values()):.0f}",
        )
        for who, by in cells.items()
    ]
    head = (
        "",
        "1 connection: requests/s",
        "16: requests/s",
        "64: requests/s",
        "1: p50 ms",
        "16: p50 ms",
        "16: p99 ms",
        "16: CPU us per request",
        "memory MiB",
    )
    return f"{table(head, rows)}\n\n{origin('serving', found)}"


def overload(results: Results) -> str:
    found = [row for row in results("serving")["rows"] if "overload at 200 %" in row["model"]]
    most = {row["connections"]: row for row in results("serving")["rows"] if "most it answers" in row["model"]}
    rows = [
        (
            str(row["connections"]),
            count(median(most[row["connections"]]["requests_per_second_of_rounds"])),
            count(row["offered_per_second"]),
            count(row["requests_per_second"]),
            percent(row["goodput_of_most"]),
            ", ".join(f"{100 * share:.0f}" for share in row["goodput_of_most_of_rounds"]),
            f"{count(sum(row['refused'].values()))}, {row['failed']}",
            count(row["given_up"]),
        )
        for row in found
    ]
    shares = ("of the most, median of the rounds", "% of the rounds")
    head = ("connections", "most it answers/s", "offered/s", "answered/s", *shares, "refused, failed", "given up by the driver")
    return f"{table(head, rows)}\n\n{origin('serving', found)}"


def soak(results: Results) -> str:
    row = named_one(results("serving")["rows"], {"model": SOAK})
    memory = row["rss_mib_every_5_s"][WARM_SAMPLES:]
    figures = [
        ("duration", f"{row['seconds']:.0f} s"),
        ("offered", f"{count(row['offered_per_second'])}/s"),
        ("answered", count(row["answered"])),
        ("refused, failed", f"{count(sum(row['refused'].values()))}, {row['failed']}"),
        ("given up by the driver: no free connection for a second", f"{count(row['given_up'])} ({percent(_given_up(row), 2)})"),
        ("new versions loaded, refused", f"{row['reloads']}, {row['failed_reloads']}"),
        ("p50, p90, p99, p99.9", ", ".join(f"{row[f'p{p}_ms']:.2f}" for p in ("50", "90", "99", "99.9")) + " ms"),
        ("memory after the first minute", f"{min(memory):.0f} to {max(memory):.0f} MiB"),
        ("CPU time per request", f"{row['server_cpu_us_per_request']} us"),
    ]
    if "after_events" in row:
        p99s = (row[f"{part}_events"]["p99_ms"] for part in ("after", "else"))
        figures.append(("p99 just after a new version, at other times", ", ".join(f"{p99:.2f}" for p99 in p99s) + " ms"))
    return f"{table(('what', 'figure'), figures)}\n\n{origin('serving', [row])}"


def _given_up(row: Row) -> float:
    return row["given_up"] / (row["given_up"] + row["answered"])


def aims(results: Results) -> list[Aim]:
    rows = results("serving")["rows"]
    found = []
    for model, rate in CLOSED:
        found.append(_within(named_one(rows, {"model": model}), rate))
    found += [_within(named_one(rows, {"model": model}), 0) for model in OPEN]
    for row in rows:
        if "overload at 200 %" in row["model"]:
            shares = [100 * share for share in row["goodput_of_most_of_rounds"]]
            found.append(at_least(f"twice the load, {row['connections']} connections", shares, 90, "% of the most it answers"))
    soaked = named_one(rows, {"model": SOAK})
    wrong = sum(soaked["refused"].values()) + soaked["failed"]
    title = f"{soaked['seconds'] / 60:g} minutes at 70 % of its most, a new version every 5 s"
    answers = f"{wrong} refused or failed, {count(soaked['given_up'])} of {soaked['answered'] / 1e6:.1f} M given up"
    found.append(Aim(title, "no error", answers, [], wrong + soaked["given_up"] == 0))
    memory = soaked["rss_mib_every_5_s"][WARM_SAMPLES:]
    first, last = (median(part) for part in (memory[: len(memory) // 4], memory[-len(memory) // 4 :]))
    of_memory = f"{first:.0f} MiB in the first quarter after a minute, {last:.0f} in the last"
    return [*found, Aim("the same", "flat memory (within 5 %)", of_memory, [], abs(last - first) <= 0.05 * first)]


def _within(row: Row, rate: int) -> Aim:
    """The latencies aimed at, and the rate where the loop is closed: by the medians of the rounds."""
    rates, p50s, p99s = (row[f"{key}_of_rounds"] for key in ("requests_per_second", "p50_ms", "p99_ms"))
    met = [r >= rate and p50 < AIM_P50_MS and p99 < AIM_P99_MS for r, p50, p99 in zip(rates, p50s, p99s, strict=True)]
    reached = median(rates) >= rate and median(p50s) < AIM_P50_MS and median(p99s) < AIM_P99_MS
    wanted = f"{count(rate)}/s, " if rate else ""
    measured = f"{count(median(rates))}/s, p50 {median(p50s):.2f} ms, p99 {median(p99s):.2f} ms"
    return Aim(_name(row), f"{wanted}p50 < {AIM_P50_MS:g} ms, p99 < {AIM_P99_MS:g} ms", measured, met, reached)
