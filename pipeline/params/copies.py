"""The `self_taught` section of params.yaml: copies of a teacher that learn from it (SLKD*)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.params.base import Block, StageBlock
from pipeline.params.recipe import Recipe
from pipeline.params.views import Slots, ViewParams


class SelfTaughtParams(Block):
    """Asks for a copy of a teacher that learns from its cached logits, to teach students beside it (SLKD*).

    Attributes:
        teacher: a key of `teachers`; its store holds the logits.
        student: a key of `students`, by whose recipe it is trained.
        seed: of order and views; of the init together with the copy's name.
        temperature: of the softened logits.
        weights: of `ce` and `kd`.
        slots: augmented view slots that it sees and that its own logits are stored of.
    """

    teacher: str
    student: str
    seed: int = 0
    temperature: float = Field(default=4.0, gt=0)
    weights: dict[str, float] = {"ce": 0.1, "kd": 0.9}
    slots: Slots = "all"


class SelfTaughtBlock(StageBlock):
    """What `train_self_taught` depends on beside teacher, store and data.

    Attributes:
        name: key of `self_taught`.
        dataset: of the teacher.
        recipe: of the student that it is made for.
        views: of the data set.
        seed: see `SelfTaughtParams`, as the others.
        temperature: of the softened logits.
        weights: of `ce` and `kd`.
        slots: augmented view slots.
        compression: of the store's chunks.
    """

    name: str
    dataset: str
    recipe: Recipe
    views: ViewParams
    seed: int
    temperature: float
    weights: dict[str, float]
    slots: Slots
    compression: Literal["none", "zstd"]
