"""The `assistants` section of params.yaml: smaller networks between a teacher and a student (TAKD, DGKD)."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from pipeline.params.copies import TaughtParams
from pipeline.params.numbers import Names
from pipeline.params.plug import Plug
from pipeline.params.teaching import TEACHER, Drop, check_drop


class AssistantParams(TaughtParams):
    """Asks for an assistant: a network that learns from the teacher or the assistants before it, and teaches students.

    Attributes:
        network: a network by name, "family/name", or an import path.
        recipe: a key of `recipes`, with changes if there are any; left out, it is CRD's recipe for CIFAR-100.
        follows: what it comes after: `teacher`, or another assistant of the same teacher.
        learns_from: `teacher` and assistants that come before it, among them the one that it follows (DGKD); left out,
            that one alone (TAKD).
        drop: a number of those that it learns from, dropped anew at each step; or a share below 1, the probability
            of each to be dropped. One at least is left.
    """

    network: str
    recipe: Plug | None = None
    follows: str
    learns_from: Names = ()
    drop: Drop = 0

    @property
    def teachers(self) -> tuple[str, ...]:
        """Those that it learns from."""
        return self.learns_from or (self.follows,)

    @property
    def assistants(self) -> tuple[str, ...]:
        """The assistants that it learns from."""
        return tuple(name for name in self.teachers if name != TEACHER)

    @model_validator(mode="after")
    def _check_drop(self) -> Self:
        check_drop(self.drop, self.teachers)
        return self
