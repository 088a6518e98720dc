"""What people see of a run: on a terminal a table of what runs, elsewhere a line for each stage that has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import StillhouseError
from pipeline.execution.job import Job, Progress
from pipeline.execution.outcome import Outcome, View

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

WIDE, NARROW = 110, 70  # columns of a terminal from which a bar is long, and below which there is none
LISTED = 8  # names in a line of the summary


@dataclass
class _Row:
    """A job that runs.

    Attributes:
        place: where.
        start: of the job.
        progress: how far it is, if it says so.
        since: when it said first that it does what it does now.
        before: what was done then: a training resumes from a checkpoint.
        recording: its commands have ended.
    """

    place: str
    start: float
    progress: Progress | None = None
    since: float = 0.0
    before: int = 0
    recording: bool = False

    def move(self, progress: Progress | None, now: float) -> None:
        if progress is not None and (self.progress is None or self.progress.title != progress.title):
            self.since, self.before = now, progress.done
        self.progress = progress

    def left(self, now: float) -> float | None:
        """Return the seconds that are left of what it does now; None where nobody knows."""
        each = self.progress
        if each is None or not self.before < each.done < each.total:
            return None
        return (now - self.since) * (each.total - each.done) / (each.done - self.before)


class Lines:
    """A line for each stage that has run or failed; what is unchanged or skipped is for the summary."""

    def __init__(self, total: int) -> None:
        self._total, self._settled, self._failed = total, 0, 0

    def started(self, job: Job, place: str) -> None:
        """Print nothing."""

    def moved(self, progress: Mapping[str, Progress | None]) -> None:
        """Print nothing: how far a job is changes too often."""

    def recording(self, job: Job) -> None:
        """Print nothing."""

    def settled(self, name: str, state: str, reason: str = "", seconds: float | None = None) -> None:
        """Print what became of a stage."""
        self._settled += 1
        self._failed += state == "failed"
        if state in ("unchanged", "skipped"):
            return
        took = "" if seconds is None else f" {'in' if state == 'ran' else 'after'} {_duration(seconds)}"
        line = f"[{self._settled}/{self._total}] {name}: {state}{took}"
        print(_plain(f"{line}: {reason}" if reason else line), flush=True)

    def ended(self, job: Job) -> None:
        """Print nothing."""


class Table(Lines):
    """What runs now, how far it is and how long it will take, below the lines of what has ended."""

    def __init__(self, total: int, live: Live) -> None:
        super().__init__(total)
        self._live = live
        self._rows: dict[str, _Row] = {}
        self._start = time.monotonic()

    def started(self, job: Job, place: str) -> None:
        """Add a row."""
        self._rows[job.name] = _Row(place, time.monotonic())
        self._draw()

    def moved(self, progress: Mapping[str, Progress | None]) -> None:
        """Show how far the rows are."""
        for name, each in progress.items():
            if name in self._rows:
                self._rows[name].move(each, time.monotonic())
        self._draw()

    def recording(self, job: Job) -> None:
        """Say in a job's row that what it made is recorded."""
        if job.name in self._rows:
            self._rows[job.name].recording = True
        self._draw()

    def settled(self, name: str, state: str, reason: str = "", seconds: float | None = None) -> None:
        """Print a line, and count the stage."""
        super().settled(name, state, reason, seconds)
        self._draw()

    def ended(self, job: Job) -> None:
        """Take away the job's row."""
        self._rows.pop(job.name, None)
        self._draw()

    def _draw(self) -> None:
        self._live.update(self._drawn(self._live.console.width))

    def _drawn(self, width: int) -> RenderableType:
        from rich.console import Group
        from rich.table import Table as Grid
        from rich.text import Text

        bar = 0 if width < NARROW else 12 if width < WIDE else 24
        names = max(16, width - 62 if bar else width - 34)  # letters that the other columns leave

        grid = Grid.grid(padding=(0, 2, 0, 0))
        for column, options in (("place", {}), ("stage", {}), ("elapsed", {"justify": "right"})):
            grid.add_column(column, no_wrap=True, **options)  # type: ignore[arg-type]  # one of them has options
        if bar:
            grid.add_column("bar", no_wrap=True)
        grid.add_column("left", no_wrap=True)
        grid.add_column("what", no_wrap=True, overflow="ellipsis")

        now = time.monotonic()
        for name, row in self._rows.items():
            place, stage = Text(_plain(row.place), style="cyan"), Text(_short(_plain(name), names))
            left = None if row.recording else row.left(now)
            grid.add_row(
                place,
                stage,
                _clock(now - row.start),
                *([_bar(row, bar)] if bar else []),
                "" if left is None else f"{_clock(left)} left",
                Text(_what(row), style="dim"),
            )

        footer = Text(
            f"{self._settled} of {_counted(self._total, 'stage')}, {_clock(now - self._start)}", "bold"
        )
        if self._failed:
            footer.append(f", {self._failed} failed", style="bold red")
        return Group(grid, footer)


@contextmanager
def view(total: int, console: Console | None = None) -> Iterator[View]:
    """Show a run of `total` stages within the block.

    Args:
        total: all stages, those that are up to date too.
        console: the terminal; by default standard error, if it is one.
    """
    if console is None and not sys.stderr.isatty():
        yield Lines(total)
        return
    from rich.console import Console
    from rich.live import Live

    console = console or Console(stderr=True)
    # What is printed meanwhile stands above the table; but what the user sends into a file goes there.
    with Live(
        console=console, transient=True, refresh_per_second=4, redirect_stdout=sys.stdout.isatty()
    ) as live:
        yield Table(total, live)


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
        (len(outcome.stopped), "stopped before the end"),
    )
    total = sum(number for number, _ in counts)
    parts = [f"{number} {word}" for number, word in counts if number]
    lines = [f"{_counted(total, 'stage')}: {', '.join(parts) or 'nothing to do'}; {_duration(seconds)}."]

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
    return [_plain(line) for line in lines]


def _bar(row: _Row, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar

    each = row.progress
    if row.recording or each is None or not each.total:
        return ""
    return ProgressBar(each.total, each.done, width)


def _what(row: _Row) -> str:
    if row.recording:
        return "recording"
    each = row.progress
    if each is None:
        return ""
    number = f"{each.done}/{each.total}" if each.total else ""
    return _plain(" ".join(filter(None, (number, each.note or each.title))))


def _plain(text: str) -> str:
    """Return a text as one line without a terminal's codes."""
    return str(StillhouseError(text))


def _short(name: str, letters: int) -> str:
    """Cut letters out of the middle of a name: cells differ at its end."""
    if len(name) <= letters:
        return name
    head = (letters - 1) // 3
    return f"{name[:head]}…{name[head + 1 - letters :]}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else _clock(seconds)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
