"""The `runs` section of params.yaml."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.params.base import Block
from pipeline.params.views import Slots


class RunParams(Block):
    """A run: a method with its settings, and what it composes with.

    Attributes:
        method: a file of `pipeline/distillation/methods`.
        config: that method's own settings.
        source: "cached" reads the teacher's store, "online" runs the teacher beside the student.
        slots: how many view slots the student sees; "all" is every view of a finite space.
        transform: what is done to the teacher's features before the method sees them: a file of
            `pipeline/distillation/transforms`, and its settings.
        transform_config: that transform's own settings.
        schedule: which teachers teach when: a file of `pipeline/distillation/schedules`.
        schedule_config: that schedule's own settings.
        recipe: settings of the student's recipe that differ for this run.
    """

    method: str
    config: dict[str, Any] = {}
    source: Literal["cached", "online"] = "cached"
    slots: Slots = "all"
    transform: str | None = None
    transform_config: dict[str, Any] = {}
    schedule: str = "final"
    schedule_config: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
