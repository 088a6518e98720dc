"""How the students of a pair were trained: what they are measured by, and every term of the loss, by epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.detectors import BoxPair
from pipeline.report.drawing import markup, palette, text
from pipeline.report.drawing.figure import THIRD, by_epoch, draw, line, logarithmic
from pipeline.report.drawing.palette import DASHES, Style
from pipeline.report.results import Pair, Results
from pipeline.report.trainings import LABELS, InSeeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Training curves"
LEAD = "whether training has settled before its last epoch, and whether each term of a loss still falls."
GROUP, ORDER = "pair", 30
NUMBERS = {"curves.csv": "one row for each run, seed and epoch"}
DETECTION = {"detection_curves.csv": "one row for each detector and epoch"}

MEASURES = {"top1": "Top-1", "AP": "AP"}
Curves = NDArray[np.float64]  # (S, epochs)


def section(results: Results, pair: Pair | BoxPair) -> Markup:
    """Return the curves of a pair."""
    runs = [run for run in pair.runs if run.students[0].history]
    if not runs:
        return Markup()

    styles = palette.styles(pair)
    runs.sort(key=lambda run: styles[run.name].named)  # gray below color

    band = (
        ": the mean over seeds, and the band from the lowest to the highest" if len(results.seeds) > 1 else ""
    )
    measure = pair.alone.measure
    paint: Callable[[Axes], None] = partial(_measure, runs=runs, styles=styles)
    pictures = [draw(f"{pair.name}/{measure}", f"{MEASURES[measure]} by epoch{band}.", 2.7, paint)]

    # What a student alone minimizes all runs do, as a rule: cross-entropy, or a detector's own losses.
    labels = pair.alone.terms or [LABELS]
    for name in labels:
        shared = [run for run in runs if name in run.terms]
        if shared:
            kind = "Cross-entropy with the labels" if name == LABELS else "A loss of the detector's own"
            title = "cross-entropy" if name == LABELS else name
            paint = partial(_terms, runs=shared, styles=styles, names=[name], title=title)
            pictures.append(
                draw(f"{pair.name}/{name}", f"{kind} ({name}), unweighted, by epoch.", 2.7, paint)
            )

    # The other terms are a run's own: a picture for each run.
    own: list[Markup] = []
    for run in sorted(runs, key=lambda run: [other.name for other in pair.runs].index(run.name)):
        names = [name for name in run.terms if name not in labels]
        if names and styles[run.name].named:
            words = f"{run.title}: {', '.join(names)}, unweighted, by epoch."
            title = f"{run.name}: {names[0] if len(names) == 1 else 'terms'}"
            paint = partial(_terms, runs=[run], styles=styles, names=names, title=text.short(title, 40))
            own.append(draw(f"{pair.name}/{run.name}/terms", words, 2.3, paint, THIRD))

    named = [(run.title, styles[run.name]) for run in pair.runs if run in runs and styles[run.name].named]
    rest = sum(not styles[run.name].named for run in runs)
    parts = [markup.legend(named, rest), markup.figures(pictures)]
    if own:
        parts.append(markup.figures(own, 3))
    return Markup().join(parts)


def _measure(ax: Axes, runs: Sequence[InSeeds[Any]], styles: dict[str, Style]) -> None:
    floors, tops, measure = [], [], runs[0].measure
    for run in runs:
        curves = _curves(run, measure)
        # Of a detector's training some epochs are evaluated: the line leads from one to the next.
        epochs = np.flatnonzero(np.isfinite(curves).all(axis=0))
        curves = curves[:, epochs]
        _line(ax, curves, styles[run.name], epochs + 1)
        floors.append(curves[:, curves.shape[1] // 4 :].min())
        tops.append(curves.max())

    low, high = min(floors), max(tops)
    # The first epochs say little and would press the rest against the top.
    ax.set_ylim(low - 0.08 * (high - low + 0.1), high + 0.06 * (high - low + 0.1))
    by_epoch(ax, f"{measure.replace('top1', 'top-1')}, %")


def _terms(
    ax: Axes, runs: Sequence[InSeeds[Any]], styles: dict[str, Style], names: list[str], title: str
) -> None:
    positive, ends = True, []
    for run in runs:
        for number, name in enumerate(names):
            curves, style = _curves(run, name), styles[run.name]
            dash = style.dash if len(names) == 1 else DASHES[number % len(DASHES)]
            _line(ax, curves, Style(style.color, style.mark, dash, style.named))
            positive &= bool(np.nanmin(curves) > 0)
            last = int(np.flatnonzero(np.isfinite(curves).all(axis=0))[-1])
            ends.append((name, last + 1, float(curves[:, last].mean())))

    if positive:
        logarithmic(ax)
    by_epoch(ax, title)
    if len(names) > 1:
        _labels(ax, ends)


def _labels(ax: Axes, ends: list[tuple[str, int, float]]) -> None:
    """Write each term's name at its curve's end, one above the other where they are close."""
    ax.autoscale_view()
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = sorted((float(to_axes.transform((epoch, value))[1]), name) for name, epoch, value in ends)

    below = -1.0
    for height, name in heights:
        below = max(below + 0.095, height)
        ax.annotate(
            text.short(name, 14),
            (1.02, below),
            xycoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )


def _line(ax: Axes, curves: Curves, style: Style, epochs: NDArray[np.int64] | None = None) -> None:
    epochs = np.arange(1, curves.shape[1] + 1) if epochs is None else epochs
    if style.named and len(curves) > 1:
        low, high = curves.min(axis=0), curves.max(axis=0)
        ax.fill_between(epochs, low, high, color=style.color, alpha=0.16, linewidth=0)
    line(ax, curves.mean(axis=0), style, epochs)


def _curves(run: InSeeds[Any], name: str) -> Curves:
    return np.stack([student.column(name) for student in run.students])
