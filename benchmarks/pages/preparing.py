"""Tables of docs/performance.md: from raw rows to a cache, and a competition from raw files to a submission."""

from .aims import Aim, at_least, flat
from .results import Results, Row, change, count, named, origin, span, table

AIM_ROWS_PER_SECOND = 150_000
STEPS = {
    "make train": "training rows are made (2 processes)",
    "prepare": "`trm prepare`",
    "train": "`trm train`, one epoch",
    "evaluate": "`trm evaluate`",
    "make test": "test rows are made (2 processes)",
    "predict": "`trm predict` to submission.csv",
}
IDS = {"vocabulary": "ids learned", "identity": "ids are table rows"}


def preparing(results: Results) -> str:
    return _speeds(results, "prepare")


def preparing_much(results: Results) -> str:
    return _speeds(results, "prepare_memory")


def _speeds(results: Results, name: str) -> str:
    found = results(name)
    rows = [
        (
            count(row["rows"]),
            f"prepare, {IDS[row['ids_of_the_sequence']]}" if row["what"] == "prepare" else row["what"],
            str(row["workers"]),
            count(row["rows_per_second_median"]),
            span(row["rows_per_second"]) if len(row["rows_per_second"]) > 1 else "one round",
            str(row.get("cpu_us_per_row", "")),
            f"{count(row['peak_rss_mib'])} MiB",
        )
        for row in found["results"]
    ]
    head = ("rows", "", "workers", "rows/s", "of the rounds", "CPU us per row, last round", "peak memory")
    imported = max(row.get("imported_rss_mib", 0) for row in found["results"])
    before, after = found["load_average_before_and_after"]
    note = f"{imported} MiB of the memory are imported packages. Load average {before} before, {after} after."
    return f"{table(head, rows)}\n\n{note}\n\n{origin(name, [found])}"


def competition(results: Results) -> str:
    found = results("competition")
    rows = [
        (
            STEPS[step],
            count(row["rows"]),
            f"{count(row['seconds'])} s",
            count(row["rows_per_second"]),
            f"{count(row['cpu_seconds'])} s",
            count(row["rows"] / row["cpu_seconds"]),
            f"{count(row['peak_rss_mib'])} MiB",
        )
        for step, row in found["steps"].items()
    ]
    head = ("step", "rows", "wall", "rows/s", "CPU time", "rows per CPU second", "peak memory, process tree")
    sent = found["submission"]
    note = (
        f"{found['note'].capitalize()}. The cache has {found['steps']['prepare']['cache_bytes'] / 1e9:.1f} GB, "
        f"`submission.csv` {count(sent['rows'])} rows and {sent['submission_bytes'] / 1e6:.0f} MB. AUC of the test rows, "
        f"{100 * sent['label_rate']:.2f} % of them clicked: **{sent['auc']:.4f}**; by the true probabilities (Bayes) "
        f"{sent['bayes_auc']:.4f}; of a constant {sent['constant_auc']:.4f}."
    )
    return f"{table(head, rows)}\n\n{note}\n\n{origin('competition', [found])}"


def competition_memory(results: Results) -> str:
    few, many = results("competition_fifth"), results("competition")
    rows = []
    for step in ("prepare", "train", "predict"):
        less, more = few["steps"][step], many["steps"][step]
        peaks = f"{count(less['peak_rss_mib'])} MiB", f"{count(more['peak_rss_mib'])} MiB"
        by = change(less["peak_rss_mib"], more["peak_rss_mib"])
        rows.append((STEPS[step], count(less["rows"]), peaks[0], count(more["rows"]), peaks[1], by))
    note = f"The smaller run: {few['note']}."
    head = ("", "rows", "peak memory", "rows", "peak memory", "change")
    return f"{table(head, rows)}\n\n{note}\n\n{origin('competition_fifth', [few])}"


def aims(results: Results) -> list[Aim]:
    speeds = []
    for name, more in (("prepare", ""), ("prepare_memory", f", last {results('prepare_memory')['max_len']} kept")):
        found = named(results(name)["results"], {"what": "prepare"})
        most = {key: max(row[key] for row in found) for key in ("rows", "workers")}
        for row in named(found, most):
            text = f"preparing {count(row['rows'])} rows, {row['workers']} workers, {IDS[row['ids_of_the_sequence']]}{more}"
            speeds.append(at_least(text, row["rows_per_second"], AIM_ROWS_PER_SECOND, "rows/s"))
    few, *_, many = sorted(named(results("prepare_memory")["results"], {"what": "prepare"}), key=lambda row: row["rows"])
    memory = [flat(f"memory of preparing, {count(few['rows'])} and {count(many['rows'])} rows", *_peaks(few, many))]
    for step in ("prepare", "train"):
        few, many = (results(name)["steps"][step] for name in ("competition_fifth", "competition"))
        text = f"memory of `trm {step}`, the competition's {count(few['rows'])} and {count(many['rows'])} rows"
        memory.append(flat(text, *_peaks(few, many)))
    return [*speeds, *memory]


def _peaks(few: Row, many: Row) -> tuple[float, float]:
    return few["peak_rss_mib"], many["peak_rss_mib"]
