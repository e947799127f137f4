"""Statistics as text and as one HTML page without outside files."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.evaluation import charts

from .hashed import HashedTable, hashed_lines, hashed_tables
from .statistics import NUM_BINS, IdStats, NumberStats, SplitStats, raw_columns

_MOST_LENGTH_BINS = NUM_BINS
_NOT_RECORDED = "not recorded"


def table(stats: dict[str, SplitStats], *, hashed: Sequence[HashedTable] = ()) -> str:
    """Splits, then each feature with a line per split; hashed tables with a line each."""
    lines = [f"{'split':8} {'rows':>14}   mean labels"]
    for name, split in stats.items():
        means = ", ".join(f"{task} {mean:.5f}" for task, mean in split.label_means.items())
        lines.append(f"{name:8} {split.num_rows:>14,}   {means}")
    first = next(iter(stats.values()))
    if first.numbers:
        lines += ["", f"{'number':24} {'split':8} {'mean':>12} {'std':>12} {'min':>12} {'max':>12} {'zeros':>8}"]
        for feature in first.numbers:
            for name, split in stats.items():
                n = split.numbers[feature]
                shape = f"{n.mean:>12.5g} {n.std:>12.5g} {n.low:>12.5g} {n.high:>12.5g} {n.zeros / n.count:>8.2%}"
                lines.append(f"{feature:24} {name:8} {shape}")
    if first.ids:
        head = f"{'used':>12} {'of rows':>12} {'oov':>8} {'missing':>8} {'ids/row':>8} {'empty':>8}"
        lines += ["", f"{'ids':24} {'split':8} {head}"]
        for feature in first.ids:
            for name, split in stats.items():
                lines.append(f"{feature:24} {name:8} {_ids(split.ids[feature])}")
    lines += ["", *_missing_lines(stats), *hashed_lines(hashed)]
    for name, split in stats.items():
        if split.over_time is not None:
            lines += ["", f"{name} by {split.over_time.unit}:"]
            for i, period in enumerate(split.over_time.periods):
                means = ", ".join(f"{task} {values[i]:.5f}" for task, values in split.over_time.means.items())
                lines.append(f"  {period:20} {split.over_time.num_rows[i]:>12,} rows   {means}")
            if split.over_time.num_rows_without_time:
                lines.append(f"  {'without a time':20} {split.over_time.num_rows_without_time:>12,} rows")
    return "\n".join(lines)


def _missing_lines(stats: dict[str, SplitStats]) -> list[str]:
    """Raw columns with missing values, a line each; those without are named together."""
    columns = raw_columns(stats)
    if not columns:
        return [f"missing values of the raw columns: {_NOT_RECORDED} when this cache was prepared; prepare again to count them"]
    widths = [max(len(name), len(_NOT_RECORDED)) for name in stats]
    heads = " ".join(f"{name:>{width}}" for name, width in zip(stats, widths))
    lines, complete = [f"{'missing of raw column':24} {heads}"], []
    for column in columns:
        if not any(split.missing is None or split.missing[column] for split in stats.values()):
            complete.append(column)
            continue
        shares = (_missing(split.missing_share(column)) for split in stats.values())
        lines.append(f"{column:24} " + " ".join(f"{share:>{width}}" for share, width in zip(shares, widths)))
    return [*lines, f"nothing is missing of {len(complete)} columns: {', '.join(complete)}"] if complete else lines


def _missing(share: float | None) -> str:
    return _NOT_RECORDED if share is None else _share(share)


def _ids(s: IdStats) -> str:
    shares = f"{_share(s.oov_share):>8} {_share(s.missing_share):>8}"
    return f"{s.distinct:>12,} {len(s.counts):>12,} {shares} {s.mean_length:>8.1f} {s.empty_share:>8.2%}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2%}"


def write_page(path: Path, cache: Cache, stats: dict[str, SplitStats]) -> Path:
    """The page at `path`, whole or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"thousands": lambda value: f"{value:,}", "short": lambda value: f"{value:.5g}"}
    environment.filters |= {"share": _share, "missing": _missing}
    first = next(iter(stats))
    text = environment.get_template("stats.html.j2").render(
        title=cache.folder.name,
        cache=cache,
        stats=stats,
        over_time=[(name, s.over_time, _time_chart(name, s)) for name, s in stats.items() if s.over_time is not None],
        numbers=[
            (name, {s: of.numbers[name] for s, of in stats.items()}, _histogram(n, name))
            for name, n in stats[first].numbers.items()
        ],
        ids=[(name, {s: of.ids[name] for s, of in stats.items()}, _lengths(i, name)) for name, i in stats[first].ids.items()],
        hashed=hashed_tables(cache),
        raw_columns=raw_columns(stats),
        charted=first,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return path


def _histogram(stats: NumberStats, name: str) -> Markup:
    if not stats.high > stats.low:
        return Markup("")
    skewed = stats.bins.max() > 0.9 * stats.bins.sum()
    return Markup(charts.counts(stats.edges.tolist(), stats.bins.tolist(), xlabel=name, name=f"n-{name}", logarithmic=bool(skewed)))


def _lengths(stats: IdStats, name: str) -> Markup:
    """Lengths of lists; nothing for features with one id per row."""
    longest = len(stats.lengths) - 1
    if longest <= 1:
        return Markup("")
    step = -(-(longest + 1) // _MOST_LENGTH_BINS)
    count = [int(stats.lengths[i : i + step].sum()) for i in range(0, longest + 1, step)]
    edges = [i * step - 0.5 for i in range(len(count) + 1)]
    return Markup(charts.counts(edges, count, xlabel=f"ids per row of {name}", name=f"l-{name}"))


def _time_chart(name: str, split: SplitStats) -> Markup:
    assert split.over_time is not None
    return Markup(charts.rate_over_time(split.over_time.periods, split.over_time.means, name=f"t-{name}"))
