"""How DSKD weighs the shallow layers of each sample, by epoch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from pipeline.report.drawing import markup, palette
from pipeline.report.drawing.figure import THIRD, by_epoch, draw, line
from pipeline.report.drawing.palette import Style
from pipeline.report.results import Pair, Results, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "DSKD layer weights"
LEAD = (
    "whether samples differ in the layer that teaches them: wide bands say so, and a layer near zero "
    "is not used."
)
GROUP, ORDER = "pair", 40
NUMBERS = {"curves.csv": "columns that begin with weight"}

KINDS = {"kd": "logits", "map": "maps"}


def section(results: Results, pair: Pair) -> Markup:
    """Return a picture for each layer and kind of the runs that weigh them."""
    pictures = []
    styles = palette.styles(pair)
    for run in pair.runs:
        # "weight.<kind>.<position>.<percent>"
        places = dict.fromkeys(name.rpartition(".")[0] for name in run.diagnostics("weight"))
        for place in places:
            _, kind, position = place.split(".")
            words = f"{run.title}: {position}, {KINDS.get(kind, kind)}."
            # A run in gray has no color of its own to be drawn in.
            style = Style(styles[run.name].color if styles[run.name].named else palette.SERIES[0], "o", ())
            paint = partial(
                _bands, run=run, place=place, style=style, title=f"{position}, {KINDS.get(kind, kind)}"
            )
            pictures.append(draw(f"{pair.name}/{run.name}/{place}", words, 2.2, paint, THIRD))

    if not pictures:
        return Markup()
    lead = markup.note(
        "The share of a layer's loss in the sum over the shallow layers, of every training sample: median, and bands "
        "of the middle half and of nine tenths of the samples, mean over seeds. The shares of one sample sum to one."
    )
    return lead + markup.figures(pictures, 3)


def _bands(ax: Axes, run: Run, place: str, style: Style, title: str) -> None:
    def column(percent: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        values: np.ndarray[tuple[int], np.dtype[np.float64]] = np.stack(
            [student.column(f"{place}.{percent}") for student in run.students]
        ).mean(axis=0)
        return values

    median = column(50)
    epochs = np.arange(1, len(median) + 1)
    # Both are pale: where they lie over each other, in the middle half, the color is stronger.
    for low, high in ((5, 95), (25, 75)):
        ax.fill_between(epochs, column(low), column(high), color=style.color, alpha=0.18, linewidth=0)
    line(ax, median, style)
    ax.set_ylim(0, 1)
    by_epoch(ax, title)
