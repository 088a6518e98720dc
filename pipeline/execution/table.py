"""A run as a table: a row for each job that runs, below the lines of what has ended."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.execution.estimate import Estimate, Running
from pipeline.execution.job import Job, Progress
from pipeline.execution.lines import Lines, clock, counted, plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

WIDE, NARROW = 110, 70  # columns of a terminal from which a bar is long, and below which there is none
GAP = 2  # columns between two cells
SHORTEST, LONGEST = 12, 40  # letters of a name where there is little room, and where others need some


@dataclass
class _Row:
    """A job that runs.

    Attributes:
        place: where.
        start: of the job.
        stages: that it runs.
        progress: how far it is, if it says so.
        since: when it said first that it does what it does now.
        before: what was done then: a training resumes from a checkpoint.
        recording: its commands have ended.
    """

    place: str
    start: float
    stages: tuple[str, ...] = ()
    progress: Progress | None = None
    since: float = 0.0
    before: int = 0
    recording: bool = False

    def move(self, progress: Progress | None, now: float) -> None:
        """Take in how far it is."""
        if progress is not None and (self.progress is None or self.progress.title != progress.title):
            self.since, self.before = now, progress.done
        self.progress = progress

    def seconds_left(self, now: float) -> float | None:
        """Return how long it needs for what it does now; None where nobody knows."""
        each = self.progress
        if each is None or self.recording or not self.before < each.done < each.total:
            return None
        return (now - self.since) * (each.total - each.done) / (each.done - self.before)

    def left(self, now: float) -> str:
        """Say how long it needs for what it does now; nothing where nobody knows."""
        if self.recording:
            return "recording"
        seconds = self.seconds_left(now)
        return "" if seconds is None else f"{clock(seconds)} left"

    @property
    def what(self) -> str:
        """What it does."""
        if self.progress is None or self.recording:
            return ""
        number = f"{self.progress.done}/{self.progress.total}" if self.progress.total else ""
        return plain(" ".join(filter(None, (number, self.progress.note or self.progress.title))))


class Table(Lines):
    """What runs now, how far it is and how long it will take, below the lines of what has ended."""

    def __init__(self, names: Collection[str], live: Live) -> None:
        super().__init__(len(names))
        self._live, self._estimate = live, Estimate(names)
        self._rows: dict[str, _Row] = {}
        self._start = time.monotonic()

    def started(self, job: Job, place: str) -> None:
        """Add a row."""
        self._rows[job.name] = _Row(place, time.monotonic(), job.stages or (job.name,))
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
        self._estimate.settle(name, seconds, counts=state not in ("failed", "skipped", "stopped"))
        self._draw()

    def ended(self, job: Job) -> None:
        """Take away the job's row."""
        self._rows.pop(job.name, None)
        self._draw()

    def _draw(self) -> None:
        self._live.update(self._drawn(*self._live.console.size))

    def _drawn(self, width: int, height: int) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        now = time.monotonic()
        number = max(1, height - 2)  # the footer and the cursor have lines of their own
        footer = Text(style="bold", no_wrap=True, overflow="ellipsis")
        footer.append(f"{self._settled} of {counted(self._total, 'stage')}, {clock(now - self._start)}")
        left = self._estimate.left(now - self._start, self._running(now))
        if left is not None:
            footer.append(f", {'at least' if left.least else 'about'} {clock(left.seconds)} left")
        if len(self._rows) > number:
            footer.append(f", {len(self._rows) - number} more run")
        if self._failed:
            footer.append(f", {self._failed} failed", "red")
        return Group(_grid(list(self._rows.items())[:number], now, width), footer)

    def _running(self, now: float) -> dict[str, Running]:
        return {
            name: Running(now - row.start, row.seconds_left(now))
            for row in self._rows.values()
            for name in row.stages
        }


def _grid(rows: Sequence[tuple[str, _Row]], now: float, width: int) -> RenderableType:
    from rich.table import Table as Grid
    from rich.text import Text

    texts = [(plain(row.place), plain(name), clock(now - row.start), row.left(now)) for name, row in rows]
    # Names have the room that other columns leave, and what a job says of itself has what names leave.
    place, stage, elapsed, left = (
        max((len(each[column]) for each in texts), default=0) for column in range(4)
    )
    bar = 0 if width < NARROW else 12 if width < WIDE else 24
    room = width - sum(letters + GAP for letters in (place, elapsed, left, bar) if letters)
    stage = max(SHORTEST, min(stage, room, max(LONGEST, room // 2)))
    what = room - stage - GAP
    columns = (place, stage, elapsed, bar, left, what if what >= SHORTEST else 0)

    grid = Grid.grid(padding=(0, GAP, 0, 0))
    for letters in filter(None, columns):
        grid.add_column(width=letters, no_wrap=True, overflow="ellipsis")
    for (on, name, since, rest), (_, row) in zip(texts, rows, strict=True):
        cells = (
            Text(on, "cyan"),
            Text(_short(name, stage)),
            Text(since, justify="right"),
            _bar(row, bar),
            Text(rest),
            Text(row.what, "dim"),
        )
        grid.add_row(*(cell for cell, letters in zip(cells, columns, strict=True) if letters))
    return grid


def _bar(row: _Row, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar

    each = row.progress
    if row.recording or each is None or not each.total:
        return ""
    return ProgressBar(each.total, each.done, width)


def _short(name: str, letters: int) -> str:
    """Cut letters out of the middle of a name: cells differ at its end."""
    if len(name) <= letters:
        return name
    head = (letters - 1) // 3
    return f"{name[:head]}…{name[head + 1 - letters :]}"
