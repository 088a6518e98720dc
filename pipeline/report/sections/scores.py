"""Accuracy of every run of a pair: the table, every seed as a dot, and the gains over the baseline."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pipeline.params.sections import ALONE
from pipeline.report.drawing import intervals, markup, palette, text
from pipeline.report.drawing.figure import draw
from pipeline.report.results import Pair, Results, Run
from pipeline.report.trainings import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Accuracy"
LEAD = "whether the order of the runs holds in every seed, and how far the best still is from the teacher."
GROUP, ORDER = "pair", 10
NUMBERS = {"results.csv": "one row for each run and seed"}

SETTINGS = ("source", "slots", "views", "epochs")  # shown where runs differ in them


def section(results: Results, pair: Pair) -> Markup:
    """Return the table, every seed as a dot, and the gains over the baseline."""
    runs = _ordered(pair)
    pictures = [
        draw(
            f"{pair.name}/strip",
            "Top-1 of the last epoch: one dot for each seed, a bar at the mean. The dashed line is the teacher.",
            intervals.height(len(runs)),
            lambda ax: _strip(ax, pair, runs),
        )
    ]

    # Gains over the student alone are the overview's picture.
    baseline = pair.baseline
    # Of two runs the only gain is the one that the overview shows.
    if baseline is not None and len(runs) > 2:
        gains = [(run.title, run.gain(baseline)) for run in runs if run is not baseline]
        interval = ", with 95 % intervals: in color where they exclude zero" if len(results.seeds) > 1 else ""
        pictures.append(
            draw(
                f"{pair.name}/gain",
                f"Gain in top-1 over {BASELINE}, paired by seed{interval}.",
                intervals.height(len(gains)),
                partial(intervals.paint, gains=gains, title=f"gain over {BASELINE}, points of top-1"),
            )
        )
    return _table(pair, runs) + markup.figures(pictures)


def _ordered(pair: Pair) -> list[Run]:
    return [pair.alone, *(run for run in pair.ranked() if run is not pair.alone)]


def _table(pair: Pair, runs: list[Run]) -> Markup:
    # A column that says the same in every row would only take room.
    differing = [name for name in SETTINGS if len({_setting(run, name) for run in runs} - {None}) > 1]
    baseline = pair.baseline
    head = ["run", "composition", *differing, "top-1", f"gain over {ALONE}"]
    head += [f"gain over {BASELINE}"] if baseline else []
    head += ["top-5", f"best epoch's top-1 ({pair.dataset.chooser})", "agreement with teacher"]
    words = 2 + len(differing)
    best = pair.ranked()[0].name
    metrics = pair.teacher.trained.metrics

    rows: list[markup.Row] = [
        [
            markup.Cell(Markup("teacher <small>{}</small>").format(pair.teacher.name)),
            markup.Cell("alone", None, "quiet"),
            *(markup.NOTHING for _ in differing),
            markup.Cell(text.fixed(metrics["top1"]), metrics["top1"]),
            *(markup.NOTHING for _ in range(2 if baseline else 1)),
            markup.Cell(text.fixed(metrics["top5"]), metrics["top5"]),
            markup.Cell(text.fixed(metrics["best_top1"]), metrics["best_top1"], "quiet"),
            markup.NOTHING,
        ]
    ]

    for run in runs:
        row: list[markup.Cell | markup.Content] = [run.title, run.composition]
        row += [text.plain(_setting(run, name)) for name in differing]
        row.append(markup.mean(run.estimate("top1"), kind="best" if run.name == best else ""))
        row.append(markup.NOTHING if run is pair.alone else markup.gain(run.gain(pair.alone)))
        if baseline:
            row.append(markup.NOTHING if run is baseline else markup.gain(run.gain(baseline)))
        row.append(markup.mean(run.estimate("top5")))
        row.append(markup.mean(run.estimate("best_top1"), kind="quiet"))
        row.append(markup.mean(run.estimate("agreement"), 1))
        rows.append(row)

    return markup.table(head, rows, words)


def _setting(run: Run, name: str) -> Any:
    settings = run.settings
    if name == "epochs":
        return run.shared(name)
    if name == "views":
        return settings.views or "of the data set"
    if not settings.source:  # trained alone
        return None
    return settings.source if name == "source" else "unbounded" if settings.slots is None else settings.slots


def _strip(ax: Axes, pair: Pair, runs: list[Run]) -> None:
    styles = palette.styles(pair)
    for row, run in enumerate(runs):
        values, style = run.values("top1"), styles[run.name]
        middle = run.estimate("top1").mean
        ax.vlines(middle, row - 0.3, row + 0.3, color=style.color, linewidth=2.2)
        # One below the other, so that equal seeds do not hide each other.
        places = [row + 0.36 * ((seed + 0.5) / len(values) - 0.5) for seed in range(len(values))]
        ax.plot(
            values, places, linestyle="", marker="o", markersize=4.6, color=style.color, alpha=0.75, mew=0
        )

    teacher = pair.teacher.trained.metrics["top1"]
    ax.axvline(teacher, color=palette.INK, linewidth=1.1, dashes=(4, 3))
    intervals.rows(ax, [run.title for run in runs], "top-1, %")
