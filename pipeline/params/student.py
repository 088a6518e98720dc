"""The sections of params.yaml that say what is distilled, and what that needs of a teacher beside its store."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.params.base import Block
from pipeline.params.recipe import Recipe
from pipeline.params.views import Slots, ViewParams


class StudentParams(Block):
    """A student network and how it is trained.

    Attributes:
        dataset: a key of `datasets`.
        family: a file of `pipeline/networks/families`.
        network: a network of that family.
        recipe: how it is trained, alone and distilled.
    """

    dataset: str
    family: str
    network: str
    recipe: Recipe = Recipe()


class PairParams(Block):
    """A teacher and a student of the same data set.

    Attributes:
        teacher: a key of `teachers`.
        student: a key of `students`.
        overrides: settings of runs that differ for this pair, by run; they are merged into `runs.<run>`.
    """

    teacher: str
    student: str
    overrides: dict[str, dict[str, Any]] = {}


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


class TableParams(Block):
    """A table: a thing that is fitted offline from a teacher's store.

    Attributes:
        table: a file of `pipeline/tables/fits`.
        config: that table's own settings.
    """

    table: str
    config: dict[str, Any] = {}


class FitParams(Block):
    """Asks for one table of one teacher.

    Attributes:
        teacher: a key of `teachers`.
        table: a key of `tables`.
    """

    teacher: str
    table: str


class DerivedParams(FitParams):
    """Asks for a table of one teacher that is fitted in the space of another one.

    Attributes:
        base: that other table, a key of `tables`; `fits` asks for it.
    """

    base: str


class CodeParams(FitParams):
    """Asks for the codes that a table makes of a teacher's views.

    Attributes:
        feature: tap and encodings, for instance "final:nearest"; the last encoding reads the table.
        slots: augmented view slots; "all" is every view of a finite space.
    """

    feature: str
    slots: Slots = "all"

    @property
    def code(self) -> str:
        """The feature's full name, for instance "final:nearest@words"."""
        return f"{self.feature}@{self.table}"


class CodeBlock(Block):
    """What `encode_views` depends on beside teacher, data and table.

    Attributes:
        dataset: of the teacher.
        table: key of `tables`.
        code: the feature's full name.
        slots: augmented view slots.
        views: of the data set.
        compression: of the chunks.
    """

    dataset: str
    table: str
    code: str
    slots: Slots
    views: ViewParams
    compression: Literal["none", "zstd"]


class SelfTaughtParams(Block):
    """Asks for a copy of a teacher that learns from its cached logits, to teach students beside it (SLKD*).

    Attributes:
        teacher: a key of `teachers`; its store holds the logits.
        student: a key of `students`, by whose recipe it is trained.
        seed: of order and views; of the init together with the copy's name.
        temperature: of the softened logits.
        weights: of `ce` and `kd`.
        slots: augmented view slots that it sees and that its own logits are stored of.
    """

    teacher: str
    student: str
    seed: int = 0
    temperature: float = Field(default=4.0, gt=0)
    weights: dict[str, float] = {"ce": 0.1, "kd": 0.9}
    slots: Slots = "all"


class SelfTaughtBlock(Block):
    """What `train_self_taught` depends on beside teacher, store and data.

    Attributes:
        name: key of `self_taught`.
        dataset: of the teacher.
        recipe: of the student that it is made for.
        views: of the data set.
        seed: see `SelfTaughtParams`, as the others.
        temperature: of the softened logits.
        weights: of `ce` and `kd`.
        slots: augmented view slots.
        compression: of the store's chunks.
    """

    name: str
    dataset: str
    recipe: Recipe
    views: ViewParams
    seed: int
    temperature: float
    weights: dict[str, float]
    slots: Slots
    compression: Literal["none", "zstd"]


class StudentBlock(StudentParams):
    """What `student_inputs` depends on: a student, and its data set's views."""

    student: str
    views: ViewParams


class PairBlock(Block):
    """What `inputs` depends on: a pair's networks, and the runs that `distill` asks of it, overrides merged.

    Attributes:
        pair: key of `pairs`.
        teacher: key of `teachers`.
        teacher_family: a file of `pipeline/networks/families`.
        student: the student.
        seeds: of the students.
        runs: by name.
    """

    pair: str
    teacher: str
    teacher_family: str
    student: StudentBlock
    seeds: tuple[int, ...]
    runs: dict[str, RunParams]


class FitBlock(Block):
    """What `fit_table` depends on beside the store.

    Attributes:
        dataset: of the teacher.
        table: a file of `pipeline/tables/fits`.
        config: its settings.
    """

    dataset: str
    table: str
    config: dict[str, Any]
