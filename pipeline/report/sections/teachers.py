"""The teachers: how good they are and how they were trained."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from markupsafe import Markup

from pipeline.report.drawing import markup, palette, text
from pipeline.report.drawing.figure import by_epoch, draw, line, logarithmic
from pipeline.report.drawing.palette import Style
from pipeline.report.results import Results, Teacher

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Teachers"
LEAD = (
    "whether each teacher is good enough to teach: compare its top-1 with that of its students trained alone."
)
GROUP, ORDER = "closing", 20

MOST = 8  # lines of one color each


def section(results: Results) -> Markup:
    """Return the table of teachers, and the curves of those that were trained here."""
    if not results.teachers:
        return Markup()

    rows: list[markup.Row] = []
    for teacher in results.teachers.values():
        metrics = teacher.trained.metrics
        rows.append(
            [
                teacher.name,
                teacher.dataset.name,
                metrics["network"],
                *(markup.Cell(text.fixed(metrics[name]), metrics[name]) for name in ("top1", "top5")),
                markup.Cell(
                    Markup("{} <small>epoch {}</small>").format(
                        text.fixed(metrics["best_top1"]), metrics["best_epoch"]
                    ),
                    metrics["best_top1"],
                    "quiet",
                ),
                markup.Cell(text.amount(metrics["params"]), metrics["params"]),
                markup.Cell(text.amount(metrics["macs"]), metrics["macs"]),
                markup.Cell(str(metrics["epochs"]), metrics["epochs"]),
                markup.Cell(text.duration(metrics["train_seconds"]), metrics["train_seconds"]),
            ]
        )

    head = [
        "teacher",
        "data",
        "network",
        "top-1",
        "top-5",
        "best epoch's",
        "parameters",
        "MACs",
        "epochs",
        "training",
    ]

    parts = [markup.table(head, rows, 3)]

    # A teacher whose weights were taken as they are has no curve.
    trained = [teacher for teacher in results.teachers.values() if teacher.trained.history]

    if trained:
        styles = {
            teacher.name: palette.series(number)
            if number < MOST
            else Style(palette.FAINT, "o", (), named=False)
            for number, teacher in enumerate(trained)
        }
        named = [(name, style) for name, style in styles.items() if style.named]

        pictures = [
            draw(
                f"teachers/{name}", caption, 2.4, partial(_curve, teachers=trained, styles=styles, name=name)
            )
            for name, caption in (("top1", "Top-1 by epoch, %."), ("loss", "Loss by epoch."))
        ]

        parts += [markup.legend(named, len(trained) - len(named)), markup.figures(pictures)]

    return Markup("<section>{}</section>").format(Markup().join(parts))


def _curve(ax: Axes, teachers: list[Teacher], styles: dict[str, Style], name: str) -> None:
    # A curve that reaches 0 has no place on a logarithmic axis.
    positive = True
    for teacher in teachers:
        values = teacher.trained.column(name)
        positive &= bool(values.min() > 0)
        line(ax, values, styles[teacher.name])
    if name == "loss" and positive:
        logarithmic(ax)
    by_epoch(ax, "top-1, %" if name == "top1" else name)
