"""What became of a run's stages, and how people are told of it while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.execution.job import Job, Progress


@dataclass
class Outcome:
    """What became of the stages; each stands in one of these, once the run is over.

    Attributes:
        ran: those whose commands have run, now or in a run that was killed before it recorded them.
        restored: those that came out of the run cache.
        unchanged: those that were up to date.
        failed: why, in a line, by name.
        skipped: the failed stage that one was skipped for, by name.
        stopped: those that had not ended when the user stopped the run.
        logs: what a failed stage has printed, by its name; it has none if its commands did not start.
    """

    ran: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    logs: dict[str, Path] = field(default_factory=dict)


class View(Protocol):
    """What a run looks like to people; see `pipeline.execution.view`."""

    def started(self, job: Job, place: str) -> None:
        """Tell that a job has started at a place."""
        ...

    def moved(self, progress: Mapping[str, Progress | None]) -> None:
        """Tell how far the running jobs are, by their names."""
        ...

    def recording(self, job: Job) -> None:
        """Tell that a job's commands have ended, and that what they made is about to be recorded."""
        ...

    def settled(self, name: str, state: str, reason: str = "", seconds: float | None = None) -> None:
        """Tell what became of a stage.

        Args:
            name: the stage's.
            state: a word or two, for instance "ran", "failed" or "unchanged".
            reason: why it failed, or the failed stage that it was skipped for.
            seconds: that its job has taken.
        """
        ...

    def ended(self, job: Job) -> None:
        """Tell that nothing more comes from a job."""
        ...
