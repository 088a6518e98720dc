"""The teachers: how good they are and how they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from pipeline.report.detectors import Finder
from pipeline.report.drawing import markup, palette, text
from pipeline.report.drawing.figure import by_epoch, draw, line, logarithmic
from pipeline.report.drawing.palette import Style
from pipeline.report.results import Results, Teacher

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Teachers"
LEAD = "whether each teacher is good enough to teach: compare it with its students trained alone."
GROUP, ORDER = "closing", 20

MOST = 8  # lines of one color each
COUNTS = {"params": "parameters", "macs": "MACs"}


def section(results: Results) -> Markup:
    """Return the table of teachers, and the curves of those that were trained here; of detectors likewise."""
    kinds: list[tuple[list[Teacher | Finder], Mapping[str, str]]] = [
        ([*results.teachers.values()], {"top1": "top-1", "top5": "top-5"}),
        ([*results.detection.teachers.values()], {"AP": "AP", "AP50": "AP50"}),
    ]
    parts = [_kind(teachers, measures) for teachers, measures in kinds if teachers]
    return Markup("<section>{}</section>").format(Markup().join(parts)) if parts else Markup()


def _kind(teachers: list[Teacher | Finder], measures: Mapping[str, str]) -> Markup:
    """Return table and curves of teachers that are measured alike, by the first of `measures` before all."""
    first = next(iter(measures))
    counted = [name for name in COUNTS if name in teachers[0].trained.metrics]
    rows: list[markup.Row] = []
    for teacher in teachers:
        metrics = teacher.trained.metrics
        best, epoch = metrics[f"best_{first}"], metrics["best_epoch"]
        rows.append(
            [
                teacher.name,
                teacher.dataset.name,
                metrics["network"],
                *(markup.Cell(text.fixed(metrics[name]), metrics[name]) for name in measures),
                markup.Cell(
                    Markup("{} <small>epoch {}</small>").format(text.fixed(best), epoch), best, "quiet"
                ),
                *(markup.Cell(text.amount(metrics[name]), metrics[name]) for name in counted),
                markup.Cell(str(metrics["epochs"]), metrics["epochs"]),
                markup.Cell(text.duration(metrics["train_seconds"]), metrics["train_seconds"]),
            ]
        )

    head = ["teacher", "data", "network", *measures.values(), "best epoch's"]
    head += [*(COUNTS[name] for name in counted), "epochs", "training"]
    # A teacher whose weights were taken as they are has no curve.
    trained = [teacher for teacher in teachers if teacher.trained.history]
    curves = _curves(trained, first, measures[first]) if trained else Markup()
    return markup.table(head, rows, 3) + curves


def _curves(trained: list[Teacher | Finder], measure: str, title: str) -> Markup:
    styles = {
        teacher.name: palette.series(number) if number < MOST else Style(palette.FAINT, "o", (), named=False)
        for number, teacher in enumerate(trained)
    }
    named = [(name, style) for name, style in styles.items() if style.named]
    title = f"{title[0].upper()}{title[1:]}"
    pictures = [
        draw(f"teachers/{name}", caption, 2.4, partial(_curve, teachers=trained, styles=styles, name=name))
        for name, caption in ((measure, f"{title} by epoch, %."), ("loss", "Loss by epoch."))
    ]
    return markup.legend(named, len(trained) - len(named)) + markup.figures(pictures)


def _curve(ax: Axes, teachers: list[Teacher | Finder], styles: dict[str, Style], name: str) -> None:
    # A curve that reaches 0 has no place on a logarithmic axis.
    positive = True
    for teacher in teachers:
        values = teacher.trained.column(name)
        # Of a detector's training some epochs are evaluated: the line leads from one to the next.
        epochs = np.flatnonzero(np.isfinite(values))
        positive &= bool(values[epochs].min() > 0)
        line(ax, values[epochs], styles[teacher.name], epochs + 1)
    if name == "loss" and positive:
        logarithmic(ax)
    by_epoch(ax, name if name == "loss" else f"{name.replace('top1', 'top-1')}, %")
