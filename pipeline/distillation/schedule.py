"""Contract of `pipeline/distillation/schedules/`: which teachers teach, and when.

A schedule composes with every method. It may choose among the checkpoints of the teacher (RCO's anchors), and
it may train networks of its own beside the student that teach it too (SLKD). A plug-in file holds `Config` and
`Schedule` (a `TeacherSchedule`). Where lessons or their terms change from one epoch to another, `start` returns another
value.

Example:
    The teacher's lesson counts less from epoch to epoch:

    >>> class Config(ScheduleConfig):
    ...     decay: float = 0.5
    >>> class Schedule(TeacherSchedule[Config]):
    ...     def forward(self, student: Taps, batch: Batch) -> Teaching:
    ...         return Teaching((Lesson(batch.teacher, weight=self.config.decay**batch.epoch),))
    >>> Schedule.checkpoints(Config())
    ('last',)
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Self, TypeVar

from torch import Tensor, nn

from pipeline.distillation.method import Batch, Context, Known, Needs, StepWeights, Terms
from pipeline.networks.network import Taps
from pipeline.params.base import Block
from pipeline.params.recipe import Epoch


class ScheduleConfig(Block):
    """Settings that every schedule has: none."""

    def resolved(self, known: Known) -> Self:
        """Return these settings with what depends on networks or tables filled in; see `MethodConfig.resolved`."""
        return self


@dataclass(frozen=True)
class Lesson:
    """One application of the run's methods.

    Attributes:
        teacher: the features that they learn from.
        weight: a factor of all their terms.
        name: prefix of their terms, "" for the teacher's own lesson.
        weights: the terms' weights, by the methods' names; None are the methods' own.
        terms: the terms that count, by the methods' names; None is all of them.
    """

    teacher: Taps
    weight: float | Tensor = 1.0
    name: str = ""
    weights: StepWeights | None = None
    terms: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Teaching:
    """What a schedule has for one batch.

    Attributes:
        lessons: the methods are applied to each.
        terms: the schedule's own terms, unweighted: of its networks, and of the student. Their names have a prefix
            that no lesson has.
        weights: the weights of those terms.
        labels_once: the labels' own term is that of the first lesson, whole and under its own name, whatever the
            lessons weigh; else every lesson has one.
    """

    lessons: tuple[Lesson, ...]
    terms: Terms = field(default_factory=dict)
    weights: StepWeights = field(default_factory=dict)
    labels_once: bool = False


def of_teacher(features: Taps) -> Taps:
    """Return the features of a batch that are the teacher's own, and not of a copy or an assistant."""
    return {name: x for name, x in features.items() if "/" not in name}


C = TypeVar("C", bound=ScheduleConfig)


class TeacherSchedule(nn.Module, Generic[C]):
    """Decides who teaches. Its parameters are trained beside the student and never saved with it.

    Args:
        config: the schedule's settings, resolved.
        context: what may be known before training.

    Attributes:
        strong: whether methods that read a strong view too can learn by it. Its one lesson is then `Batch.teacher`, as
            it is, and the same teacher speaks of the strong view.
    """

    strong: ClassVar[bool] = False

    def __init__(self, config: C, context: Context) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def checkpoints(cls, config: C) -> tuple[str, ...]:
        """Return the teacher checkpoints that it uses."""
        return ("last",)

    @classmethod
    def needs(cls, config: C) -> Needs:
        """Return what it reads beside the methods: student taps, features, the teacher's own network (to copy it)."""
        return Needs(student=())

    @classmethod
    def check(cls, config: C, needs: Needs) -> None:
        """Refuse methods that it cannot teach by; none by default.

        Args:
            config: the schedule's settings.
            needs: what the run's methods read.

        Raises:
            ParamsError: it cannot teach by methods that read this.
        """

    @classmethod
    def who_teaches(cls, config: C) -> tuple[str, ...]:
        """Return who gives a lesson at every step, where these are several: each method must learn from all of them."""
        return ()

    @classmethod
    def copies(cls, config: C) -> tuple[str, ...]:
        """Return the copies and assistants of the teacher whose stored logits it reads, as feature "<name>/logits"."""
        return ()

    def checkpoint(self, epoch: Epoch) -> str:
        """Return the checkpoint that teaches in an epoch."""
        return "last"

    def start(self, epoch: Epoch) -> Hashable:
        """Begin an epoch; see `BaseMethod.start`."""
        return None

    def diagnose(self) -> dict[str, float]:
        """Return what the epoch showed beside its terms; see `BaseMethod.diagnose`."""
        return {}

    def forward(self, student: Taps, batch: Batch) -> Teaching:
        """Return the lessons of a batch.

        Args:
            student: needed taps of the student, (B, ...), float32, with gradients.
            batch: images, labels and the teacher's features, before any transform.
        """
        return Teaching((Lesson(batch.teacher),))
