"""Sub-classes on an image, and which others the teacher takes them for (letKD's figure S2)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.drawing import markup, palette, text
from pipeline.report.drawing.figure import draw
from pipeline.report.results import PICTURED, Results, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Sub-classes of an image"
LEAD = "whether parts of an object have sub-classes of their own, and those that the teacher takes them for look alike."
GROUP, ORDER = "closing", 72

MOST_NAMED = 3  # sub-classes of an image with their rows of scores
MOST_CONFUSED = 4  # scores of a row
LEAST = 0.005  # a score below is written as 0 %


class Shown(NamedTuple):
    """An image, and what its pixels fall to.

    Attributes:
        image: uint8 (C, H, W).
        assigned: the sub-class of each pixel of the teacher's map, int64 (h, w).
        order: those that occur, the most frequent first, int64 (n,).
        scores: of all sub-classes, (M, M).
        per_class: sub-classes of each class.
        classes: their names.
    """

    image: NDArray[np.uint8]
    assigned: NDArray[np.int64]
    order: NDArray[np.int64]
    scores: NDArray[np.float32]
    per_class: int
    classes: tuple[str, ...]

    def color(self, subclass: int) -> str:
        """Return the color of a sub-class: gray for those after the sixth."""
        place = int(np.flatnonzero(self.order == subclass)[0])
        return palette.SERIES[place] if place < len(palette.SERIES) else palette.FAINT

    def name(self, subclass: int) -> str:
        """Return a sub-class in words: its class, and its number there."""
        label, number = divmod(subclass, self.per_class)
        return f"{text.short(self.classes[label], 13)} {number}"


def section(results: Results) -> Markup:
    """Return pictures of a few training images for each table of sub-classes."""
    tables = [table for table in results.tables if table.has("scores", "per_class", *PICTURED)]
    parts = [_table(table) for table in tables if len(table.arrays["pictured"])]
    if not parts:
        return Markup()
    words = (
        "Each pixel of the teacher's map has the color of its sub-class: the nearest one of the image's class (h1). "
        "Beside the image are its most frequent ones, and for each the largest entries of its row of scores (p_T): how "
        "often the nearest of all classes (h2) is which. In color is the sub-class itself, in a lighter shade the "
        "others of its class, in gray those of other classes. Of each class the first training image is shown."
    )
    return markup.note(words) + Markup().join(parts)


def _table(table: Table) -> Markup:
    split = table.teacher.dataset.prepared.split("train")
    pictures = []
    for sample, assigned in zip(*(table.arrays[name] for name in PICTURED), strict=True):
        subclasses, counts = np.unique(assigned, return_counts=True)
        shown = Shown(
            np.asarray(split.images[int(sample)]),
            assigned,
            subclasses[np.argsort(-counts, kind="stable")],
            table.arrays["scores"],
            int(table.arrays["per_class"]),
            table.teacher.dataset.classes,
        )
        label = table.teacher.dataset.classes[int(split.labels[int(sample)])]
        number = text.count(len(subclasses), table.unit, table.units)
        size = text.TIMES.join(map(str, assigned.shape))
        caption = f"{table.title}: {label}, sample {sample}; {number} on {size} pixels."
        name = f"tables/{table.title}/decisions/{sample}"
        pictures.append(draw(name, caption, 2.5, partial(paint, shown=shown)))
    return Markup("<section><h3>{}</h3>{}</section>").format(table.title, markup.figures(pictures))


def paint(ax: Axes, shown: Shown) -> None:
    """Draw the image, the sub-classes over it, and beside them what the teacher takes these for."""
    ax.set_axis_off()
    plain, covered = (ax.inset_axes((0, bottom, 0.3, 0.47)) for bottom in (0.53, 0))
    paint_image(plain, shown.image)
    # Gray, so that the colors are those of the bars.
    paint_image(covered, shown.image.mean(axis=0, keepdims=True).astype(np.uint8))
    paint_subclasses(covered, shown)
    paint_scores(ax.inset_axes((0.56, 0, 0.36, 1)), shown)


def paint_image(ax: Axes, image: NDArray[np.uint8]) -> None:
    """Draw an image uint8 (C, H, W) without axes."""
    pixels = np.repeat(image[:1], 3, axis=0) if len(image) < 3 else image[:3]
    height, width = image.shape[1:]
    ax.imshow(np.moveaxis(pixels, 0, -1), interpolation="none", extent=(0, width, height, 0))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.set_axis_off()


def paint_subclasses(ax: Axes, shown: Shown) -> None:
    """Cover an image with the colors of its map's sub-classes."""
    from matplotlib.patches import Rectangle

    height, width = (
        length / cells for length, cells in zip(shown.image.shape[1:], shown.assigned.shape, strict=True)
    )
    for row, column, length, subclass in runs(shown.assigned):
        corner = (column * width, row * height)
        color = shown.color(subclass)
        ax.add_patch(Rectangle(corner, length * width, height, facecolor=color, alpha=0.7, linewidth=0))


def runs(assigned: NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
    """Give the runs of equal sub-classes in the rows of a map (h, w): row, column, length, sub-class."""
    for row, line in enumerate(assigned):
        starts = np.flatnonzero(np.diff(line, prepend=-1))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(line)], strict=True):
            yield row, start, stop - start, int(line[start])


def paint_scores(ax: Axes, shown: Shown) -> None:
    """Draw the largest scores of the rows of the most frequent sub-classes, as bars below each other."""
    names: list[str] = []
    places: list[float] = []
    place = 0.0
    for subclass in shown.order[:MOST_NAMED].tolist():
        pixels = text.count(int((shown.assigned == subclass).sum()), "pixel")
        words, color = f"{shown.name(subclass)}: {pixels}", shown.color(subclass)
        ax.text(0.02, place, words, color=color, fontsize=7.5, va="center")
        for other, score in confused(shown.scores[subclass]):
            place += 1
            color, alpha = shown.color(subclass), 1.0
            if other // shown.per_class != subclass // shown.per_class:
                color = palette.FAINT
            elif other != subclass:
                alpha = 0.45
            ax.barh(place, score, 0.8, color=color, alpha=alpha)
            ax.text(score + 0.02, place, f"{100 * score:.0f} %", fontsize=7, va="center")
            names.append(shown.name(other))
            places.append(place)
        place += 1.5

    ax.set(xlim=(0, 1.05), ylim=(max(place - 0.8, 1), -0.8))
    ax.set_yticks(places, names, fontsize=7)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines["bottom"].set_visible(False)


def confused(row: NDArray[np.float32]) -> list[tuple[int, float]]:
    """Return the largest scores of a row (M,) with their sub-classes, the largest first, without those of 0 %."""
    largest = np.argsort(-row, kind="stable")[:MOST_CONFUSED]
    return [(int(other), float(row[other])) for other in largest if row[other] >= LEAST]
