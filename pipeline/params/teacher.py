"""How a teacher is made: what its training depends on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.params.base import Block, StageBlock
from pipeline.params.recipe import Recipe
from pipeline.params.views import ViewParams


class TrainingParams(Block):
    """How a teacher is made.

    Attributes:
        dataset: a key of `datasets`.
        family: a file of `pipeline/networks/families`.
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

    @field_validator("anchors")
    @classmethod
    def _named_apart(cls, anchors: tuple[float, ...]) -> tuple[float, ...]:
        names = [anchor_name(share) for share in anchors]
        if len(set(names)) < len(names):
            raise ValueError(
                f"They are kept as {', '.join(names)}: expected shares that differ by a hundredth or more"
            )
        return anchors


class TrainBlock(TrainingParams, StageBlock):
    """What `train_teacher` depends on: a teacher without its `extract`, and its data set's views."""

    teacher: str
    views: ViewParams


def anchor_name(share: float) -> str:
    """Return the checkpoint name of an anchor: after 0.25 of the training it is anchor_025."""
    return f"anchor_{round(100 * share):03d}"
