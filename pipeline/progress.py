"""Progress bars with an estimate of the time left; quiet when standard error is not a terminal.

Of the processes of one run, the first shows its bars. A process that another one watches reports to it instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports work done: a number of units, and a note to show beside the bar."""

    def __call__(self, units: int = 1, note: str = "") -> None:
        """Add `units` of work done; show `note` when it is not empty."""
        ...


# Takes a bar's title, the units done and in all, and its note.
Listener = Callable[[str, int, int, str], None]
_listeners: list[Listener] = []  # one, or none


def report(listener: Listener) -> None:
    """Report the progress of this process to `listener` from now on, instead of showing bars."""
    _listeners[:] = [listener]


@contextmanager
def bar(title: str, total: int) -> Iterator[Advance]:
    """Show a bar named `title` over `total` units; yields the function that advances it."""
    if _listeners and os.environ.get("RANK", "0") == "0":
        yield _reporting(_listeners[0], title, total)
        return

    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":

        def ignore(units: int = 1, note: str = "") -> None:
            pass

        yield ignore
        return

    # Only now: where nobody watches, a stage starts without rich.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(units: int = 1, note: str = "") -> None:
            progress.advance(task, units)
            if note:
                progress.update(task, note=note)

        yield advance


def _reporting(listener: Listener, title: str, total: int) -> Advance:
    done, shown = 0, ""
    listener(title, done, total, shown)

    def advance(units: int = 1, note: str = "") -> None:
        nonlocal done, shown
        done, shown = done + units, note or shown
        listener(title, done, total, shown)

    return advance


def say(line: str) -> None:
    """Print a line about how work is done; it stands above the bars."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
