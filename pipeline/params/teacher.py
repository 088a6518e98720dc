"""The `datasets` and `teachers` sections of params.yaml: what the teacher's chain reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.params.base import Block
from pipeline.params.recipe import Recipe
from pipeline.params.views import Slots, ViewParams


class DatasetParams(Block):
    """A data set.

    Attributes:
        source: a file of `pipeline/datasets`.
        prepare: that source's own settings.
        views: the augmented views that training may show.
    """

    source: str
    prepare: dict[str, Any] = {}
    views: ViewParams


class FeatureParams(Block):
    """What the store keeps of one teacher feature, beside the plain view.

    Attributes:
        slots: augmented view slots; "all" is every view of a finite space, and 0 the plain view alone.
        dtype: of the stored numbers; integer codes keep their own.
    """

    slots: Slots = "all"
    dtype: Literal["float16", "float32"] = "float16"


class ExtractParams(Block):
    """What is extracted from a teacher.

    Attributes:
        features: by feature name, "tap" or "tap:encoding", for instance "stage3:attention".
        checkpoints: "last", "best", or anchors, for instance "anchor_050".
        compression: of the chunks; half-zero maps shrink by 1.7 with zstd, logits hardly.
        tolerance: largest relative error that `check_features` accepts between store and live teacher.
    """

    features: dict[str, FeatureParams] = Field(min_length=1)
    checkpoints: tuple[str, ...] = Field(default=("last",), min_length=1)
    compression: Literal["none", "zstd"] = "none"
    tolerance: float = Field(default=2e-3, gt=0)


class TrainingParams(Block):
    """How a teacher is made.

    Attributes:
        dataset: a key of `datasets`.
        family: a file of `pipeline/networks`.
        network: a network of that family.
        weights: "imagenet" starts from the library's pretrained weights; with `recipe.epochs: 0` they stay.
        seed: of its init, order and views.
        recipe: how it is trained.
        anchors: shares of its training, in (0, 1), after which a checkpoint is kept.
    """

    dataset: str
    family: str
    network: str
    weights: Literal["none", "imagenet"] = "none"
    seed: int = 0
    recipe: Recipe = Recipe()
    anchors: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()


class TeacherParams(TrainingParams):
    """A teacher.

    Attributes:
        extract: what its store holds.
    """

    extract: ExtractParams


class PrepareBlock(Block):
    """What `prepare_data` depends on: `source` and `prepare` of a data set."""

    source: str
    prepare: dict[str, Any] = {}


class TrainBlock(TrainingParams):
    """What `train_teacher` depends on: a teacher without its `extract`, and its data set's views."""

    teacher: str
    views: ViewParams


class ExtractBlock(Block):
    """What `extract_features` depends on: a teacher's `extract` without the tolerance, and the views."""

    teacher: str
    views: ViewParams
    features: dict[str, FeatureParams]
    checkpoints: tuple[str, ...]
    compression: Literal["none", "zstd"]


class CheckBlock(Block):
    """What `check_features` depends on beside the store."""

    tolerance: float


def anchor_name(share: float) -> str:
    """Return the checkpoint name of an anchor: after 0.25 of the training it is anchor_025."""
    return f"anchor_{round(100 * share):03d}"
