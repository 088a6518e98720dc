"""The `pairs` section of params.yaml, and what is distilled of each pair."""

from __future__ import annotations

from typing import Any

from pipeline.params.base import Block
from pipeline.params.runs import RunParams
from pipeline.params.students import StudentBlock


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
