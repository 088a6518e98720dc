"""How much of what tells classes apart the directions of an LDA hold."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.drawing import markup, palette, text
from pipeline.report.drawing.figure import draw
from pipeline.report.results import Results, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Linear discriminants"
LEAD = "after how many directions the line flattens: further ones separate the classes no better."
GROUP, ORDER = "closing", 60


def section(results: Results) -> Markup:
    """Return a figure for each table that has the explained ratio of its directions."""
    pictures = [_figure(table) for table in results.tables if table.has("explained")]
    return Markup("<section>{}</section>").format(markup.figures(pictures)) if pictures else Markup()


def _figure(table: Table) -> Markup:
    explained = 100 * table.arrays["explained"].astype(np.float64)
    caption = (
        f"{table.title}: share of the variance between classes of {table.feature} along each direction (bars), and of "
        f"all directions so far (line). {text.count(len(explained), 'direction')} of LDA: "
        f"{text.fixed(float(explained.sum()), 1)} %."
    )
    return draw(f"tables/{table.title}/explained", caption, 2.4, partial(paint, explained=explained))


def paint(ax: Axes, explained: NDArray[np.float64]) -> None:
    """Draw the share of each direction, (D,) in percent, and their running sum."""
    place = np.arange(1, len(explained) + 1)
    few = len(explained) <= 30  # of more, gaps and dots would run together
    ax.bar(place, explained, width=0.7 if few else 1.0, color=palette.SERIES[0], linewidth=0)
    mark = "o" if few else ""
    ax.plot(place, explained.cumsum(), color=palette.SERIES[1], marker=mark, markersize=3)
    ax.set_ylim(0, 104)
    ax.set_xlim(0.4, len(explained) + 0.6)
    ax.locator_params(axis="x", integer=True)
    ax.grid(visible=False, axis="x")
    ax.set_title("explained, %")
    ax.set_xlabel("direction")
