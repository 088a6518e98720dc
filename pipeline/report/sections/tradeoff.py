"""Accuracy vs. cost: teachers, students alone and distilled, of one data set in one picture."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pipeline.report.drawing import markup, palette, text
from pipeline.report.drawing.figure import THIRD, draw
from pipeline.report.drawing.palette import Style
from pipeline.report.results import Pair, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Accuracy vs. cost"
LEAD = (
    "how much of the teacher's accuracy a pair reaches, and at what share of its cost; up and to the "
    "left is better."
)
GROUP, ORDER = "closing", 10
NUMBERS = {"results.csv": "one row for each run and seed"}

AXES = {
    "params": "parameters",
    "macs": "multiply-accumulates of one image",
    "latency_ms": "CPU latency of one image, ms",
}


def section(results: Results) -> Markup:
    """Return three figures for every data set that has pairs."""
    parts = []
    for dataset in results.datasets.values():
        pairs = [pair for pair in results.pairs if pair.dataset is dataset]
        if not pairs:
            continue
        pictures = [
            draw(
                f"{dataset.name}/{metric}",
                f"Top-1 vs. {title}.",
                2.7,
                partial(_scatter, pairs=pairs, metric=metric),
                THIRD,
            )
            for metric, title in AXES.items()
        ]

        entries = [("teacher", Style(palette.INK, "D", ()))]
        entries += [(pair.name, palette.series(number)) for number, pair in enumerate(pairs)]
        if len(results.datasets) > 1:
            parts.append(Markup("<h4>{}</h4>").format(dataset.name))
        parts += [markup.legend(entries), markup.figures(pictures, 3)]

    if not parts:
        return Markup()
    ways = "The ring is the student alone, dots are distilled runs (means over seeds), and the line leads to the best."
    return Markup("<section>{}</section>").format(Markup().join([*parts, markup.note(ways)]))


def _scatter(ax: Axes, pairs: list[Pair], metric: str) -> None:
    places = []
    for pair in pairs:
        trained = pair.teacher.trained.metrics
        # Teachers share one color, since several pairs may have the same teacher.
        ax.plot(trained[metric], trained["top1"], "D", markersize=6.5, color=palette.INK, mew=0, zorder=3)
        places.append(float(trained[metric]))

    for number, pair in enumerate(pairs):
        style = palette.series(number)
        points = {run.name: (run.estimate(metric).mean, run.estimate("top1").mean) for run in pair.runs}
        start, best = points[pair.alone.name], points[pair.best.name]
        ax.plot(*zip(start, best, strict=True), color=style.color, linewidth=1.3, zorder=2)
        ax.plot(*start, "o", markersize=7, mfc=palette.PAPER, mec=style.color, mew=1.6, zorder=4)

        others = [point for name, point in points.items() if name != pair.alone.name]
        if others:
            mark: dict[str, Any] = {
                "marker": style.mark,
                "markersize": 5.5,
                "color": style.color,
                "mew": 0.0,
            }
            ax.plot(*zip(*others, strict=True), linestyle="", alpha=0.85, zorder=5, **mark)
        places += [place for place, _ in points.values()]

    _costs(ax, min(places), max(places))
    ax.margins(y=0.12)
    ax.set_title("top-1, %")
    ax.set_xlabel(AXES[metric])


def _costs(ax: Axes, low: float, high: float) -> None:
    """Make x a logarithmic axis with at least two numbers on it."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = low / 1.5, high * 1.5  # room for one network alone, whose span is a point
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    span = high / low
    close = (1, 1.5, 2, 3, 4, 5, 7)  # two of them lie within the least span, that of networks of one cost
    steps = close if span < 5 else (1, 2, 5) if span < 60 else (1, 3) if span < 1000 else (1,)

    # Ticks at every decade that the axis touches, and closer ones where it spans few.
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ax.xaxis.set_major_locator(FixedLocator([step * 10.0**decade for decade in decades for step in steps]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text.amount(value)))
