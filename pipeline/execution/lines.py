"""A run as lines: one for each stage that has ended, for logs and for what stands above the table of a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import StillhouseError
from pipeline.execution.job import Job, Progress


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
        took = "" if seconds is None else f" {'in' if state == 'ran' else 'after'} {duration(seconds)}"
        line = f"[{self._settled}/{self._total}] {name}: {state}{took}"
        print(plain(f"{line}: {reason}" if reason else line), flush=True)

    def ended(self, job: Job) -> None:
        """Print nothing."""


def plain(text: str) -> str:
    """Return a text as one line, without a terminal's codes."""
    return str(StillhouseError(text))


def counted(number: int, noun: str) -> str:
    """Say how many there are of something."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """Say how long something has taken."""
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def clock(seconds: float) -> str:
    """Return seconds as minutes and seconds, with hours where there are any."""
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
