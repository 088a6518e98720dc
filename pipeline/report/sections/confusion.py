"""Which classes are taken for which: the teacher, the best run of the pair, and the difference."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.drawing import markup, text
from pipeline.report.drawing.figure import THIRD, draw
from pipeline.report.results import Dataset, Pair, Results, Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Confusion matrices"
LEAD = "which mistakes of the teacher the student repeats, and which are its own."
GROUP, ORDER = "pair", 60
NUMBERS = {"confusion/{pair}.csv": "every test sample of the best run, first seed"}

MOST_WRITTEN = 20  # classes; with more, names and numbers would not be readable
MOST_PAIRS = 10
MORE, LESS, WHITE = (0.769, 0.271, 0.110), (0.0, 0.447, 0.698), "#ffffff"

# (K, K): of the samples of a class (row), which part is taken for which, in percent.
Shares = NDArray[np.float64]


def section(results: Results, pair: Pair) -> Markup:
    """Return three matrices and the most confused pairs of classes."""
    run, dataset = pair.best, pair.dataset
    teacher = shares(dataset, [pair.teacher.trained])
    student = shares(dataset, run.students)
    over = f", mean over {len(run.students)} seeds" if len(run.students) > 1 else ""
    drawn = [
        ("teacher", f"Teacher {pair.teacher.name}.", teacher, False),
        ("student", f"{run.title}{over}.", student, False),
        (
            "difference",
            f"{run.name} minus teacher, in points: orange is more often, blue less.",
            student - teacher,
            True,
        ),
    ]

    pictures = [
        draw(
            f"{pair.name}/confusion/{name}",
            caption,
            3.4,
            partial(_matrix, values=values, classes=dataset.classes, difference=difference),
            THIRD,
        )
        for name, caption, values, difference in drawn
    ]

    lead = markup.note(
        "Rows are the labels, columns what was predicted by the last epoch, in percent of the row's class. "
        "Color grows with the square root, so that rare mistakes are seen."
    )
    return lead + markup.figures(pictures, 3) + _words(dataset.classes, teacher, student, run.name)


def shares(dataset: Dataset, networks: list[Trained] | tuple[Trained, ...]) -> Shares:
    """Return the confusion matrix in percent of each row, mean over networks; a class without samples is 0."""
    size, label = len(dataset.classes), dataset.labels
    counts = np.zeros((size, size))
    for network in networks:
        places = label * size + network.prediction.astype(np.int64)
        counts += np.bincount(places, minlength=size**2).reshape(size, size)

    percent: Shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    return percent


def _matrix(ax: Axes, values: Shares, classes: tuple[str, ...], difference: bool) -> None:
    size = len(classes)
    # Below five points a difference stays pale: it would look like much on a scale of its own.
    top = max(5.0, float(np.abs(values).max())) if difference else 100.0
    strength = 0.92 * np.sqrt(np.abs(values) / top)
    color = np.where(values[..., None] > 0, MORE if difference else LESS, LESS)
    image = np.concatenate([color, strength[..., None]], axis=2)  # (K, K, RGBA): the page shines through
    ax.imshow(np.round(255 * image).astype(np.uint8), interpolation="none")
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(True)

    if size > MOST_WRITTEN:
        ax.locator_params(nbins=6, integer=True)
        return

    names = [text.short(name, 12) for name in classes]
    slanted = max(map(len, names)) > 2
    ax.set_xticks(range(size), names)
    if slanted:
        for label in ax.get_xticklabels():
            label.set(rotation=90, rotation_mode="anchor", ha="right", va="center")
    ax.set_yticks(range(size), names)
    ax.tick_params(length=0)

    # Zeros stay blank, so that mistakes stand out.
    for row, column in zip(*np.nonzero(np.abs(values) >= 0.05), strict=True):
        value = float(values[row, column])
        short = text.fixed(value, 0 if abs(value) >= 9.95 else 1)
        light: dict[str, Any] = {"color": WHITE} if strength[row, column] > 0.55 else {}
        ax.text(column, row, short, ha="center", va="center", fontsize=7.5 if size <= 12 else 5, **light)


def _words(classes: tuple[str, ...], teacher: Shares, student: Shares, name: str) -> Markup:
    # Mistakes alone: the diagonal is what is right.
    wrong = np.where(np.eye(len(classes), dtype=bool), 0.0, student)
    places = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    items = []
    for place in places:
        row, column = divmod(int(place), len(classes))
        if wrong[row, column] > 0:
            items.append(
                Markup("<li><b>{}</b> taken for <b>{}</b>: {} % <small>(teacher {} %)</small></li>").format(
                    classes[row],
                    classes[column],
                    text.fixed(student[row, column], 1),
                    text.fixed(teacher[row, column], 1),
                )
            )

    if not items:
        return markup.note(f"{name} takes no class for another.")
    return Markup("<h4>What {} confuses most</h4><ol class=words>{}</ol>").format(name, Markup().join(items))
