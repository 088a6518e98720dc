"""What is left out of the report, why, and which command makes it."""

from __future__ import annotations

from markupsafe import Markup

from pipeline.report.drawing import markup
from pipeline.report.results import Results

TITLE = "What is missing"
LEAD = "what the report leaves out: a failed run is none of the runs that are compared below."
GROUP, ORDER = "opening", 5
NUMBERS = {"summary.json": "the same for programs, under missing"}

MOST_OPEN = 20  # rows; a longer table is folded


def section(results: Results) -> Markup:
    """Return a row for each; nothing where all is there."""
    if not results.missing:
        return Markup()
    rows = [[entry.what, entry.reason, entry.command] for entry in results.missing]
    table = markup.table(["left out", "why", "made with"], rows, 3)
    title = f"{len(rows)} left out"
    words = (
        "None of these is in any figure. A run that lacks seeds has their number beside its name, and a gain "
        "is computed over the seeds that both runs have. Once all is made, dvc repro makes the report whole."
    )
    return markup.folded(title, table, opened=len(rows) <= MOST_OPEN) + markup.note(words)
