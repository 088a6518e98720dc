"""The sections `matchings` and `borrowed` of params.yaml: a teacher's channels in a student's order (KCD)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.params.base import Block, StageBlock
from pipeline.params.numbers import Seed, Width

Measure = Literal["l1", "l2", "cosine", "correlation", "kl"]
Strategy = Literal["bipartite", "greedy", "random", "identity", "fc", "residual"]
LEARNED = ("fc", "residual")
MEASURED = "measured"  # the folder of what was measured of a matching, beside its files


class MatchingParams(Block):
    """A recipe: how channels of a teacher are matched to those of a student that was trained alone.

    Attributes:
        student_tap: of the student, a map or a vector.
        teacher_feature: of the teacher, as its store has it: "final", "final:pooled", "stage3_pre".
        measure: how consistent two channels are.
        strategy: how teacher channels are chosen by it. The learned ones, "fc" and "residual", are small networks
            in the place of a permutation.
        student_weights: of the student alone; "init" is theta0, before its training.
        teacher_checkpoint: of the teacher; "init" is the untrained teacher.
        ranges: contiguous ranges of labels, each with a permutation of its own.
        seed: of the random permutation and of the learned networks, beside the student's.
        epochs: of the training of the learned networks.
        pictured: the class whose mean maps the report shows, counted from 0.
    """

    student_tap: str = "final"
    teacher_feature: str = "final"
    measure: Measure = "correlation"
    strategy: Strategy = "bipartite"
    student_weights: Literal["last", "init"] = "last"
    teacher_checkpoint: str = "last"
    ranges: Width = 1
    seed: Seed = 0
    epochs: int = Field(default=5, ge=1, le=100_000)
    pictured: int = Field(default=0, ge=0, le=1_000_000)

    @model_validator(mode="after")
    def _learned_ones_are_one(self) -> Self:
        # Correlation is the very thing that they are trained to raise, so no other measure applies.
        if self.strategy in LEARNED and (self.ranges > 1 or self.measure != "correlation"):
            raise ValueError(
                f"strategy {self.strategy} learns one network by correlation. Drop ranges and measure, or choose "
                "a permutation"
            )
        return self


class Wanted(Block):
    """A matching that a run reads.

    Attributes:
        matching: key of `matchings`.
        teacher: another teacher than the pair's own, or None.
        seed: the seed of another student than the run's own, or None.
    """

    matching: str
    teacher: str | None = None
    seed: int | None = None

    @property
    def key(self) -> str:
        """Its name among a run's matchings, for instance "kcd", "other/kcd" or "kcd@1"."""
        before = "" if self.teacher is None else f"{self.teacher}/"
        return before + self.matching + ("" if self.seed is None else f"@{self.seed}")


class BorrowedParams(Block):
    """Asks for a matching of a pair's students with another teacher of the same network (KCD's Table 3).

    Attributes:
        pair: a key of `pairs`, whose students are taught with it.
        teacher: a key of `teachers`, not the pair's own.
        student: the pair's student.
        matching: a key of `matchings`.
    """

    pair: str
    teacher: str
    student: str
    matching: str


class Match(Block):
    """One matching of one student with one teacher, in all seeds.

    Attributes:
        matching: key of `matchings`.
        recipe: how it is made.
        teacher: key of `teachers`.
        student: key of `students`.
        dataset: data set of both.
    """

    matching: str
    recipe: MatchingParams
    teacher: str
    student: str
    dataset: str


class MatchBlock(StageBlock):
    """What `match_channels` depends on beside students, teacher and store.

    Attributes:
        pair: key of `pairs`.
        teacher: key of `teachers`.
        student: key of `students`.
        dataset: data set of both.
        seeds: seeds of the students.
        recipes: the matchings that runs of the pair ask for, by key of `matchings`.
    """

    pair: str
    teacher: str
    student: str
    dataset: str
    seeds: tuple[int, ...]
    recipes: dict[str, MatchingParams]

    def files(self, folder: Path) -> list[Path]:
        """Return the files that matchings in `folder` consist of, in a fixed order."""
        return [
            folder / name / part / f"{seed}.npz"
            for name in self.recipes
            for part in ("", MEASURED)
            for seed in self.seeds
        ]

    def matches(self) -> list[Match]:
        """Return the matchings one by one."""
        return [
            Match(
                matching=name,
                recipe=recipe,
                teacher=self.teacher,
                student=self.student,
                dataset=self.dataset,
            )
            for name, recipe in self.recipes.items()
        ]
