"""Published numbers beside measured ones, where data set, networks and what a run consists of are the same."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from markupsafe import Markup

from pipeline.report.beside import Beside, beside, uncompared
from pipeline.report.drawing import intervals, markup, palette, text
from pipeline.report.drawing.figure import draw
from pipeline.report.results import Pair, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Published beside measured"
LEAD = "whether the interval of a difference includes zero, and what else differs: epochs, the teacher, the rule."
GROUP, ORDER = "pair", 12

FILES = {"published.csv": "one row for each published number"}  # where a number is compared, and only there
METRICS = {"top1": "", "top5": "top-5"}


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
        [_table(listed), markup.figures([picture]), markup.note(_how(pair)), markup.numbers(FILES)]
    )


def _pictured(listed: list[Beside]) -> dict[str, list[Beside]]:
    """Return the numbers in top-1 by the name of our run."""
    by_run: dict[str, list[Beside]] = {}
    for compared in listed:
        if compared.row.metric == "top1":
            by_run.setdefault(compared.name, []).append(compared)
    return by_run


def _table(listed: list[Beside]) -> Markup:
    """Return a row for each number, and below the table what its notes are."""
    # Notes are as long as a table is wide, and many rows share them.
    remarks = list(dict.fromkeys(remark for compared in listed for remark in compared.remarks))
    rows: list[markup.Row] = []
    for compared in listed:
        row, metric = compared.row, METRICS[compared.row.metric]
        name = Markup("{} <small>{}</small>").format(compared.name, metric) if metric else compared.name
        by_best = row.rule == "best"
        notes = ", ".join(str(1 + remarks.index(remark)) for remark in compared.remarks)
        rows.append(
            [
                name,
                Markup("{} <small>{}</small>").format(row.method, compared.citation),
                row.rule,
                _interval(row.value, row.std),
                _interval(compared.last.mean, compared.last.half, "quiet" if by_best else ""),
                _interval(compared.best.mean, compared.best.half, "" if by_best else "quiet"),
                markup.gain(compared.difference),
                markup.Cell(f"{compared.epochs}, {text.plain(row.epochs)}", compared.epochs),
                markup.Cell(str(compared.last.count), compared.last.count),
                markup.Cell(notes, None, "quiet"),
            ]
        )

    head = ["run", "published as", "rule", "published", "ours, last epoch", "ours, best epoch", "difference"]
    table = markup.table([*head, "epochs: ours, theirs", "our seeds", "notes"], rows, 3)
    listing = "; ".join(f"({number}) {remark}" for number, remark in enumerate(remarks, start=1))
    return table + (markup.note(f"Notes: {listing}.") if remarks else Markup())


def _interval(value: float, half: float | None, kind: str = "") -> markup.Cell:
    shown: markup.Content = text.fixed(value)
    if half is not None:
        shown = Markup("{} <small>{} {}</small>").format(shown, text.ABOUT, text.fixed(half))
    return markup.Cell(shown, value, kind)


def _paint(ax: Axes, pictured: dict[str, list[Beside]]) -> None:
    for place, numbers in enumerate(pictured.values()):
        last, best = numbers[0].last, numbers[0].best
        for compared in numbers:
            style = "dotted" if compared.row.rule == "unknown" else "solid"
            ax.vlines(compared.row.value, place - 0.32, place + 0.32, color=palette.DOWN, linestyle=style)
        if last.half is not None:
            ax.hlines(place, last.mean - last.half, last.mean + last.half, color=palette.INK, linewidth=2.0)
        ax.plot([best.mean], [place], marker="o", markersize=6.5, color=palette.INK, mfc="none", linestyle="")
        ax.plot([last.mean], [place], marker="o", markersize=4.6, color=palette.INK, linestyle="")
    intervals.rows(ax, list(pictured), "top-1, %")


def _how(pair: Pair) -> str:
    """Return how the numbers are compared, and what that cannot show."""
    words = (
        f"{text.ABOUT} after ours is half its 95 % t-interval over seeds, and after a published number its standard "
        "deviation over trials. A difference is ours less the published number, by the rule that it was published by: "
        "the last epoch's, or that of the best epoch on the test split; where the rule is unknown, the last epoch's. "
        "It takes the published number for exact, and is in color where the interval excludes zero. "
    )
    if pair.dataset.chooser == "holdout":
        words += (
            "Our best epoch is chosen on a holdout, a stricter rule than to choose it on the test split. "
        )
    return words + "Weights, temperatures and other numbers of a method may differ from those of its source."
