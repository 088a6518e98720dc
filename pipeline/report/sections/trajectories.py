"""How student, self-learning teachers and teacher approach each other during training."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from pipeline.report.drawing import markup, palette
from pipeline.report.drawing.figure import by_epoch, draw, line
from pipeline.report.drawing.palette import Style
from pipeline.report.results import Pair, Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Learning trajectories"
LEAD = "whether the self-learning teachers stay between student and teacher, and close to the student."
GROUP, ORDER = "pair", 50

NUMBERS = {"curves.csv": "columns that begin with distance"}


def section(results: Results, pair: Pair) -> Markup:
    """Return a picture for each run that has self-learning teachers."""
    runs = [run for run in pair.runs if run.diagnostics("distance")]
    if not runs:
        return Markup()
    # Of all runs together, so that a distance has one color in every picture.
    names = list(dict.fromkeys(name for run in runs for name in run.diagnostics("distance")))
    styles = {name: palette.series(number) for number, name in enumerate(names)}

    lead = markup.note(
        "Mean distance of the class probabilities of training samples, by epoch: 0 is the same, 1.41 two certain and "
        "different classes. The self-learning teachers count as one, by their fused logits."
    )

    legend = markup.legend([(_words(name), style) for name, style in styles.items()], 0)
    pictures = [
        draw(
            f"{pair.name}/{run.name}/distance",
            f"{run.title}: mean distances by epoch.",
            2.5,
            partial(_distances, run=run, styles=styles),
        )
        for run in runs
    ]
    return lead + legend + markup.figures(pictures)


def _words(name: str) -> str:
    first, _, second = name.partition(".")[2].partition("-")
    called = {"self": "self-learning"}
    return f"{called.get(first, first)} to {called.get(second, second)}"


def _distances(ax: Axes, run: Run, styles: dict[str, Style]) -> None:
    for name in run.diagnostics("distance"):
        line(ax, np.stack([student.column(name) for student in run.students]).mean(axis=0), styles[name])
    # From 0 on, where outputs are the same: how far they still are is what counts.
    ax.set_ylim(bottom=0)
    by_epoch(ax, "distance")
