"""The report's charts as inline SVG. Colours are CSS variables of the page, so that one drawing serves light and dark."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from .curves import ScoreCurves

# Stand-ins that matplotlib can draw with, and the CSS variables that replace them in the SVG.
INK, MUTED, GRID, MODEL, BASE, SURFACE = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", MODEL: "--model", BASE: "--base", SURFACE: "--surface"}
_STYLE: dict[Any, Any] = {  # matplotlib types the keys in some versions only
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 8.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def reliability(curves: ScoreCurves, *, name: str) -> str:
    """Actual against predicted rate in bins of equal weight, with 95 % Wilson intervals; log scales where rates span decades."""
    bins = curves.reliability
    predicted, actual, weight = (np.asarray(x) for x in bins)
    low, high = _wilson(actual, weight / weight.sum() * curves.num_rows)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("mean prediction", "share of positives")
        positive = actual[actual > 0]
        logarithmic = predicted.min() > 0 and predicted.max() / predicted.min() > 20 and len(positive) > 0
        ends = np.array([min(predicted.min(), low.min()), max(predicted.max(), high.max())])
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
            ends[0] = max(min(predicted.min(), positive.min()) / 1.5, 1e-7)
            axes.set_ylim(ends[0], ends[1] * 1.3)
        axes.plot(ends, ends, color=BASE, linestyle=(0, (4, 3)), linewidth=1.2, label="perfectly calibrated")
        axes.errorbar(predicted, actual, [actual - low, high - actual], fmt="none", ecolor=MODEL, elinewidth=1, alpha=0.45)
        axes.plot(predicted, actual, color=MODEL, marker="o", markersize=3.5, linewidth=1.4, label="model")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_percent))
            axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.legend(loc="upper left")
        return _svg(figure, name)


def histogram(curves: ScoreCurves, *, name: str) -> str:
    """Where the scores of each class lie, on a log-odds scale."""
    logit = np.log(curves.histogram_edges / (1 - curves.histogram_edges))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("prediction", "share of the class")
        for share, colour, label in ((curves.negative_share, BASE, "negatives"), (curves.positive_share, MODEL, "positives")):
            axes.stairs(share, logit, color=colour, fill=True, alpha=0.3)
            axes.stairs(share, logit, color=colour, linewidth=1.2, label=label)
        nice = np.array([1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.99, 0.999, 0.9999, 0.99999])
        places = np.log(nice / (1 - nice))
        inside = (places >= logit[0]) & (places <= logit[-1])
        if inside.sum() < 2:  # all scores close together
            places, inside = logit[[0, -1]], np.array([True, True])
            nice = curves.histogram_edges[[0, -1]]
        axes.set_xticks(places[inside], [_percent(p, None) for p in nice[inside]])
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")
        return _svg(figure, name)


def roc(curves: ScoreCurves, *, name: str) -> str:
    """True against false positive rate."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("share of negatives above the threshold", "share of positives above it")
        axes.plot([0, 1], [0, 1], color=BASE, linestyle=(0, (4, 3)), linewidth=1.2, label="chance")
        x, y = curves.false_positive_rate, curves.true_positive_rate
        axes.fill_between(x, y, x, color=MODEL, alpha=0.12, linewidth=0)
        axes.plot(x, y, color=MODEL, linewidth=1.6, label="model")
        _unit_square(axes)
        axes.legend(loc="lower right")
        return _svg(figure, name)


def precision_recall(curves: ScoreCurves, label_mean: float, *, name: str) -> str:
    """Precision against recall, with the label mean that any order gives."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("share of positives found (recall)", "positives among those found (precision)")
        axes.axhline(label_mean, color=BASE, linestyle=(0, (4, 3)), linewidth=1.2, label="chance: the label rate")
        axes.plot(curves.true_positive_rate, curves.precision, color=MODEL, linewidth=1.6, label="model")
        _unit_square(axes)
        axes.legend(loc="upper right")
        return _svg(figure, name)


def over_steps(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, name: str, ylabel: str, percent: bool = False
) -> str:
    """Lines over training steps: label -> (steps, values). Where there are two, the second stands out."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("training step", ylabel)
        styles: tuple[dict[str, Any], ...] = (
            {"color": BASE, "linewidth": 1.2},
            {"color": MODEL, "linewidth": 1.6, "marker": "o", "markersize": 3.5},
        )
        for (label, (steps, values)), style in zip(series.items(), styles if len(series) > 1 else styles[1:]):
            sparse: dict[str, Any] = {} if len(steps) <= 40 else {"marker": ""}
            axes.plot(_thinned(steps), _thinned(values), label=label, **{**style, **sparse})
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if percent:
            axes.yaxis.set_major_formatter(FuncFormatter(_percent))
            axes.set_ylim(0, max(0.1, axes.get_ylim()[1]))  # a small share must look small
        else:
            axes.ticklabel_format(axis="y", useOffset=False)
        if len(series) > 1:
            axes.legend(loc="best")
        return _svg(figure, name)


