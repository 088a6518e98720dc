"""The `teachers` section of params.yaml as a whole, and what is extracted from a teacher.

Apart from how it is trained, so that a new setting here retrains no teacher.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.params.base import Block, StageBlock
from pipeline.params.teacher import TrainingParams
from pipeline.params.views import Slots, ViewParams


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
        checkpoints: "last", "best", "init" (the untrained teacher), or anchors, for instance "anchor_050".
        compression: of the chunks; half-zero maps shrink by 1.7 with zstd, logits hardly.
    """

    features: dict[str, FeatureParams] = Field(min_length=1)
    checkpoints: tuple[str, ...] = Field(default=("last",), min_length=1)
    compression: Literal["none", "zstd"] = "none"


class TeacherParams(TrainingParams):
    """A teacher.

    Attributes:
        extract: what its store holds.
    """

    extract: ExtractParams


class ExtractBlock(StageBlock):
    """What `extract_features` depends on: a teacher's `extract`, and the views."""

    teacher: str
    views: ViewParams
    features: dict[str, FeatureParams]
    checkpoints: tuple[str, ...]
    compression: Literal["none", "zstd"]


class CheckBlock(StageBlock):
    """What `check_features` depends on beside teacher and store: its code."""

    teacher: str
