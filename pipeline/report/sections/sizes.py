"""How the pixels are spread over words, kernels or sub-classes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.drawing import markup, palette, text
from pipeline.report.drawing.figure import draw, logarithmic
from pipeline.report.results import Results, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Cluster sizes"
LEAD = (
    "whether the pixels spread over all clusters: a steep start or empty clusters say that there are "
    "too many."
)
GROUP, ORDER = "closing", 50

UNEVEN = 30  # times as large as the smallest: from there on the axis is logarithmic


def section(results: Results) -> Markup:
    """Return a figure for each table that parts the pixels."""
    pictures = [_figure(table) for table in results.tables if table.has("counts")]
    if not pictures:
        return Markup()
    words = (
        "The dashed line is an even share. A cluster is empty if no pixel of the training data falls to it."
    )
    return Markup("<section>{}{}</section>").format(markup.figures(pictures), markup.note(words))


def _figure(table: Table) -> Markup:
    counts = table.arrays["counts"]
    empty = int((counts == 0).sum())
    caption = (
        f"{table.title}: {text.count(len(counts), table.unit, table.units)} of {table.feature} by size, "
        f"{text.amount(int(counts.sum()))} pixels in all; {empty or 'none'} empty."
    )
    return draw(f"tables/{table.title}/sizes", caption, 2.4, partial(paint, counts=counts, unit=table.unit))


def paint(ax: Axes, counts: NDArray[np.int64], unit: str) -> None:
    """Draw sizes int64 (K,), the largest first; what is empty is marked."""
    from matplotlib.ticker import FuncFormatter

    sizes = np.sort(counts)[::-1]
    some, number = int((sizes > 0).sum()), len(sizes)
    edges = np.arange(number + 1) + 0.5  # the rank is the middle of its step
    # One huge cluster would press the others against the axis.
    uneven = some > 0 and sizes[0] > UNEVEN * sizes[some - 1]
    floor = 0.5 * float(sizes[some - 1]) if uneven else 0.0
    shape: dict[str, Any] = {"baseline": floor, "fill": True, "color": palette.SERIES[0], "linewidth": 0}
    ax.stairs(sizes[:some].astype(float), edges[: some + 1], **shape)
    ax.axhline(sizes.mean(), color=palette.MUTED, linewidth=1, dashes=(3, 2))

    if some < number:
        color = palette.SERIES[5]
        ax.axvspan(edges[some], edges[-1], color=color, alpha=0.25, linewidth=0)
        ax.axvline(edges[some], color=color, linewidth=1.2)  # seen where there are few of many
        ax.set_title(f"{number - some} empty", loc="right", color=color)

    if uneven:
        logarithmic(ax)
        ax.set_ylim(floor)

    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text.amount(value)))
    ax.set_xlim(edges[0], edges[-1])
    ax.locator_params(axis="x", integer=True)
    ax.grid(visible=False, axis="x")
    ax.set_title("pixels")
    ax.set_xlabel(f"{unit} by size")
