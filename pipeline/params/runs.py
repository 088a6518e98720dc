"""The `runs` section of params.yaml."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.params.base import Block, OrEmpty
from pipeline.params.plug import OrderedPlugs, Plug, Plugs
from pipeline.params.views import Slots


class RunParams(Block):
    """A run: one method or several, and what they compose with.

    Attributes:
        methods: files of `pipeline/distillation/methods`, with their settings; of several, the terms add up, and
            `ce` counts once.
        source: "cached" reads the teacher's store, "online" runs the teacher beside the student.
        slots: how many view slots the student sees; "all" is every view of a finite space.
        transform: what is done to the teacher's features before the methods see them: a file of
            `pipeline/distillation/transforms`, with its settings.
        schedule: which teachers teach when: a file of `pipeline/distillation/schedules`, with its settings.
        recipe: settings of the student's recipe that differ for this run.
        views: views of its own in the place of its data set's, with which the teacher and the student alone are
            trained. A store holds the data set's, so it goes with `source: online`.
        strong_views: likewise, those of the second view of each sample.
    """

    methods: Plugs
    source: Literal["cached", "online"] = "cached"
    slots: Slots = "all"
    transform: Plug | None = None
    schedule: Plug = Plug.of("final")
    recipe: OrEmpty[dict[str, Any]] = {}
    views: OrderedPlugs | None = None
    strong_views: OrderedPlugs | None = None
