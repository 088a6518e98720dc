"""KCD's transformation of the teacher: its channels in the order of the student's (arXiv:2103.16844).

Place j of a transformed feature is the teacher's channel permutation[j], on maps, pooled vectors and pre-activations
alike. The permutation is an artifact of `match_channels`: the student trained alone from theta0 against the teacher;
the distilled student starts from the same theta0. A matching by ranges of labels has a permutation for each, taken by
the sample's label. Where the matching is a learned network, that network is applied instead.

The paper's ablations are settings: `seed` takes the matching of another student's theta0 and `teacher` that of another
teacher (Table 3), `dynamic` matches anew every so many epochs (Table 5). For that the features of the last epoch
before are recorded as training sees them, augmented, with the student's batch norms in training mode; the measure and
the strategy are the matching's own, and its permutation is the first one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline import seeding
from pipeline.distillation.method import Batch, Context, Known, Matchings, Needs
from pipeline.distillation.transform import TeacherTransform, TransformConfig
from pipeline.errors import ParamsError, ShapeError
from pipeline.matching.assignment import assign
from pipeline.matching.consistency import Statistics, pooled, range_of
from pipeline.matching.rearrangement import Rearrangement
from pipeline.networks.network import Shape, Taps
from pipeline.params.matchings import LEARNED, Wanted
from pipeline.params.numbers import Names, Seed
from pipeline.params.recipe import Epoch


class Config(TransformConfig):
    """Settings of the permutation.

    Attributes:
        matching: key of `matchings`.
        features: the teacher features that are permuted.
        teacher: another teacher than the pair's own, whose matching is taken; None is the pair's own.
        seed: the seed of another student than the run's own, whose matching is taken; None is the run's own.
        dynamic: epochs after which the first of `features` is matched anew; None never does.
        student_tap: what `dynamic` matches it to.
    """

    matching: str = "kcd"
    features: Names = Field(default=("final",), min_length=1)
    teacher: str | None = None
    seed: Seed | None = None
    dynamic: int | None = Field(default=None, ge=1, le=100_000)
    student_tap: str = "final"

    def resolved(self, known: Known) -> Self:
        """Return these settings with tap and features in full."""
        features = tuple(dict.fromkeys(known.teacher.resolved(name) for name in self.features))
        return self.model_copy(update={
            "features": features, "student_tap": known.student.resolved(self.student_tap),
        })  # fmt: skip


class Transform(TeacherTransform[Config]):
    """The permutation, or the learned network in its place."""

    finished: Tensor
    current: Tensor

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        matching = context.matchings[_wanted(config).key]
        self.recipe, self.origin = matching.recipe, matching.origin
        dynamic = config.dynamic is not None
        if dynamic and self.recipe.strategy in LEARNED:
            raise ParamsError(
                f"Matching '{config.matching}' is a learned network, and 'dynamic' finds permutations. Drop dynamic "
                "from the run's transform, or choose another matching, in params.yaml."
            )

        self.rearrangement = Rearrangement(matching, changes=dynamic)
        self.recorded = nn.ModuleList()
        if dynamic:
            shapes = context.teacher_shapes[config.features[0]], context.student_shapes[config.student_tap]
            teacher, student = (shape[0] for shape in shapes)
            if student != matching.width:
                raise ShapeError(
                    f"Student tap '{config.student_tap}' has {student} channels, and matching "
                    f"'{config.matching}' gives {matching.width}. Name the matching's own student_tap in the run's "
                    "transform, in params.yaml."
                )

            measure, ranges = self.recipe.measure, self.recipe.ranges
            self.recorded.extend(Statistics(teacher, student, measure) for _ in range(ranges))
            self.register_buffer("finished", torch.tensor(0))  # epochs
            self.register_buffer("current", torch.tensor(-1))  # which epoch it is, over all phases
        self.recording = False  # whether this epoch counts for the next matching

    @classmethod
    def needs(cls, config: Config) -> Needs:
        """Return the matching; matching anew reads the two features as well."""
        needs = Needs(student=(), matchings=(_wanted(config),))
        if config.dynamic is None:
            return needs
        return needs | Needs(student=(config.student_tap,), teacher=config.features[:1])

    @classmethod
    def changes(cls, config: Config) -> tuple[str, ...]:
        """Return the features that are permuted."""
        return config.features

    @classmethod
    def shapes(
        cls, config: Config, teacher: Mapping[str, Shape], matchings: Matchings
    ) -> Mapping[str, Shape]:
        """Return the shapes with the student's number of channels.

        Raises:
            ParamsError: the run does not read a feature that is to be permuted.
            ShapeError: a feature has another number of channels than the one that was matched.
        """
        matching, shapes = matchings[_wanted(config).key], dict(teacher)
        for feature in config.features:
            if feature not in teacher:
                raise ParamsError(
                    f"The transform permutes teacher feature '{feature}', and the run reads "
                    f"{', '.join(teacher) or 'none'}. Name one of these in its 'features', in params.yaml."
                )

            if len(teacher[feature]) not in (1, 3) or teacher[feature][0] != matching.origin.channels:
                raise ShapeError(
                    f"Teacher feature '{feature}' has shape {teacher[feature]}, and matching '{config.matching}' was "
                    f"made for {matching.origin.channels} channels. Match that feature in 'matchings' in params.yaml."
                )

            # Channels come first in maps and vectors alike.
            shapes[feature] = (matching.width, *teacher[feature][1:])
        return shapes

    def forward(self, teacher: Taps, batch: Batch) -> Taps:
        """Return the features, those of `features` permuted."""
        # A schedule's own lessons may lack some.
        known = [name for name in self.config.features if name in teacher]
        return {**teacher, **{name: self.rearrangement(teacher[name], batch.label) for name in known}}

    @torch.no_grad()
    def start(self, epoch: Epoch) -> Hashable:
        """Match anew where that is due, and say whether this epoch is recorded: only the last one before a matching."""
        every = self.config.dynamic
        if every is None:
            return None

        # A number for phase and epoch, since a buffer holds no text.
        current, now = int(self.current), seeding.derive(epoch.phase, epoch.number)
        if now != current:
            if current != -1:
                self.finished += 1
                if int(self.finished) % every == 0:
                    self._match()
            self.current.fill_(now)
        self.recording = (int(self.finished) + 1) % every == 0
        return self.recording

    @torch.no_grad()
    def observe(self, student: Taps, batch: Batch) -> None:
        """Record a batch of an epoch that is recorded."""
        if not self.recording:
            return
        a = pooled(batch.teacher[self.config.features[0]])
        b = pooled(student[self.config.student_tap])
        ranges = range_of(batch.label, self.recipe.ranges, self.origin.classes)
        for number, statistics in enumerate(self.recorded):
            assert isinstance(statistics, Statistics)
            if len(self.recorded) == 1:
                statistics.add(a, b)
            else:
                chosen = ranges == number
                statistics.add(a[chosen], b[chosen])

    def _match(self) -> None:
        for number, statistics in enumerate(self.recorded):
            assert isinstance(statistics, Statistics)
            # A range of labels that did not occur keeps its permutation.
            if statistics.count > 0:
                generator = seeding.generator(self.recipe.seed, self.origin.seed, "match", number)
                permutation = assign(statistics.matrix().cpu().numpy(), self.recipe.strategy, generator)
                device = statistics.count.device
                self.rearrangement.permutation[number] = torch.as_tensor(permutation).to(device)
            statistics.reset()


def _wanted(config: Config) -> Wanted:
    return Wanted(matching=config.matching, teacher=config.teacher, seed=config.seed)
