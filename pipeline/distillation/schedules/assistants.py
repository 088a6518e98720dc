"""TAKD (Mirzadeh et al. 2020, arXiv:1902.03393) and DGKD (Son et al. 2021, arXiv:2009.08825): assistants teach.

L = w_ce CE(s, y) + sum_i b_i L_method(a_i, s), a_i the logits of the i-th that teaches, the teacher or an assistant

Assistants stand between a teacher and a smaller student. They have been trained before any student (`assistants` in
params.yaml), and their stored logits are read. TAKD names the last one of a chain alone, DGKD the teacher and all
assistants. The labels' own term counts once, as in DGKD's code, with the method's weight.

b_i is 1 but for stochastic DGKD, which drops some of those that teach at every mini-batch. `drop: 1` drops one of them
at random, as the authors' code does by default; `drop: 0.25` drops each with that probability. Where this would drop
all, the one with the largest draw is left.

What differs: both papers' codes take the mean of KL over classes too; here it is the method's, and KD sums. They weigh
labels and KL by 1 - lambda and lambda; here these are the method's `weights`. In its paper DGKD sums whole KD losses,
with the labels in each: for that, multiply the method's weight of `ce` by the number of names.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline import seeding
from pipeline.distillation.method import Batch, Needs
from pipeline.distillation.schedule import Lesson, ScheduleConfig, TeacherSchedule, Teaching, of_teacher
from pipeline.errors import ParamsError
from pipeline.networks.network import Taps
from pipeline.params.numbers import Names
from pipeline.params.teaching import TEACHER, Drop, check_drop

DRAW = seeding.derive("assistants")  # apart from what methods draw in the same step


class Config(ScheduleConfig):
    """Settings.

    Attributes:
        names: who teaches: keys of `assistants` in params.yaml, of the run's teacher, and `teacher`.
        drop: how many of them are dropped at a step; or, below 1, the probability of each to be dropped. One at least
            is left.
    """

    names: Names = Field(min_length=1)
    drop: Drop = 0

    @property
    def assistants(self) -> tuple[str, ...]:
        """The names without the teacher's."""
        return tuple(name for name in self.names if name != TEACHER)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_drop(self.drop, self.names)
        if len({_term(name) for name in self.names}) < len(self.names):
            raise ValueError(f"names has {', '.join(self.names)}, which are alike but for a dot: rename one")
        return self


class Schedule(TeacherSchedule[Config]):
    """A lesson from each that teaches, of the same labels."""

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the teacher's logits, where it teaches beside assistants."""
        return Needs(student=(), teacher=("logits",) if TEACHER in config.names else ())

    @classmethod
    def check(cls, config: Config, needs: Needs) -> None:
        """Refuse methods that read anything but logits, which is all that assistants have."""
        others = [name for name in needs.teacher if name != "logits"]
        if config.assistants and (others or "logits" not in needs.teacher):
            raise ParamsError(
                f"The methods read {', '.join(others) or 'nothing'} of the teacher, and assistants have logits alone. "
                "Name methods that read logits and nothing else, or drop the run's schedule, in params.yaml."
            )

    @classmethod
    def who_teaches(cls, config: Config) -> tuple[str, ...]:
        """Return the names, if they are several."""
        return config.names if len(config.names) > 1 else ()

    @classmethod
    def copies(cls, config: Config) -> tuple[str, ...]:
        """Return the assistants' names."""
        return config.assistants

    def forward(self, student: Taps, batch: Batch) -> Teaching:
        """Return the lessons; their terms have the names of who teaches, where there are several."""
        names = self.config.names
        weights: list[float | Tensor] = [1.0] * len(names)
        if self.config.drop:
            weights = list(self._left(batch))

        lessons = (
            Lesson(_features(batch.teacher, name), weight, _term(name) if len(names) > 1 else "")
            for name, weight in zip(names, weights, strict=True)
        )
        return Teaching(tuple(lessons), labels_once=True)

    def _left(self, batch: Batch) -> Tensor:
        """Return 1 for each that teaches at this step, and 0 for the others; float32 (n,)."""
        drop, draws = self.config.drop, batch.uniform(len(self.config.names), draw=DRAW)
        # Of a number: the lowest draws are dropped. Of a probability: those below it, the largest draw aside.
        least = draws.sort().values[drop] if isinstance(drop, int) else draws.amax().clamp(max=drop)
        return (draws >= least).to(torch.float32)


def _features(features: Taps, name: str) -> Taps:
    """Return the features that one of those that teach has."""
    return of_teacher(features) if name == TEACHER else {"logits": features[f"{name}/logits"]}


def _term(name: str) -> str:
    # A dot in a column of the history marks what is no term.
    return name.replace(".", "_")
