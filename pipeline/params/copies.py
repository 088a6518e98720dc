"""The `copies` section of params.yaml: copies of a teacher that learn from it (SLKD*); and what assistants share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import field_validator

from pipeline.params.base import Block, StageBlock
from pipeline.params.numbers import Effective, Seed, Temperature, Weight
from pipeline.params.recipe import Recipe
from pipeline.params.teaching import Drop
from pipeline.params.views import Slots, ViewParams


class TaughtParams(Block):
    """A network that learns by KD from stored logits, and whose own logits are stored for students.

    Attributes:
        teacher: a key of `teachers`; its store holds the logits.
        seed: seed of order and views; together with the name, of the init.
        temperature: temperature of the softened logits.
        weights: weights of `ce` and `kd`, 0 or above and not both 0.
        slots: augmented view slots that it sees and that its own logits are stored of.
    """

    teacher: str
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


class CopyParams(TaughtParams):
    """Asks for a copy of a teacher that learns from its cached logits, to teach students beside it (SLKD*).

    Attributes:
        student: a key of `students`, by whose recipe it is trained.
    """

    student: str


class CopyBlock(StageBlock):
    """What a copy or an assistant depends on beside the data and those that it learns from.

    Attributes:
        name: key of `copies` or `assistants`.
        teacher: key of `teachers`.
        dataset: key of `datasets`.
        family: a file of `pipeline/networks/families`.
        network: a network of that family; a copy's is the teacher's own.
        source: hash of the network's code where that is not its family's.
        recipe: how it is trained.
        views: what it sees.
        learns_from: "teacher", and the assistants that it learns from.
        drop: see `AssistantParams`.
        seed: see `TaughtParams`, as the others.
        temperature: temperature of the softened logits.
        weights: weights of `ce` and `kd`.
        slots: augmented view slots.
        compression: compression of the store's chunks.
    """

    name: str
    teacher: str
    dataset: str
    family: str
    network: str
    source: str
    recipe: Recipe
    views: ViewParams
    learns_from: tuple[str, ...]
    drop: Drop
    seed: int
    temperature: float
    weights: dict[str, float]
    slots: Slots
    compression: Literal["none", "zstd"]
