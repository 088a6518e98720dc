"""The networks that have learned from a teacher and teach students: assistants, and self-taught copies."""

from __future__ import annotations

from markupsafe import Markup

from pipeline.report.drawing import markup, text
from pipeline.report.results import Results

TITLE = "Assistants and copies"
LEAD = (
    "how good each network between teacher and student is: none should be far below what it has learned from."
)
GROUP, ORDER = "closing", 25


def section(results: Results) -> Markup:
    """Return the table of assistants and copies, teacher by teacher."""
    if not results.taught:
        return Markup()

    rows: list[markup.Row] = [
        [
            taught.name,
            taught.teacher,
            taught.network,
            ", ".join(taught.learned_from),
            markup.Cell("" if taught.top1 is None else text.fixed(taught.top1), taught.top1),
            markup.Cell(str(taught.epochs), taught.epochs),
        ]
        for taught in results.taught
    ]
    head = ["name", "teacher", "network", "learned from", "top-1", "epochs"]
    return Markup("<section>{}</section>").format(markup.table(head, rows, 4))
