"""A training of a detector, as far as its speed depends on it: what a plan asks a machine about."""

from __future__ import annotations

from pipeline.detection.spec import DetectorSpec
from pipeline.params.base import Block
from pipeline.params.plug import Plug
from pipeline.params.recipe import Recipe


class Lesson(Block):
    """What a student learns of a teacher's maps.

    Attributes:
        methods: with their settings.
        taps: maps of the student that they read.
        features: maps of the teacher.
        seen: shapes of these as the methods see them, for an image of `architecture.SIDE`.
    """

    methods: tuple[Plug, ...]
    taps: tuple[str, ...]
    features: tuple[str, ...]
    seen: dict[str, tuple[int, ...]]

    @property
    def schedule(self) -> Plug:
        """The teacher as it is at the end of its training."""
        return Plug.of("final")

    @property
    def transform(self) -> Plug | None:
        """None: what it would give is in `seen`."""
        return None


class Training(Block):
    """A training of a detector, whose speed a machine can be asked for.

    Attributes:
        dataset: key of `datasets`.
        network: what is trained.
        recipe: how.
        teacher: runs beside it; None where it is trained alone.
        lesson: what is learned of it.
    """

    dataset: str
    network: DetectorSpec
    recipe: Recipe
    teacher: DetectorSpec | None = None
    lesson: Lesson | None = None
