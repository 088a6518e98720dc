"""What a detector is and how it is trained: what its stage depends on, and what stands beside its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from pipeline.detection.detector_settings import DetectorSettings
from pipeline.detection.layout import Meta
from pipeline.params.base import Block, StageBlock
from pipeline.params.detection import BoxViews
from pipeline.params.recipe import Recipe
from pipeline.params.weights import Weights

EVALUATED = 20  # epochs of a training that are evaluated at most, at equal distances; the last one always


class DetectorSpec(Block):
    """Everything that is needed to build a detector again beside its weights, and to show it an image.

    Attributes:
        task: what tells it from a classifier's.
        network: its name.
        classes: number of classes, without the background.
        settings: how it is built, without null, since the weights beside it do not say where the first ones came from.
        views: of which it is evaluated on the plain one.
        mean: normalization of the images.
        std: as `mean`.
    """

    task: Literal["detection"] = "detection"
    network: str
    classes: int = Field(ge=1, le=1_000_000)
    settings: DetectorSettings
    views: BoxViews
    mean: tuple[float, ...]
    std: tuple[float, ...]


class LearnerBlock(StageBlock):
    """What a stage depends on that trains a detector by itself.

    Attributes:
        task: what tells it from a classifier's.
        dataset: key of `datasets`.
        network: a detector's name.
        settings: how it is built.
        weights: where its first weights come from.
        recipe: how it is trained.
        views: what it sees.
    """

    task: Literal["detection"] = "detection"
    dataset: str
    network: str
    settings: DetectorSettings
    weights: Weights = "none"
    recipe: Recipe
    views: BoxViews

    def spec(self, meta: Meta) -> DetectorSpec:
        """Return the detector of some data."""
        return DetectorSpec(
            network=self.network,
            classes=len(meta.classes),
            settings=self.settings.resolved(self.weights != "none"),
            views=self.views,
            mean=meta.mean,
            std=meta.std,
        )


class DetectorBlock(LearnerBlock):
    """What `train_teacher` depends on where the teacher is a detector.

    Attributes:
        teacher: key of `teachers`.
        seed: seed of init, order, views and sampled boxes.
        anchors: shares of its training after which a checkpoint is kept.
    """

    teacher: str
    seed: int
    anchors: tuple[float, ...]

    def trained_from(self, fingerprint: Mapping[str, str]) -> dict[str, Any]:
        """Return all that a training by this block depends on, as json holds it.

        Args:
            fingerprint: of the data, by split.
        """
        return {"teacher": self.model_dump(mode="json"), "data": dict(fingerprint)}


class DetectorStudentBlock(LearnerBlock):
    """What `student_inputs` depends on where the student is a detector.

    Attributes:
        student: key of `students`.
    """

    student: str


def evaluated(epochs: int) -> Callable[[int], bool]:
    """Return which of so many epochs of a training are evaluated, by how many are done at their end."""
    apart = math.ceil(epochs / EVALUATED) or 1
    return lambda done: done % apart == 0 or done == epochs
