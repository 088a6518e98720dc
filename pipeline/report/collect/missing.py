"""What is left out of a report: what was never made, or was made from something else than the project has now."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import MissingArtifactError, StaleArtifactError
from pipeline.report.results import Missing

T = TypeVar("T")


class Omissions:
    """Collects what is left out, so that the rest can be reported. What is damaged is an error of its own."""

    def __init__(self) -> None:
        self._entries: list[Missing] = []

    @property
    def entries(self) -> tuple[Missing, ...]:
        """All of them, each once: a student alone may be of several pairs."""
        return tuple(dict.fromkeys(self._entries))

    def whole(self, what: str, stage: str, read: Callable[[], T]) -> T | None:
        """Return what `read` returns; where that is missing or stale, note it and return None.

        Args:
            what: it, in words.
            stage: the last one of those that make it.
            read: reads all of it.
        """
        try:
            return read()
        except (MissingArtifactError, StaleArtifactError) as error:
            # The command at the end of the error makes one file; what is noted here has the one that makes all.
            self.add(what, stage, str(error).partition(" Make it ")[0])
            return None

    def add(self, what: str, stage: str, reason: str) -> None:
        """Note what is left out."""
        self._entries.append(Missing(what, stage, reason))
