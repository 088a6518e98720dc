"""The `teachers` section of params.yaml, and what is extracted from a teacher.

Apart from how it is trained (`teacher.py`), so that a new setting here retrains no teacher.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from pipeline.params.base import Block, OrEmpty, StageBlock
from pipeline.params.numbers import Names, Seed
from pipeline.params.plug import Plug
from pipeline.params.teacher import anchor_name
from pipeline.params.top import Top
from pipeline.params.views import Slots, ViewParams
from pipeline.params.weights import Head, WeightsPlug


class FeatureParams(Block):
    """What the store keeps of one teacher feature, beside the plain view.

    Attributes:
        slots: augmented view slots; "all" is every view of a finite space, and 0 the plain view alone.
        dtype: type of the stored numbers; integer codes keep their own.
        top: of "logits" alone: how many of each view are kept, the largest, fewer than there are classes; the rest of
            the probability is spread evenly over the other classes. It is for 1,000 classes and more; left out, all
            are kept.
    """

    slots: Slots = "all"
    dtype: Literal["float16", "float32"] = "float16"
    top: int | None = Field(default=None, ge=1, le=10_000)

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Unused it is not there: stores from before there was any need not be made again.
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "top" or value is not None}

    @property
    def kept(self) -> Top | None:
        """The largest logits that are kept; None where all values are."""
        return None if self.top is None else Top(kept=self.top, dtype=self.dtype)


class TeacherParams(Block):
    """A teacher: a network, how it is trained, and what its store holds.

    Attributes:
        dataset: a key of `datasets`.
        network: a network by name, "family/name" ("timm/convnext_tiny"), or an import path ("pipeline.own.nets:build").
        weights: where its first weights come from: "imagenet" are the library's pretrained ones, a path those of a file
            (safetensors, or a state dict of torch); with `recipe.epochs: 0` they stay.
        head: "linear" fits the classifier to what the network gives before it is trained (or kept): for backbones
            without one for these classes.
        licence: of its weights, in your words; it is recorded, and changes nothing that is made.
        seed: seed of its init, order and views.
        recipe: a key of `recipes`, with changes if there are any; left out, it is CRD's recipe for CIFAR-100.
        anchors: shares of its training, in (0, 1), after which a checkpoint is kept, each at the end of another epoch.
        features: what its store holds, by feature name, "tap" or "tap:encoding": "last", "stage3:attention".
        checkpoints: checkpoints that are stored: "last", "best", "init" (the untrained teacher), or anchors,
            for instance "anchor_050".
        compression: compression of the chunks; half-zero maps shrink by 1.7 with zstd, logits hardly.
        tables: settings of table recipes that differ for this teacher, by key of `tables`. A table that is named
            here is made whether a run reads it or not.
        detector: of a data set with boxes, how the detector is built.
    """

    dataset: str
    network: str
    weights: WeightsPlug = Plug.of("none")
    head: Head = "own"
    licence: str = ""
    seed: Seed = 0
    recipe: Plug | None = None
    anchors: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    features: dict[str, OrEmpty[FeatureParams]] = Field(default={"logits": FeatureParams()}, min_length=1)
    checkpoints: Names = Field(default=("last",), min_length=1)
    compression: Literal["none", "zstd"] = "none"
    tables: OrEmpty[dict[str, OrEmpty[dict[str, Any]]]] = {}
    detector: OrEmpty[dict[str, Any]] = {}

    @field_validator("anchors")
    @classmethod
    def _named_apart(cls, anchors: tuple[float, ...]) -> tuple[float, ...]:
        names = [anchor_name(share) for share in anchors]
        if len(set(names)) < len(names):
            raise ValueError(
                f"They are kept as {', '.join(names)}: expected shares that differ by a hundredth or more"
            )
        return anchors


def checkpoints_of(teacher: TeacherParams) -> tuple[str, ...]:
    """Return the checkpoints that a teacher's training keeps."""
    return ("init", "last", "best", *map(anchor_name, teacher.anchors))


class ExtractBlock(StageBlock):
    """What `extract_features` depends on beside the teacher and its data.

    Attributes:
        teacher: key of `teachers`.
        views: the view space of the augmented slots.
        features: what the store holds, by feature name.
        checkpoints: checkpoints that are stored.
        compression: compression of the chunks.
    """

    teacher: str
    views: ViewParams
    features: dict[str, FeatureParams]
    checkpoints: tuple[str, ...]
    compression: Literal["none", "zstd"]


class CheckBlock(StageBlock):
    """What `check_features` depends on beside a store and its teacher.

    Attributes:
        teacher: key of `teachers`.
        temperatures: those that runs read the teacher's logits at, where the store keeps the largest alone.
    """

    teacher: str
    temperatures: tuple[float, ...] = ()

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if key != "temperatures" or value}


class CodeBlock(StageBlock):
    """What a stage depends on whose settings are all in its command: its code.

    Attributes:
        teacher: key of `teachers`.
    """

    teacher: str
