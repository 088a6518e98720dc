"""How well a linear probe classifies before and after the layers that methods insert into a pair's students."""

from __future__ import annotations

from markupsafe import Markup

from pipeline.report.drawing import markup
from pipeline.report.results import Pair, Results, Run
from pipeline.report.statistics import estimate, gain

TITLE = "Linear probes of inserted layers"
LEAD = "whether the classes are easier to separate after an inserted layer than before it."
GROUP, ORDER = "pair", 70

PREFIX, INPUT = "probe_", ".input"


def section(results: Results, pair: Pair) -> Markup:
    """Return one line for every inserted layer; nothing where no run inserts any."""
    rows = [_row(run, place) for run in pair.runs for place in _places(run)]
    if not rows:
        return Markup()
    head = ["run", "layer after", "its input", "its output", "gain"]
    return markup.table(head, rows, 2) + markup.note(
        "Test accuracy of a linear discriminant (LDA) fitted to the pooled maps of the plain training images, last "
        "weights, mean over seeds. The gain is paired by seed."
    )


def _places(run: Run) -> list[str]:
    """Return the taps of a run's layers."""
    taps = [name.removeprefix(PREFIX) for name in run.students[0].metrics if name.startswith(PREFIX)]
    return [name for name in taps if not name.endswith(INPUT)]


def _row(run: Run, place: str) -> markup.Row:
    after, before = run.values(f"{PREFIX}{place}"), f"{PREFIX}{place}{INPUT}"
    if before not in run.students[0].metrics:  # a layer that does not offer what it reads
        return [run.title, place, markup.NOTHING, markup.mean(estimate(after)), markup.NOTHING]
    entries = run.values(before)
    return [
        run.title,
        place,
        markup.mean(estimate(entries)),
        markup.mean(estimate(after)),
        markup.gain(gain(after, entries)),
    ]
