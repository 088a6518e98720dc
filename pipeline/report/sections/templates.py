"""Exemplars of words, kernels and sub-classes: the training pixels that are nearest to each, and what they see."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.params.size import sides
from pipeline.report.drawing import markup, text
from pipeline.report.drawing.picture import png
from pipeline.report.results import PLACES, Field, Results, Table

TITLE = "Codebook exemplars"
LEAD = "whether the pixels of a row show the same part or texture: then the word has a meaning."
GROUP, ORDER = "closing", 80

LARGEST = 48  # pixels of an image
COLORS = 64


def section(results: Results) -> Markup:
    """Return a gallery for each table that has exemplars."""
    parts = [_gallery(table) for table in results.tables if table.has("counts", "gallery", *PLACES)]
    if not parts:
        return Markup()
    words = (
        "Each row shows the pixels of the teacher's map that are nearest to one word, strongest in one kernel or "
        "nearest to one sub-class, the best first and each in another training image. Where few images have any, the "
        "row is filled up with pixels that fall to another one."
    )
    return markup.note(words) + Markup().join(parts)


def _gallery(table: Table) -> Markup:
    field, size = table.teacher.field(table.feature), sides(table.teacher.dataset.prepared.meta.size)
    places = np.stack([table.arrays[name] for name in PLACES], axis=2)  # (G, P, 3)
    rows = [
        _row(table, int(group), exemplars, field)
        for group, exemplars in zip(table.arrays["gallery"], places, strict=True)
    ]
    lead = Markup("{} of {}. {}").format(
        len(rows),
        text.count(len(table.arrays["counts"]), table.unit, table.units),
        _seen(table.feature, field, size),
    )
    return Markup('<section><h3>{}</h3>{}<div class="templates">{}</div></section>').format(
        table.title, markup.note(lead), Markup("\n").join(rows)
    )


def _seen(feature: str, field: Field, size: tuple[int, int]) -> str:
    """Return what a pixel of the map sees, in words."""
    height, width = (int((spans[:, 1] - spans[:, 0]).max()) + 1 for spans in (field.rows, field.columns))
    narrow = [
        bool((spans[:, 1] - spans[:, 0] + 1 < side).any())
        for spans, side in zip((field.rows, field.columns), size, strict=True)
    ]
    if not any(narrow):
        return f"A pixel of {feature} sees the whole image; the dot is its place."
    seen, whole_size = (text.TIMES.join(map(str, sizes)) for sizes in ((height, width), size))
    words = (
        f"A pixel of {feature} sees at most {seen} of the {whole_size} pixels of an "
        "image: they are framed, the others are faded"
    )
    # Fields at a border are cut, so a map may hold both whole images and parts of one.
    whole = (height, width) == size
    return words + (", and where it sees the whole image a dot is its place." if whole else ".")


def _row(table: Table, group: int, exemplars: NDArray[np.int64], field: Field) -> Markup:
    counts = table.arrays["counts"]
    name = f"{table.unit} {group}"
    if table.has("per_class"):
        label, number = divmod(group, int(table.arrays["per_class"]))
        name = f"{table.teacher.dataset.classes[label]}, {table.unit} {number}"

    share = 100 * float(counts[group]) / max(1, int(counts.sum()))
    shown = [
        _exemplar(table, sample, row, column, field)
        for sample, row, column in exemplars.tolist()
        if sample >= 0
    ]
    pixels = f"{counts[group]:,} {'pixel' if counts[group] == 1 else 'pixels'}"
    return Markup("<figure><div>{}</div><figcaption><b>{}</b> {}, {} %</figcaption></figure>").format(
        Markup().join(shown), name, pixels, text.fixed(share, 2)
    )


def _exemplar(table: Table, sample: int, row: int, column: int, field: Field) -> Markup:
    """Return a training image on which the field of a place of the map is marked."""
    split, size = (
        table.teacher.dataset.prepared.split("train"),
        sides(table.teacher.dataset.prepared.meta.size),
    )
    title = (
        f"{table.teacher.dataset.classes[split.labels[sample]]}, sample {sample}, row {row}, column {column}"
    )
    return Markup(
        '<svg viewBox="0 0 {0} {1}" role="img"><title>{2}</title>'
        '<image width="{0}" height="{1}" preserveAspectRatio="none" href="{3}"/>{4}</svg>'
    ).format(
        size[1],
        size[0],
        title,
        png(np.asarray(split.images[sample]), LARGEST, COLORS),
        _mark(field, row, column, size),
    )


def _mark(field: Field, row: int, column: int, size: tuple[int, int]) -> Markup:
    """Return a frame around what a place sees, or, where that is the whole image, a dot at the place."""
    (top, bottom), (left, right) = field.rows[row].tolist(), field.columns[column].tolist()
    height, width = bottom - top + 1, right - left + 1
    tall, wide = size
    if (height, width) == size:
        x, y = (column + 0.5) * wide / len(field.columns), (row + 0.5) * tall / len(field.rows)
        return Markup('<circle cx="{:g}" cy="{:g}" r="{:g}"/>').format(x, y, min(size) / 16)
    return Markup(
        '<path d="M0 0H{0}V{5}H0zM{1} {2}v{4}h{3}v-{4}z"/><rect x="{1}" y="{2}" width="{3}" height="{4}"/>'
    ).format(wide, left, top, width, height, tall)
