"""Contract of `pipeline/distillation/schedules/`: which teachers teach, and when.

A schedule composes with every method. It may choose among the checkpoints of the teacher (RCO's anchors), and
it may train networks of its own beside the student that teach it too (SLKD). A plug-in file holds `Config` and
`Schedule` (a `TeacherSchedule`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn

from pipeline.distillation.method import BaseMethod, Batch, Context, MethodConfig, Needs, Terms, Weights
from pipeline.networks.network import Taps
from pipeline.params.base import Block


class ScheduleConfig(Block):
    """Settings that every schedule has: none."""


@dataclass(frozen=True)
class Lesson:
    """One application of the method.

    Attributes:
        teacher: the features that it learns from.
        weight: of all its terms.
        name: prefix of its terms, "" for the teacher's own lesson.
        weights: of its terms, by the method's names; None are the method's own weights.
        terms: those that count, by the method's names; None is all of them.
    """

    teacher: Taps
    weight: float = 1.0
    name: str = ""
    weights: Weights | None = None
    terms: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """What a schedule has for one batch.

    Attributes:
        lessons: the method is applied to each.
        terms: of the schedule's own, unweighted: of its networks, and of the student. Their names have a prefix
            that no lesson has.
        weights: of those terms.
    """

    lessons: tuple[Lesson, ...]
    terms: Terms = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)


C = TypeVar("C", bound=ScheduleConfig)


class TeacherSchedule(nn.Module, Generic[C]):
    """Decides who teaches. Its parameters are trained beside the student and never saved with it.

    Args:
        config: the schedule's settings.
        context: what may be known before training.
    """

    def __init__(self, config: C, context: Context) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def checkpoints(cls, config: C) -> tuple[str, ...]:
        """Return the teacher checkpoints that it uses."""
        return ("last",)

    @classmethod
    def needs(cls, config: C) -> Needs:
        """Return what it reads beside the method: student taps, features, the teacher's own network (to copy it)."""
        return Needs(student=())

    @classmethod
    def check(cls, config: C, method: type[BaseMethod[Any]], settings: MethodConfig) -> None:
        """Refuse a method that it cannot teach by, under the method's `settings`; every method by default.

        Raises:
            ParamsError: the method is not one that it can teach by.
        """

    @classmethod
    def self_taught(cls, config: C) -> tuple[str, ...]:
        """Return the self-taught copies of the teacher whose stored logits it reads, as feature "<name>/logits"."""
        return ()

    def checkpoint(self, epoch: int, epochs: int) -> str:
        """Return the checkpoint that teaches in `epoch` of `epochs`."""
        return "last"

    def diagnose(self) -> dict[str, float]:
        """Return what the epoch showed beside its terms; see `BaseMethod.diagnose`."""
        return {}

    def forward(self, student: Taps, batch: Batch) -> Plan:
        """Return the lessons of a batch.

        Args:
            student: needed taps of the student, (B, ...), float32, with gradients.
            batch: images, labels and the teacher's features, before any transform.
        """
        return Plan((Lesson(batch.teacher),))
