"""Accuracy of every run of a pair: the table, every seed as a dot, and the paired gains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pipeline.params.project import ALONE
from pipeline.report.drawing import markup, palette, text
from pipeline.report.drawing.figure import draw
from pipeline.report.results import BASELINE, Pair, Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Accuracy"
SETTINGS = ("source", "slots", "epochs")  # shown where runs differ in them


def section(results: Results, pair: Pair) -> Markup:
    """Return the table and the two figures of a pair."""
    runs = _ordered(pair)
    height = 0.75 + 0.27 * len(runs)
    pictures = [
        draw(
            f"{pair.name}/strip",
            "Top-1 of the last epoch: a dot a seed, a bar at the mean. The dashed line is the teacher.",
            height,
            lambda ax: _strip(ax, pair, runs),
        )
    ]
    if len(runs) > 1:
        interval = ", with its 95 % interval" if len(results.seeds) > 1 else ""
        pictures.append(
            draw(
                f"{pair.name}/gain",
                f"Gain in top-1 over the student alone, paired by seed{interval}.",
                height,
                lambda ax: _forest(ax, pair, runs),
            )
        )
    return _table(pair, runs) + markup.figures(pictures)


def _ordered(pair: Pair) -> list[Run]:
    return [pair.alone, *(run for run in pair.ranked() if run is not pair.alone)]


def _table(pair: Pair, runs: list[Run]) -> Markup:
    differing = [name for name in SETTINGS if len({_setting(run, name) for run in runs} - {None}) > 1]
    baseline = pair.baseline
    head = ["run", "method", *differing, "top-1", f"gain over {ALONE}"]
    head += [f"gain over {BASELINE}"] if baseline else []
    head += ["top-5", f"best epoch's top-1 ({pair.dataset.chooser})", "same class as teacher"]
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
        row: list[markup.Cell | markup.Content] = [run.name, run.method]
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
    if run.name != ALONE and name == "slots" and run.setting(name) is None:
        return "no end"
    return run.setting(name)


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
    _rows(ax, runs, "top-1, %")


def _forest(ax: Axes, pair: Pair, runs: list[Run]) -> None:
    styles = palette.styles(pair)
    ax.axvline(0, color=palette.MUTED, linewidth=1.1)
    for row, run in enumerate(runs[1:], start=1):
        gain, style = run.gain(pair.alone), styles[run.name]
        if gain.half is not None:
            ends = (gain.mean - gain.half, gain.mean + gain.half)
            ax.hlines(row, *ends, color=style.color, linewidth=2.2)
            ax.vlines(ends, row - 0.16, row + 0.16, color=style.color, linewidth=1.6)
        ax.plot([gain.mean], [row], marker="D", markersize=5, color=style.color, mew=0)
    _rows(ax, runs, f"top-1 minus that of {ALONE}, points")


def _rows(ax: Axes, runs: list[Run], title: str) -> None:
    ax.set_yticks(range(len(runs)), [text.short(run.name) for run in runs])
    ax.tick_params(axis="y", length=0, labelcolor=palette.INK)
    ax.set_ylim(len(runs) - 0.45, -0.55)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.06)
    ax.locator_params(axis="x", nbins=6)
    ax.set_title(title)
