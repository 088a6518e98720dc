"""How a network is trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pipeline.errors import ParamsError
from pipeline.params.base import Block
from pipeline.params.numbers import Epochs


class Recipe(Block):
    """SGD with momentum and a step schedule; the defaults are CRD's for CIFAR-100 (arXiv:1910.10699).

    Attributes:
        epochs: passes over the training images; 0 keeps the first weights.
        batch_size: samples a step.
        learning_rate: before any decay, 1,000 at most.
        momentum: of SGD.
        nesterov: Nesterov's form of it.
        weight_decay: on every parameter, BN and scales included, 10 at most.
        milestones: epochs, from 1 to the last, after which the learning rate is multiplied by `decay`; each
            later than the one before.
        decay: that factor.
        warmup: epochs over which the learning rate grows linearly from 0, no more than there are.
        drop_last: drop the last batch of an epoch when it is not full; else one of a single sample joins the batch
            before it.
    """

    epochs: Epochs = 240
    batch_size: int = Field(default=64, ge=2, le=65_536)
    learning_rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    milestones: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = (150, 180, 210)
    decay: float = Field(default=0.1, gt=0, le=1)
    warmup: Epochs = 0
    drop_last: bool = False

    def rate(self, epoch: int) -> float:
        """Return the learning rate of `epoch`, counted from 0."""
        # Milestones count epochs from 1, and `epoch` counts from 0: 150 is the first epoch after milestone 150.
        rate = self.learning_rate * self.decay ** sum(epoch >= milestone for milestone in self.milestones)
        # From 1 / warmup on: an epoch at rate 0 would teach nothing.
        return rate * (epoch + 1) / self.warmup if epoch < self.warmup else rate

    def epochs_of(self, share: float) -> int:
        """Return how many epochs a share of the training is, to the nearest one."""
        # At least one: after none, a checkpoint would be the untrained network.
        return max(1, round(share * self.epochs))

    def shortened(self, share: float) -> Recipe:
        """Return this recipe for a share of its epochs, with milestones and warm-up in proportion."""
        if not self.epochs:
            return self
        milestones = tuple(max(1, round(share * milestone)) for milestone in self.milestones)
        warmup = round(share * self.warmup)
        return self.model_copy(
            update={"epochs": self.epochs_of(share), "milestones": milestones, "warmup": warmup}
        )


def check_course(recipe: Recipe, where: str) -> None:
    """Refuse a recipe whose learning rate would take another course than it says.

    It is asked of whole recipes, not of a part that others change: so it is no part of the model.

    Args:
        recipe: all of its values.
        where: its place, for instance "teachers.resnet8.recipe".

    Raises:
        ParamsError: a rate or decay is no likely one, milestones are not in their order, or the warm-up does not fit
            the epochs.
    """
    for setting, most in (("learning_rate", 1000), ("weight_decay", 10)):
        if (value := getattr(recipe, setting)) > most:
            raise ParamsError(
                f"params.yaml: '{where}': {setting} is {value}, expected {most:,} at most. Lower it."
            )

    milestones = recipe.milestones
    listed = ", ".join(map(str, milestones))
    if any(after <= before for before, after in itertools.pairwise(milestones)):
        raise ParamsError(
            f"params.yaml: '{where}': milestones are {listed}, expected each once, the earliest first. Put them so."
        )
    if not recipe.epochs:
        return  # nothing is trained
    if recipe.warmup > recipe.epochs:
        raise ParamsError(
            f"params.yaml: '{where}': warmup is {recipe.warmup} of {recipe.epochs} epochs, so the learning rate would "
            "not be reached. Lower it."
        )


@dataclass(frozen=True)
class Phase:
    """A part of the training, with an optimizer of its own.

    Attributes:
        name: what `Batch.phase` says.
        recipe: how it is trained.
        frozen: prefixes of the student's parameters that stay as they are, for instance "classifier".
        taught: whether checkpoints of the teacher take turns in it; without, they are spread over the other phases.
    """

    name: str
    recipe: Recipe
    frozen: tuple[str, ...] = ()
    taught: bool = True


@dataclass(frozen=True)
class Epoch:
    """One epoch of a phase.

    Attributes:
        phase: the phase's name.
        number: counted from 0 within the phase.
        epochs: of the phase.
        before: epochs of the phases before it in which checkpoints of the teacher take turns.
        after: likewise, of the phases after it.
        taught: whether they take turns in this one.
    """

    phase: str
    number: int
    epochs: int
    before: int = 0
    after: int = 0
    taught: bool = True

    @classmethod
    def of(cls, phases: Sequence[Phase], place: int, number: int) -> Epoch:
        """Return an epoch of the phase at a place among all, by its number there."""
        turns = [phase.recipe.epochs if phase.taught else 0 for phase in phases]
        phase = phases[place]
        return cls(
            phase.name,
            number,
            phase.recipe.epochs,
            before=sum(turns[:place]),
            after=sum(turns[place + 1 :]),
            taught=phase.taught,
        )

    @property
    def turn(self) -> tuple[int, int]:
        """Which of the epochs in which checkpoints take turns it is, counted from 0, and how many these are.

        An epoch without them is the last one before it.
        """
        if self.taught:
            return self.before + self.number, self.before + self.epochs + self.after
        return max(0, self.before - 1), max(1, self.before + self.after)


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
