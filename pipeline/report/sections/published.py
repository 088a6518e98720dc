"""Published numbers beside measured ones, where data set, networks and what a run consists of are the same."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from markupsafe import Markup

from pipeline.report.beside import Beside, beside, uncompared
from pipeline.report.drawing import compared, intervals, markup, palette
from pipeline.report.drawing.figure import draw
from pipeline.report.results import Pair, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Published beside measured"
LEAD = "whether the interval of a difference includes zero, and what else differs: epochs, the teacher, the rule."
GROUP, ORDER = "pair", 12

FILES = {"published.csv": "one row for each published number"}  # where a number is compared, and only there


def section(results: Results, pair: Pair) -> Markup:
    """Return a row for each published number and a picture of those in top-1, or why none is compared."""
    listed = beside(pair)
    if not listed:
        reason = uncompared(pair)
        return markup.note(reason) if reason else Markup()
    pictured = _pictured(listed)
    picture = draw(
        f"{pair.name}/published",
        "Top-1. Ours: a dot at the mean of the last epoch with its 95 % interval over seeds, a ring at that of the "
        "best epoch. Published: a bar for each number, dotted where its rule is not known.",
        intervals.height(len(pictured)),
        partial(_paint, pictured=pictured),
    )
    return Markup().join(
        [compared.table(listed), markup.figures([picture]), markup.note(_how(pair)), markup.numbers(FILES)]
    )


def _pictured(listed: list[Beside]) -> dict[str, list[Beside]]:
    """Return the numbers in top-1 by the name of our run."""
    by_run: dict[str, list[Beside]] = {}
    for number in listed:
        if number.row.metric == "top1":
            by_run.setdefault(number.name, []).append(number)
    return by_run


def _paint(ax: Axes, pictured: dict[str, list[Beside]]) -> None:
    for place, numbers in enumerate(pictured.values()):
        last, best = numbers[0].last, numbers[0].best
        for number in numbers:
            style = "dotted" if number.row.rule == "unknown" else "solid"
            ax.vlines(number.row.value, place - 0.32, place + 0.32, color=palette.DOWN, linestyle=style)
        if last.half is not None:
            ax.hlines(place, last.mean - last.half, last.mean + last.half, color=palette.INK, linewidth=2.0)
        ax.plot([best.mean], [place], marker="o", markersize=6.5, color=palette.INK, mfc="none", linestyle="")
        ax.plot([last.mean], [place], marker="o", markersize=4.6, color=palette.INK, linestyle="")
    intervals.rows(ax, list(pictured), "top-1, %")


def _how(pair: Pair) -> str:
    """Return how the numbers are compared, and what that cannot show."""
    if pair.dataset.chooser != "holdout":
        return compared.HOW
    return f"{compared.HOW} Our best epoch is chosen on a holdout, a stricter rule than to choose it on the test split."
