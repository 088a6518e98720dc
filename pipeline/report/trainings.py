"""What a report says of classifiers and detectors alike: histories, runs in all seeds, pairs, and matched channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.params.matchings import MatchingParams
from pipeline.report.statistics import Estimate, estimate, shared_gain

BASELINE = "kd"  # the run that others are also compared to
LABELS = "ce"  # the term of the label, where the network has no losses of its own
# What the training loop writes of every epoch beside the terms of the loss and measures (`pipeline.training.loop`).
NOT_TERMS = frozenset({"epoch", "phase", "learning_rate", "loss", "seconds", "images_per_second"})

Plugins = Mapping[str, Mapping[str, Any]]  # settings by plug-in
History = dict[str, list[str]]  # columns as the file has them; an empty cell is a term that a phase lacks


class Network:
    """A trained network.

    Attributes:
        seed: the seed of its training.
        metrics: numbers by name.
        history: values by epoch.
    """

    seed: int
    metrics: Mapping[str, Any]
    history: History

    def column(self, name: str) -> NDArray[np.float64]:
        """Return a column of the history (epochs,), NaN where a cell is empty or the column is not there."""
        # A phase of the training lacks the terms of another one.
        empty = [""] * len(self.history.get("epoch", []))
        return np.array([float(cell) if cell else np.nan for cell in self.history.get(name, empty)])


@dataclass(frozen=True)
class Settings:
    """How the students of a run are trained.

    Attributes:
        recipe: the whole recipe.
        changed: settings of the recipe that are this run's own.
        methods: the methods; empty where a student is trained alone.
        schedule: the schedule, which says which teachers teach when.
        transform: what is done to the teacher's features first; empty where nothing is.
        source: "cached" or "online"; empty where there is no teacher.
        slots: the view slots that the student sees; None where the views are unbounded, or there is no teacher.
        views: what the student sees in the place of its data set's views; empty where it sees those.
    """

    recipe: Mapping[str, Any]
    changed: tuple[str, ...] = ()
    methods: Plugins = field(default_factory=dict)
    schedule: Plugins = field(default_factory=dict)
    transform: Plugins = field(default_factory=dict)
    source: str = ""
    slots: int | None = None
    views: str = ""


N = TypeVar("N", bound=Network)


class InSeeds(Generic[N]):
    """A run of a pair, in all seeds.

    Attributes:
        MEASURES: what its networks are measured by at the end of an epoch; the first compares runs.
        name: key of `runs`, or `ALONE`.
        composition: what it consists of, in words.
        students: one a seed, in the order of `seeds`; without those that are missing.
        settings: how they are trained.
        planned: number of seeds that params.yaml has.
    """

    MEASURES: ClassVar[tuple[str, ...]]
    name: str
    composition: str
    students: tuple[N, ...]
    settings: Settings
    planned: int

    @property
    def title(self) -> str:
        """Its name, and how many seeds it has where some are missing."""
        number = len(self.students)
        return self.name if number == self.planned else f"{self.name} ({number} of {self.planned} seeds)"

    @property
    def measure(self) -> str:
        """What compares it with other runs."""
        return self.MEASURES[0]

    def values(self, metric: str) -> list[float]:
        """Return a metric, one a seed."""
        return [float(student.metrics[metric]) for student in self.students]

    def estimate(self, metric: str) -> Estimate:
        """Return the mean of a metric over seeds."""
        return estimate(self.values(metric))

    def gain(self, base: InSeeds[N], metric: str | None = None) -> Estimate:
        """Return the mean gain over another run, of the seeds that both have; by default in the first measure."""
        name = metric or self.measure
        ours, theirs = (
            {student.seed: float(student.metrics[name]) for student in run.students} for run in (self, base)
        )
        return shared_gain(ours, theirs, self.planned)

    def shared(self, name: str) -> Any:
        """Return a value of the metrics that all seeds share, or None."""
        return self.students[0].metrics.get(name)

    @property
    def terms(self) -> list[str]:
        """Names of the terms of its loss, in the history's order."""
        # A dot marks what an epoch showed beside its terms: `diagnostics`.
        others = NOT_TERMS.union(self.MEASURES)
        return [name for name in self.students[0].history if name not in others and "." not in name]

    def diagnostics(self, kind: str) -> list[str]:
        """Return the history's columns "<kind>.<...>": what an epoch showed beside its terms."""
        return [name for name in self.students[0].history if name.startswith(f"{kind}.")]


@dataclass(frozen=True)
class Matched:
    """A matching of a pair, in all seeds.

    Attributes:
        name: key of `matchings`.
        teacher: key of `teachers`.
        borrowed: key of `borrowed`; empty where the teacher is the pair's own.
        recipe: the entry of `matchings`.
        numbers: measurements of `match_channels` or `match_borrowed`, one mapping a seed.
        arrays: mean maps of a class, of the first seed; none of detectors.
    """

    name: str
    teacher: str
    borrowed: str
    recipe: MatchingParams
    numbers: tuple[dict[str, Any], ...]
    arrays: dict[str, NDArray[Any]]

    @property
    def title(self) -> str:
        """Its name, with that of the teacher where it is borrowed."""
        return f"{self.name} with {self.teacher}" if self.borrowed else self.name

    def estimate(self, *place: str) -> Estimate | None:
        """Return the mean over seeds of the number at a place, or None where it could not be measured."""
        values = []
        for numbers in self.numbers:
            value: Any = numbers
            for key in place:
                value = value.get(key, {}) if isinstance(value, dict) else {}
            if isinstance(value, int | float):
                values.append(float(value))
        # A mean over some of the seeds would not be comparable with the others.
        return estimate(values) if len(values) == len(self.numbers) else None


R = TypeVar("R", bound=InSeeds[Any])


class OfRuns(Generic[R]):
    """A teacher and a student.

    Attributes:
        name: key of `pairs`.
        student: key of `students`.
        runs: the student alone first, then the runs in the order of params.yaml.
        matchings: the matchings of their channels.
    """

    name: str
    student: str
    runs: tuple[R, ...]
    matchings: tuple[Matched, ...]

    @property
    def alone(self) -> R:
        """The student trained alone."""
        return self.runs[0]

    @property
    def baseline(self) -> R | None:
        """The run that others are also compared to, where the pair has it."""
        return next((run for run in self.runs if run.name == BASELINE), None)

    @property
    def best(self) -> R:
        """The distilled run of the highest mean; the student alone where there is none."""
        return max(self.runs[1:], key=lambda run: run.estimate(run.measure).mean, default=self.alone)

    def ranked(self) -> list[R]:
        """Return the runs by their mean, the best first; equals keep their order."""
        return sorted(self.runs, key=lambda run: -run.estimate(run.measure).mean)
