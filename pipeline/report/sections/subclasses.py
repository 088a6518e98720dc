"""Which sub-classes the teacher takes for which: the score matrix of letKD's discriminative layer."""

from __future__ import annotations

import math
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

TITLE = "Sub-class scores"
LEAD = "whether the diagonal is dark: then a pixel's own sub-class is also the nearest of all."
GROUP, ORDER = "closing", 70

COLOR = (0, 114, 178)  # the first of `palette.SERIES`
MOST_WIDE = 1000  # cells of a picture
MOST_WRITTEN = 20  # class names along an axis


def section(results: Results) -> Markup:
    """Return a picture of each score matrix."""
    pictures = [_figure(table) for table in results.tables if table.has("scores", "per_class")]
    if not pictures:
        return Markup()
    words = (
        "Rows are the sub-class of a pixel within its own class (h1), columns the one that is nearest of all classes "
        "(h2), as a share of the row's pixels. Lines part the classes: within a square on the diagonal the class is "
        "right. Color grows with the square root, so that rare mistakes are seen."
    )
    return Markup("<section>{}{}</section>").format(markup.figures(pictures), markup.note(words))


def _figure(table: Table) -> Markup:
    scores, per_class = table.arrays["scores"], int(table.arrays["per_class"])
    number, step = len(scores), _step(len(scores))
    label = np.arange(number) // per_class
    right = 100 * float(scores[label[:, None] == label].sum()) / number
    caption = (
        f"{table.title}: {text.count(number, table.unit, table.units)}, {per_class} of each class. On average a "
        f"sub-class keeps {text.fixed(100 * float(np.diag(scores).mean()), 1)} % of its pixels, and "
        f"{text.fixed(right, 1)} % stay in their class."
    )
    if step > 1:
        caption += f" A cell is the largest of {step}{text.TIMES}{step} scores."
    painted = partial(paint, scores=scores, per_class=per_class, classes=table.teacher.dataset.classes)
    return draw(f"tables/{table.title}/scores", caption, 4.1, painted)


def cells(scores: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the picture of scores (n, n) in [0, 1]: RGBA (m, m, 4), of at most `MOST_WIDE` cells a side.

    The page shines through where scores are small. A cell of a larger matrix is the largest of its scores: a mean
    would hide the rare ones.
    """
    step = _step(len(scores))
    padding = -len(scores) % step
    # (m, step, m, step): each cell of the picture is a block of scores.
    parts = np.pad(scores, (0, padding)).reshape(len(scores) // step + bool(padding), step, -1, step)
    strength = np.sqrt(parts.max(axis=(1, 3)))  # (m, m)
    image = np.empty((*strength.shape, 4), np.uint8)
    image[..., :3] = COLOR
    image[..., 3] = np.round(255 * np.clip(strength, 0, 1))
    return image


def _step(number: int) -> int:
    return math.ceil(number / MOST_WIDE)


def paint(ax: Axes, scores: NDArray[np.float32], per_class: int, classes: tuple[str, ...]) -> None:
    """Draw scores (n, n), classes parted by lines."""
    number, image = len(scores), cells(scores)
    end = len(image) * _step(number) - 0.5
    ax.imshow(image, interpolation="none", extent=(-0.5, end, end, -0.5))
    ax.set(xlim=(-0.5, number - 0.5), ylim=(number - 0.5, -0.5))
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(True)

    width = 0.8 if len(classes) <= MOST_WRITTEN else 0.3
    for edge in np.arange(1, number // per_class) * per_class - 0.5:
        ax.axhline(edge, color=palette.FAINT, linewidth=width)
        ax.axvline(edge, color=palette.FAINT, linewidth=width)

    ax.set_ylabel("h1")
    ax.set_xlabel("h2")
    if len(classes) > MOST_WRITTEN:
        ax.locator_params(nbins=6, integer=True)
        return

    names = [text.short(name, 12) for name in classes]
    middle = np.arange(len(classes)) * per_class + (per_class - 1) / 2
    ax.set_xticks(middle, names)
    if max(map(len, names)) > 2:
        for tick in ax.get_xticklabels():
            tick.set(rotation=90, rotation_mode="anchor", ha="right", va="center")
    ax.set_yticks(middle, names)
    ax.tick_params(length=0)
