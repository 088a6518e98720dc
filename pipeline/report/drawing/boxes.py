"""Boxes over images: the truth beside what detectors find, each image once on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pipeline.report.detectors import BoxData, Detector
from pipeline.report.drawing import markup, palette
from pipeline.report.drawing.picture import png

SHOWN = 4  # images
LARGEST = 240  # pixels of one
COLORS = 96  # of one: photos in all colors would make the page large
SUREST = 0.5  # what a detector is less sure of is not drawn
MOST = 20  # boxes of an image


@dataclass(frozen=True)
class Box:
    """A box that is drawn.

    Attributes:
        edges: left, top, right and bottom, in pixels of the image.
        label: its class.
        title: what is said of it.
    """

    edges: tuple[float, float, float, float]
    label: int
    title: str


def gallery(data: BoxData, detectors: Mapping[str, Detector], name: str) -> Markup:
    """Return the first test images that have objects: the truth, and what each detector finds.

    Args:
        data: the data set.
        detectors: by title; what their last weights find is drawn.
        name: begins the identifiers of the images, one of its kind on the page.
    """
    split = data.test
    if not split.files.here.is_dir():
        return markup.note(f"The images stay in {split.files.root}, which is not on this machine.")

    rows = _with_objects(data)[:SHOWN]
    strips = [_strip(data, detectors, row, f"{name}-{row}") for row in rows]
    words = (
        f"The first {len(rows)} test images with objects: the truth, and what is found with a score of at least "
        f"{SUREST} (the surest {MOST}; of students, by the first seed). Color is by class."
    )
    return Markup().join([*strips, markup.note(words)])


def _with_objects(data: BoxData) -> list[int]:
    """Return the rows of the images that have objects to find."""
    kept = data.test.annotations
    images = np.repeat(np.arange(len(data.test)), np.diff(kept.offsets))
    rows: list[int] = np.unique(images[~kept.crowd]).tolist()
    return rows


def _strip(data: BoxData, detectors: Mapping[str, Detector], row: int, name: str) -> Markup:
    """Return an image with the boxes of the truth, and again with those of each detector."""
    image = np.moveaxis(np.asarray(data.test.image(row), np.uint8), -1, 0)
    height, width = image.shape[1:]
    # Its own style: that of the page would not hold where the image is used again.
    picture = Markup('<image id="{}" width="{}" height="{}" style="image-rendering:auto" href="{}"/>').format(
        name, width, height, png(image, LARGEST, COLORS)
    )
    again = Markup('<use href="#{}"/>').format(name)

    shape = (height, width)
    panels = [_panel(picture, shape, _truth(data, row), "truth")]
    panels += [_panel(again, shape, _surest(one, row, data), title) for title, one in detectors.items()]
    return markup.figures(panels, 4)


def _truth(data: BoxData, row: int) -> list[Box]:
    kept = data.test.annotations
    span = slice(*kept.offsets[row : row + 2].tolist())
    columns = (kept.boxes[span].tolist(), kept.labels[span].tolist(), kept.crowd[span].tolist())
    return [
        Box((left, top, right, bottom), label, data.meta.classes[label] + (", a crowd" if crowd else ""))
        for (left, top, right, bottom), label, crowd in zip(*columns, strict=True)
    ]


def _surest(detector: Detector, row: int, data: BoxData) -> list[Box]:
    found = detector.found
    start, end = found.offsets[row : row + 2].tolist()
    order = start + np.argsort(-found.scores[start:end], kind="stable")
    order = order[found.scores[order] >= SUREST][:MOST]
    columns = (found.boxes[order].tolist(), found.labels[order].tolist(), found.scores[order].tolist())
    return [
        Box((left, top, right, bottom), label, f"{data.meta.classes[label]} {score:.2f}")
        for (left, top, right, bottom), label, score in zip(*columns, strict=True)
    ]


def _panel(picture: Markup, shape: tuple[int, int], boxes: list[Box], title: str) -> Markup:
    """Return an image with boxes over it, and what they are as text below."""
    height, width = shape
    drawn = Markup().join(map(_rectangle, boxes))
    words = ", ".join(box.title for box in boxes) or "nothing"
    return Markup(
        '<figure class="boxes"><svg viewBox="0 0 {} {}" role="img" aria-label="{}: {}">{}{}</svg>'
        "<figcaption><b>{}</b>: {}</figcaption></figure>"
    ).format(width, height, title, words, picture, drawn, title, words)


def _rectangle(box: Box) -> Markup:
    left, top, right, bottom = box.edges
    place = Markup('x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"').format(
        left, top, right - left, bottom - top
    )
    color = palette.SHADES[palette.series(box.label).color]
    return Markup('<rect {} style="stroke:var(--{})"><title>{}</title></rect>').format(
        place, color, box.title
    )
