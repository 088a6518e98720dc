"""What people see of a run: on a terminal a table of what runs, elsewhere a line for each stage that has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.execution.job import Job, Progress
from pipeline.execution.scheduler import Outcome, View

RECORDING = "recording"


@dataclass
class _Shown:
    place: str
    since: float
    progress: Progress | None = None


class Lines:
    """A line for each stage that has run, failed or been skipped."""

    def __init__(self, total: int) -> None:
        self._total, self._settled = total, 0
        self._since: dict[str, float] = {}

    def started(self, job: Job, place: str) -> None:
        """Remember when a job has started."""
        self._since[job.name] = time.monotonic()

    def ended(self, job: Job) -> None:
        """Remember how long a job has taken."""
        self._since[job.name] = time.monotonic() - self._since[job.name]

    def settled(self, name: str, state: str, reason: str = "") -> None:
        """Print what became of a stage."""
        self._settled += 1
        if state == "unchanged":
            return
        line = f"[{self._settled}/{self._total}] {name}: "
        if state == "skipped":
            line += f"skipped, because {reason} has failed"
        else:
            line += state + (f" in {self._since[name]:.1f} s" if name in self._since else "")
            line += f": {reason}" if reason else ""
        print(line, flush=True)

    def moved(self, progress: Mapping[str, Progress | None]) -> None:
        """Print nothing: how far a job is changes too often."""


class Table(Lines):
    """What runs now, how far it is and how long it will take, below the lines of what has ended."""

    def __init__(self, total: int, live: Any) -> None:
        super().__init__(total)
        self._live = live
        self._shown: dict[str, _Shown] = {}
        self._start = time.monotonic()

    def started(self, job: Job, place: str) -> None:
        """Add a row."""
        super().started(job, place)
        self._shown[job.name] = _Shown(place, time.monotonic())
        self._draw()

    def ended(self, job: Job) -> None:
        """Say in a job's row that what it made is recorded."""
        super().ended(job)
        self._shown[job.name].progress = Progress(RECORDING, 0, 0)
        self._draw()

    def settled(self, name: str, state: str, reason: str = "") -> None:
        """Print a line, and take away the row."""
        super().settled(name, state, reason)
        done = [
            job for job, shown in self._shown.items() if shown.progress and shown.progress.title == RECORDING
        ]
        for job in done:
            del self._shown[job]
        self._draw()

    def moved(self, progress: Mapping[str, Progress | None]) -> None:
        """Show how far the rows are."""
        for name, each in progress.items():
            if name in self._shown:
                self._shown[name].progress = each
        self._draw()

    def _draw(self) -> None:
        from rich.console import Group, RenderableType
        from rich.progress_bar import ProgressBar
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid.grid(padding=(0, 2))
        for name, shown in self._shown.items():
            each = shown.progress
            seconds = time.monotonic() - shown.since
            bar: RenderableType = ""
            left, what = "", ""
            if each is not None:
                what = " ".join(filter(None, (each.title, each.note)))
                if each.total:
                    bar = ProgressBar(each.total, each.done, width=24)
                    left = _left(seconds, each)
            grid.add_row(
                Text(shown.place, style="cyan"),
                Text(name),
                bar,
                _clock(seconds),
                left,
                Text(what, style="dim"),
            )
        elapsed = _clock(time.monotonic() - self._start)
        self._live.update(
            Group(grid, Text(f"{self._settled} of {self._total} stages, {elapsed}", style="bold"))
        )


@contextmanager
def view(total: int) -> Iterator[View]:
    """Show a run of `total` stages within the block."""
    if not sys.stderr.isatty():
        yield Lines(total)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=4) as live:
        yield Table(total, live)


def summary(outcome: Outcome, seconds: float, logs: str) -> list[str]:
    """Return what is printed at the end.

    Args:
        outcome: what became of the stages.
        seconds: that it has taken.
        logs: the folder of what the stages have printed.
    """
    counts = (
        (len(outcome.ran), "ran"),
        (len(outcome.restored), "came out of the run cache"),
        (len(outcome.unchanged), "unchanged"),
        (len(outcome.failed), "failed"),
        (len(outcome.skipped), "skipped"),
    )
    lines = [", ".join(f"{number} {word}" for number, word in counts if number) or "there is no stage"]
    lines[0] += f"; {_clock(seconds)}."
    for name, reason in outcome.failed.items():
        lost = [other for other, why in outcome.skipped.items() if why == name]
        lines.append(f"failed: {name}: {reason}")
        if lost:
            lines.append(f"  skipped because of it: {', '.join(lost)}")
    if outcome.failed:
        lines.append(f"What the stages printed is in {logs}. Mend it, then run the same command again.")
    return lines


def _left(seconds: float, progress: Progress) -> str:
    if not progress.done or progress.done >= progress.total:
        return ""
    return f"{_clock(seconds * (progress.total - progress.done) / progress.done)} left"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
