"""What a scheduler asks of DVC; `pipeline.execution.repository.Repository` answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipeline.execution.done import Mark
from pipeline.execution.stage import Verdict


class Recorder(Protocol):
    """Begins stages, and records them: each that is to run is recorded or released once."""

    @property
    def folder(self) -> Path:
        """A folder of the run's own files."""
        ...

    def begin(self, name: str, *, force: bool = False) -> Verdict:
        """Make a stage ready to run, if it must."""
        ...

    def record(self, names: Sequence[str]) -> Mapping[str, str]:
        """Record stages that have run; return why one could not be."""
        ...

    def release(self, name: str) -> None:
        """Give back what a stage that has failed was holding."""
        ...

    def mark(self, name: str) -> Mark:
        """Return what is to be left when a begun stage has run."""
        ...

    def environment(self, name: str) -> dict[str, str]:
        """Return the variables that DVC gives to a stage's commands."""
        ...

    def working_folder(self, name: str) -> Path:
        """Return the folder that a stage's commands run in."""
        ...
