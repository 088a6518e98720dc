"""How a network is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pipeline.params.base import Block


class Recipe(Block):
    """SGD with momentum and a step schedule; the defaults are CRD's for CIFAR-100 (arXiv:1910.10699).

    Attributes:
        epochs: passes over the training images; 0 keeps the first weights.
        batch_size: samples a step.
        learning_rate: before any decay.
        momentum: of SGD.
        nesterov: Nesterov's form of it.
        weight_decay: on every parameter, BN and scales included.
        milestones: epochs, from 1, after which the learning rate is multiplied by `decay`.
        decay: that factor.
        warmup: epochs over which the learning rate grows linearly from 0.
        drop_last: drop the last batch of an epoch when it is not full; else one of a single sample joins the batch
            before it.
    """

    epochs: int = Field(default=240, ge=0)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = (150, 180, 210)
    decay: float = Field(default=0.1, gt=0, le=1)
    warmup: int = Field(default=0, ge=0)
    drop_last: bool = False

    def rate(self, epoch: int) -> float:
        """Return the learning rate of `epoch`, counted from 0."""
        # Milestones count epochs from 1, and `epoch` counts from 0: 150 is the first epoch after milestone 150.
        rate = self.learning_rate * self.decay ** sum(epoch >= milestone for milestone in self.milestones)
        # From 1 / warmup on: an epoch at rate 0 would teach nothing.
        return rate * (epoch + 1) / self.warmup if epoch < self.warmup else rate


@dataclass(frozen=True)
class Phase:
    """A part of the training, with an optimizer of its own.

    Attributes:
        name: what `Batch.phase` says.
        recipe: how it is trained.
        frozen: prefixes of the student's parameters that stay as they are, for instance "classifier".
    """

    name: str
    recipe: Recipe
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Epoch:
    """One epoch of a phase.

    Attributes:
        phase: the phase's name.
        number: counted from 0 within the phase.
        epochs: of the phase.
        before: epochs of the phases before it.
        after: epochs of the phases after it.
    """

    phase: str
    number: int
    epochs: int
    before: int = 0
    after: int = 0


def cut(samples: int, batch_size: int, drop_last: bool = False) -> list[int]:
    """Return how many samples each batch of an epoch has.

    A sample that would be a batch by itself joins the batch before it: of one sample a map of one pixel is one value,
    and a batch norm has nothing to normalize it by.

    Args:
        samples: of the epoch.
        batch_size: samples a batch.
        drop_last: drop the last batch when it is not full.
    """
    whole, left = divmod(samples, batch_size)
    sizes = [batch_size] * whole
    if drop_last or left == 0:
        return sizes
    if left == 1 and sizes:
        return [*sizes[:-1], batch_size + 1]
    return [*sizes, left]
