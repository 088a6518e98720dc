"""The `copies` section of params.yaml: copies of a teacher that learn from it (SLKD*)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import field_validator

from pipeline.params.base import Block, StageBlock
from pipeline.params.numbers import Effective, Seed, Temperature, Weight
from pipeline.params.recipe import Recipe
from pipeline.params.views import Slots, ViewParams


class CopyParams(Block):
    """Asks for a copy of a teacher that learns from its cached logits, to teach students beside it (SLKD*).

    Attributes:
        teacher: a key of `teachers`; its store holds the logits.
        student: a key of `students`, by whose recipe it is trained.
        seed: seed of order and views; together with the copy's name, of the init.
        temperature: temperature of the softened logits.
        weights: weights of `ce` and `kd`, 0 or above and not both 0.
        slots: augmented view slots that it sees and that its own logits are stored of.
    """

    teacher: str
    student: str
    seed: Seed = 0
    temperature: Temperature = 4.0
    weights: Annotated[dict[str, Weight], Effective] = {"ce": 0.1, "kd": 0.9}
    slots: Slots = "all"

    @field_validator("weights")
    @classmethod
    def _of_both(cls, weights: dict[str, float]) -> dict[str, float]:
        if weights.keys() != {"ce", "kd"}:
            raise ValueError(f"It names {', '.join(weights) or 'nothing'}, expected ce and kd")
        return weights


class CopyBlock(StageBlock):
    """What `train_copy` depends on beside teacher, store and data.

    Attributes:
        name: key of `copies`.
        teacher: key of `teachers`.
        dataset: key of `datasets`.
        recipe: recipe of the student that it is made for.
        views: what it sees.
        seed: see `CopyParams`, as the others.
        temperature: temperature of the softened logits.
        weights: weights of `ce` and `kd`.
        slots: augmented view slots.
        compression: compression of the store's chunks.
    """

    name: str
    teacher: str
    dataset: str
    recipe: Recipe
    views: ViewParams
    seed: int
    temperature: float
    weights: dict[str, float]
    slots: Slots
    compression: Literal["none", "zstd"]
