"""Tables of docs/performance.md: from a cache to batches, and what training leaves of their speed."""

from statistics import quantiles

from .aims import Aim, at_least
from .results import Results, Row, count, named_one, origin, percent, span, table

SMALL, LARGE = 256, 4096
STOCK, NATIVE, KEPT = "ours, stock operators, int32", "ours, native gather, int32", "ours, native, int32, kept in memory"
STREAMED = "streamed"
RUNS = {
    "frappe_deepfm": "DeepFM, Frappe_x1, unfused",
    "ml1m_dare_qnn": "DARE + QNN-alpha, MovieLens-1M",
    "bids_two_tower_256": "two towers over two stores",
    "bids_two_tower_4096": "two towers over two stores",
}
STEP_PARTS = ("dense", "sparse", "optimizer", "logging", "host_to_device")
AIM_OF_CACHED = 0.95


def loader(results: Results) -> str:
    found = results("loader")
    by_size = {size: [row for row in found["results"] if row["batch_size"] == size] for size in (SMALL, LARGE)}
    rows = []
    for large in sorted(by_size[LARGE], key=lambda row: -row["rows_per_second_median"]):
        small = named_one(by_size[SMALL], {"contender": large["contender"]})
        rows.append(
            (
                large["contender"],
                count(small["batches_per_second_median"]),
                span([speed / SMALL for speed in small["rows_per_second"]]),
                count(large["rows_per_second_median"]),
                span(large["rows_per_second"]),
                percent(large["share_of_memory_copy_median"]),
                f"{large['times_naive_median']:.1f}",
            )
        )
    head = (
        "",
        f"batch {SMALL}: it/s",
        "of the rounds",
        f"batch {LARGE}: rows/s",
        "of the rounds",
        f"of a memory copy, batch {LARGE}",
        "x naive",
    )
    cold = found["cold_page_cache_rows_per_second"]
    before, after = found["load_average_before_and_after"]
    note = (
        f"{count(found['rows'])} rows of {count(found['bytes_per_row'])} bytes, {len(cold['all'])} rounds, medians. With the "
        f"cache's pages dropped from memory, batch {cold['batch_size']}: {count(cold['median'])} rows/s ({span(cold['all'])}). "
        f"Load average {before} before, {after} after. Peers: {_versions(found['peer_versions'])}."
    )
    left_out = "".join(f" Not run: {name} ({why})." for name, why in found["not_run"].items())
    return f"{table(head, rows)}\n\n{note}{left_out}\n\n{origin('loader', [found])}"


def _versions(found: Row) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items()) or "none"


def profiles(results: Results) -> str:
    found = results("profiles")["rows"]
    rows = []
    for row in found:
        parts, shares = row["step_parts"], sorted(_of_cached(row))
        low, _, high = quantiles(shares, n=4, method="inclusive")
        rows.append(
            (
                f"{RUNS.get(row['model'], row['model'])}, batch {row['batch_size']}",
                f"{count(row['loader']['per_second'])} it/s",
                f"{row['loader']['per_second'] / row['both']['per_second']:.0f}",
                f"{row['cached']['per_second']:.2f} it/s",
                f"{row['both']['per_second']:.2f} it/s",
                f"{percent(row['reached'], 1)} ({100 * low:.0f} to {100 * high:.0f}, {len(shares)} rounds)",
                percent(row["reached_of_varied"], 1) if "reached_of_varied" in row else "",
                percent(row["wait_share"], 2),
                row["verdict"]["limit"],
                ", ".join(f"{100 * parts[part]:.0f}" for part in STEP_PARTS) + " %",
            )
        )
    head = (
        "run",
        "loader alone",
        "times as fast as training",
        "cached batch",
        "with the loader",
        "of the cached speed (middle half)",
        "of 16 batches in turn",
        "waiting",
        "limited by",
        "dense, sparse, optimizer, log, copies",
    )
    return f"{table(head, rows)}\n\n{origin('profiles', found)}"


def _of_cached(row: Row) -> list[float]:
    return [both / cached for both, cached in zip(row["both"]["rounds"], row["cached"]["rounds"], strict=True)]


def stores(results: Results) -> str:
    found = results("feature_stores")
    small, large = ([row for row in found["speeds"] if row["batch_size"] == size] for size in (SMALL, LARGE))
    rows = []
    for row in large:
        other = named_one(small, {"contender": row["contender"]})
        figures = [
            text
            for one in (other, row)
            for text in (
                f"{one['ms_per_batch']:.2f}",
                f"{min(one['rounds_ms']):.2f} to {max(one['rounds_ms']):.2f}",
                f"{one['million_pairs_per_second']:.2f}",
            )
        ]
        rows.append((row["contender"], *figures))
    head = ("batches from", *(f"{size}{what}" for size in (SMALL, LARGE) for what in (": ms", ": of the rounds", ": M pairs/s")))
    made = found["prepare"]
    note = (
        f"`trm prepare` of {count(made['num_pairs'])} pairs and both stores: {made['seconds']:.1f} s, start-up included, "
        f"{count(made['peak_memory_mib'])} MiB at the peak. A pair takes {made['cache_bytes_per_pair']:.0f} bytes in the cache, "
        f"the stores {made['stores_mib']:.0f} MiB once."
    )
    return f"{table(head, rows)}\n\n{note}\n\n{origin('feature_stores', [found])}"


def waits(results: Results) -> str:
    found = results("feature_stores")["waits"]
    rows = [
        (
            f"{row['batch_size']}, {row['way']}",
            f"{row['work_ms']:g} ms",
            f"{row['first_batch_seconds']:.2f} s",
            *(f"{row[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms", "most_at_epoch_border_ms")),
            count(row["num_batches"]),
        )
        for row in found
    ]
    head = ("batch", "work per batch", "first batch", "p50 ms", "p99 ms", "longest ms", "border of epochs ms", "batches")
    return table(head, rows)


def aims(results: Results) -> list[Aim]:
    found = results("loader")["results"]

    def speed(contender: str, size: int) -> list[float]:
        return named_one(found, {"contender": contender, "batch_size": size})["rows_per_second"]

    speeds = [
        at_least(f"loader, batch {LARGE}, stock operators, {STREAMED}", speed(STOCK, LARGE), 600_000, "rows/s"),
        at_least(f"loader, batch {LARGE}, native, kept in memory", speed(KEPT, LARGE), 2_000_000, "rows/s"),
        at_least(f"loader, batch {LARGE}, native, {STREAMED}", speed(NATIVE, LARGE), 2_000_000, "rows/s"),
        at_least(f"loader, batch {SMALL}, native, kept in memory", [s / SMALL for s in speed(KEPT, SMALL)], 5000, "it/s"),
        at_least(f"loader, batch {SMALL}, native, {STREAMED}", [s / SMALL for s in speed(NATIVE, SMALL)], 5000, "it/s"),
    ]
    return speeds + [
        Aim(
            f"training with the loader: {RUNS.get(row['model'], row['model'])}, batch {row['batch_size']}",
            f"{100 * AIM_OF_CACHED:.0f} % of the speed on one cached batch",
            percent(row["reached"], 1),
            [share >= AIM_OF_CACHED for share in _of_cached(row)],
            row["reached"] >= AIM_OF_CACHED,
        )
        for row in results("profiles")["rows"]
    ]
