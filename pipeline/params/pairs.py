"""The `pairs` section of params.yaml, and what is distilled of each pair."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from pipeline.params.base import Block, OrEmpty, StageBlock
from pipeline.params.matchings import Wanted
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe
from pipeline.params.students import StudentBlock
from pipeline.params.top import Top
from pipeline.params.views import ViewParams


class PairParams(Block):
    """A teacher and a student of the same data set.

    Attributes:
        teacher: a key of `teachers`.
        student: a key of `students`.
        overrides: settings of runs that differ for this pair, by run; they are merged into `runs.<run>`.
    """

    teacher: str
    student: str
    overrides: OrEmpty[dict[str, OrEmpty[dict[str, Any]]]] = {}


class RunBlock(Block):
    """A run of a pair with all that it consists of, overrides merged and defaults filled in.

    Attributes:
        methods: files of `pipeline/distillation/methods` with their settings, in their order.
        schedule: a file of `pipeline/distillation/schedules`, with its settings.
        transform: a file of `pipeline/distillation/transforms`, with its settings, or None.
        source: where the teacher's features come from.
        slots: augmented view slots that the student sees; None where the views are unbounded.
        recipe: how the student is trained.
        features: teacher features that are read.
        checkpoints: checkpoints of the teacher that teach.
        tables: fitted tables that are read.
        changes: teacher features that the transform changes.
        network: whether the teacher's own network is read.
        copies: copies and assistants of the teacher whose logits are read, each with the stage that makes it.
        matchings: matchings that are read.
        plugins: code that the run depends on, as "catalogue/name".
        views: what the student sees in the place of its data set's views, or None.
        largest: of a run that learns online, the largest logits that the teacher's store would keep, by feature name.
    """

    methods: tuple[Plug, ...]
    schedule: Plug
    transform: Plug | None
    source: Literal["cached", "online"]
    slots: int | None
    recipe: Recipe
    features: tuple[str, ...]
    checkpoints: tuple[str, ...]
    tables: tuple[str, ...]
    changes: tuple[str, ...]
    network: bool
    copies: dict[str, str]
    matchings: tuple[Wanted, ...]
    plugins: tuple[str, ...]
    views: ViewParams | None = None
    largest: dict[str, Top] = {}

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "largest" or value}


class PairBlock(StageBlock):
    """What `inputs` depends on: a pair's networks, and the runs that `distill` asks of it.

    Attributes:
        pair: key of `pairs`.
        teacher: key of `teachers`.
        teacher_family: a file of `pipeline/networks/families`.
        teacher_licence: of the teacher's weights; it is recorded beside the inputs of students, and in none of them.
        student: the student.
        seeds: seeds of the students.
        runs: by name.
        borrowed: keys of `borrowed` that are of this pair, by "teacher/matching".
    """

    pair: str
    teacher: str
    teacher_family: str
    teacher_licence: str = ""
    student: StudentBlock
    seeds: tuple[int, ...]
    runs: dict[str, RunBlock]
    borrowed: dict[str, str]
