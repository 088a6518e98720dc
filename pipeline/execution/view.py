"""What people see of a run: on a terminal a table of what runs, elsewhere lines; at the end a summary."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.execution.lines import Lines, counted, duration, plain
from pipeline.execution.outcome import Outcome, View

if TYPE_CHECKING:
    from rich.console import Console

LISTED = 8  # names in a line of the summary


@contextmanager
def view(stages: Collection[str], console: Console | None = None) -> Iterator[View]:
    """Show a run of stages within the block.

    Args:
        stages: their names, those that are up to date too.
        console: the terminal; by default standard error, if it is one.
    """
    if console is None and not sys.stderr.isatty():
        yield Lines(len(stages))
        return
    from rich.console import Console
    from rich.live import Live

    from pipeline.execution.table import Table

    console = console or Console(stderr=True)
    # What is printed meanwhile stands above the table; but what the user sends into a file goes there.
    with Live(
        console=console, transient=True, refresh_per_second=4, redirect_stdout=sys.stdout.isatty()
    ) as live:
        yield Table(stages, live)


def summary(outcome: Outcome, seconds: float) -> list[str]:
    """Return what is printed at the end: what ran in the first line, then what failed and why.

    Args:
        outcome: what became of the stages.
        seconds: that it has taken.
    """
    counts = (
        (len(outcome.ran), "ran"),
        (len(outcome.restored), "came out of the run cache"),
        (len(outcome.unchanged), "unchanged"),
        (len(outcome.failed), "failed"),
        (len(outcome.skipped), "skipped"),
        (len(outcome.stopped), "stopped"),
    )
    total = sum(number for number, _ in counts)
    parts = [f"{number} {word}" for number, word in counts if number]
    lines = [f"{counted(total, 'stage')}: {', '.join(parts) or 'nothing to do'}; {duration(seconds)}."]

    for name, reason in outcome.failed.items():
        lines.append(f"failed: {name}: {reason}")
        if name in outcome.logs:
            lines.append(f"  what it printed: {outcome.logs[name]}")
        lost = [other for other, why in outcome.skipped.items() if why == name]
        if lost:
            more = f" and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
            lines.append(f"  skipped after it: {', '.join(lost[:LISTED])}{more}")
    if outcome.failed:
        lines.append("Mend what failed, then run the same command again: what has run is kept.")
    return [plain(line) for line in lines]
