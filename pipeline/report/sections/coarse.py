"""Which classes the teacher does not tell apart in a stage: the tree of TDD's coarse labels."""

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

TITLE = "Coarse labels"
LEAD = "which classes share a label: a student of TDD need not tell them apart in that stage."
GROUP, ORDER = "closing", 78

MOST_WRITTEN = 120  # class names along an axis
CLASS_HEIGHT, TALLEST = 0.14, 12.0  # inches


def section(results: Results) -> Markup:
    """Return a picture of each tree."""
    pictures = [_figure(table) for table in results.tables if table.has("coarse", "linkage")]
    if not pictures:
        return Markup()
    words = (
        "Classes are merged by Ward's criterion, the nearest first; the axis is the height at which they are. Thick "
        "lines join classes that share a coarse label."
    )
    return Markup("<section>{}{}</section>").format(markup.figures(pictures), markup.note(words))


def _figure(table: Table) -> Markup:
    tree, coarse = table.arrays["linkage"], table.arrays["coarse"]
    classes = table.teacher.dataset.classes
    caption = (
        f"{table.title}: {text.count(int(coarse.max()) + 1, 'coarse label')} of "
        f"{text.count(len(coarse), 'class', 'classes')} in {table.feature}."
    )
    height = min(TALLEST, 0.9 + CLASS_HEIGHT * len(coarse))
    painted = partial(paint, tree=tree, coarse=coarse, classes=classes)
    return draw(f"tables/{table.title}/coarse", caption, height, painted)


def shared(tree: NDArray[np.float64], coarse: NDArray[np.int64]) -> list[bool]:
    """Return whether all classes below an inner node share a coarse label, (K - 1,).

    Args:
        tree: the linkage (K - 1, 4).
        coarse: label of each class, int64 (K,).
    """
    labels: list[int] = coarse.tolist()
    for left, right in tree[:, :2].astype(int).tolist():
        labels.append(labels[left] if labels[left] == labels[right] else -1)
    return [label >= 0 for label in labels[len(coarse) :]]


def paint(ax: Axes, tree: NDArray[np.float64], coarse: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    """Draw the tree of a linkage (K - 1, 4), its leaves along y."""
    from scipy.cluster.hierarchy import dendrogram

    joined = shared(tree, coarse)
    # The function of a node's color is how scipy tells which node a line is of.
    drawn = dendrogram(tree, no_plot=True, link_color_func=lambda node: str(node - len(coarse)))
    for along, height, node in zip(drawn["icoord"], drawn["dcoord"], drawn["color_list"], strict=True):
        same = joined[int(node)]
        ax.plot(height, along, color=palette.SERIES[1 if same else 0], linewidth=2.2 if same else 1.0)

    ax.set_xlim(left=0)
    ax.set_ylim(10 * len(coarse), 0)
    ax.grid(visible=False, axis="y")
    ax.set_title("height")
    if len(coarse) > MOST_WRITTEN:
        ax.set_yticks([])
        return
    # scipy's leaves stand at 5, 15, 25, ...
    places = 5 + 10 * np.arange(len(coarse))
    ax.set_yticks(places, [text.short(classes[leaf], 16) for leaf in drawn["leaves"]])
    ax.tick_params(axis="y", length=0)