def market_prices(p: NDArray, market: NDArray, *, slope: float, name: str) -> str:
    """Bids on the line slope * P(click), and what such impressions cost: median and middle half of market prices, in equal bins."""
    parts = np.array_split(np.argsort(p, kind="stable"), 20)
    centre = [float(p[part].mean()) for part in parts]
    low, middle, high = (np.array([np.quantile(market[part], q) for part in parts]) for q in (0.25, 0.5, 0.75))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("predicted P(click)", "price per thousand impressions")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.fill_between(centre, low, high, color=BASE, alpha=0.18, linewidth=0)
        axes.plot(centre, middle, color=BASE, linewidth=1.2, label="market price (median, middle half)")
        axes.plot(centre, slope * np.array(centre), color=MODEL, marker="o", markersize=3.5, linewidth=1.6, label="our bid")
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.legend(loc="upper left")
        return _svg(figure, name)


def two_by_group(
    groups: Sequence[str], first: Sequence[float], second: Sequence[float], labels: tuple[str, str], *, name: str
) -> str:
    """Bars of two kinds side by side."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("", "")
        at = np.arange(len(groups))
        axes.bar(at - 0.2, first, 0.38, color=MODEL, label=labels[0])
        axes.bar(at + 0.2, second, 0.38, color=BASE, label=labels[1])
        axes.set_xticks(at, list(groups))
        axes.grid(axis="x", visible=False)
        axes.legend(loc="best")
        return _svg(figure, name)


def counts(edges: Sequence[float], count: Sequence[float], *, xlabel: str, name: str, logarithmic: bool = False) -> str:
    """How many rows lie in each bin."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(xlabel, "rows")
        axes.stairs(np.asarray(count, np.float64), np.asarray(edges, np.float64), color=MODEL, fill=True, alpha=0.55)
        if logarithmic:
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        return _svg(figure, name)


def rate_over_time(periods: Sequence[str], series: Mapping[str, Sequence[float]], *, name: str) -> str:
    """A rate per day (or other period), one line per label; days without rows are gaps."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("", "mean label")
        at = np.arange(len(periods))
        for (label, values), colour in zip(series.items(), (MODEL, BASE, MUTED)):
            axes.plot(at, values, color=colour, marker="o", markersize=3, linewidth=1.4, label=label)
        shown = np.unique(np.linspace(0, len(periods) - 1, min(len(periods), 5)).round().astype(int))
        axes.set_xticks(shown, [periods[i] for i in shown])
        low, high = axes.get_ylim()
        low = min(0.0, low)
        axes.set_ylim(low, high + 0.06 * (high - low))  # rates that hardly differ must not lie on the edge
        if len(series) > 1:
            axes.legend(loc="best")
        return _svg(figure, name)


def _thinned(values: Sequence[float], most: int = 400) -> NDArray[np.float64]:
    """At most `most` means of neighbours: a long run's log would make a page of megabytes that shows no more."""
    return np.array([part.mean() for part in np.array_split(np.asarray(values, dtype=np.float64), min(len(values), most))])


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.7, 3.1), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return figure, axes


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_percent))


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.3g} %" if value < 0.999 or value >= 1 else f"{100 * value:.6g} %"


def _wilson(share: NDArray, num_rows: NDArray) -> tuple[NDArray, NDArray]:
    """95 % score interval of a proportion (Wilson 1927)."""
    z2 = 1.96**2
    centre = (share + z2 / (2 * num_rows)) / (1 + z2 / num_rows)
    half = 1.96 / (1 + z2 / num_rows) * np.sqrt(share * (1 - share) / num_rows + z2 / (4 * num_rows**2))
    return np.minimum(centre - half, share).clip(0), np.maximum(centre + half, share).clip(max=1)


def _svg(figure: Figure, name: str) -> str:
    """The <svg> element alone: page colours, ids of its own, no metadata and no address of anything."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{name}">', text, count=1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:)?href="#([^"]+)"', rf'href="#{name}-\2"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r"font: (\d[\d.]*)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
