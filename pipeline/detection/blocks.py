"""What the stages of a pair of detectors depend on; see `pipeline/params/pairs.py` for those of classifiers."""

from __future__ import annotations

from typing import Literal

from pipeline.detection.spec import DetectorStudentBlock
from pipeline.params.base import Block, StageBlock
from pipeline.params.matchings import MatchBlock, Wanted
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe


class DetectorRunBlock(Block):
    """A run of a pair with all that it consists of, overrides merged and defaults filled in.

    Attributes:
        methods: files of `pipeline/distillation/methods` with their settings, in their order.
        transform: a file of `pipeline/distillation/transforms`, with its settings, or None.
        recipe: how the student is trained.
        features: taps of the teacher that are read.
        matchings: matchings that are read.
        plugins: code that the run depends on, as "catalogue/name".
    """

    methods: tuple[Plug, ...]
    transform: Plug | None
    recipe: Recipe
    features: tuple[str, ...]
    matchings: tuple[Wanted, ...]
    plugins: tuple[str, ...]


class DetectorPairBlock(StageBlock):
    """What `inputs` depends on: a pair's detectors, and the runs that `distill` asks of it.

    Attributes:
        task: what tells it from a pair of classifiers.
        pair: key of `pairs`.
        teacher: key of `teachers`.
        student: the student.
        seeds: seeds of the students.
        runs: by name.
    """

    task: Literal["detection"] = "detection"
    pair: str
    teacher: str
    student: DetectorStudentBlock
    seeds: tuple[int, ...]
    runs: dict[str, DetectorRunBlock]


class DetectorMatchBlock(MatchBlock):
    """What `match_channels` depends on beside the two detectors.

    Attributes:
        task: what tells it from a matching of classifiers.
    """

    task: Literal["detection"] = "detection"
