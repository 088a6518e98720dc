"""How a network is trained."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from pipeline.errors import unknown_name
from pipeline.params.base import Block
from pipeline.params.numbers import Once, Steps, effective

Beta = Annotated[float, Field(ge=0, lt=1)]
# Settings that are in a recipe's json where they are used alone: those who do not use them keep what they have trained.
LATER = (
    "optimizer", "betas", "eps", "undecayed", "schedule", "final", "label_smoothing", "clip", "ema", "class_weights",
    "sampling",
)  # fmt: skip


class Recipe(Block):
    """How long, by which optimizer and at which rate; the defaults are CRD's for CIFAR-100 (arXiv:1910.10699).

    Attributes:
        epochs: passes over the training images; 0 keeps the first weights, None leaves it to `iterations`.
        iterations: steps in all, in the place of `epochs`; the last epoch ends with the last of them. `milestones`,
            which are to be given then, and `warmup` count steps.
        batch_size: samples a step.
        learning_rate: before any decay, 1,000 at most; AdamW has no default of its own.
        momentum: of SGD.
        nesterov: Nesterov's form of it.
        weight_decay: on every parameter but `undecayed`, BN and scales included, 10 at most.
        milestones: epochs, from 1 to the last, after which the learning rate is multiplied by `decay`; each
            later than the one before. With `iterations` they are steps, which may lie within an epoch.
        decay: that factor.
        warmup: epochs over which the learning rate grows linearly from 0, no more than there are; with `iterations`
            steps.
        drop_last: drop the last batch of an epoch when it is not full; else one of a single sample joins the batch
            before it.
        optimizer: SGD with momentum, or AdamW, whose weight decay is decoupled.
        betas: decay of AdamW's mean of the gradients, and of their squares.
        eps: what AdamW adds to the root of the squares.
        undecayed: parameters without weight decay: `bias`, all that are named so, those of norms too; `norm`, all
            of batch norms, layer norms and their like.
        schedule: of the learning rate: `steps` falls at the milestones, `cosine` as half a wave from the end of the
            warm-up to the end, and has none.
        final: share of the learning rate at which the cosine would arrive, below 1.
        label_smoothing: share of each label that is spread over all classes, in the term `ce`.
        clip: largest norm of the gradient of all that is trained, in each step; null lets it be any.
        ema: decay, a step, of an exponential moving average of the network's weights and statistics, which is
            evaluated and kept in the place of the last step's; null keeps none.
        class_weights: what the label of an image weighs in the term `ce`, by its class: `balanced` in inverse
            proportion to the number of images, or `{CLASS: weight}`, where others weigh 1; the mean over images is 1.
        sampling: `shuffled` shows every image once an epoch; `balanced` draws from each class equally often, as many
            images an epoch in all.
    """

    epochs: int | None = Field(default=240, ge=0, le=100_000)
    iterations: int | None = Field(default=None, ge=1, le=10_000_000)
    batch_size: int = Field(default=64, ge=2, le=65_536)
    learning_rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0)
    milestones: tuple[Steps, ...] = (150, 180, 210)
    decay: float = Field(default=0.1, gt=0, le=1)
    warmup: int = Field(default=0, ge=0, le=10_000_000)
    drop_last: bool = False
    optimizer: Literal["sgd", "adamw"] = "sgd"
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, le=1)
    undecayed: Annotated[tuple[Literal["bias", "norm"], ...], Once] = ()
    schedule: Literal["steps", "cosine"] = "steps"
    final: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0, le=1e6)
    ema: float | None = Field(default=None, gt=0, lt=1)
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    sampling: Literal["shuffled", "balanced"] = "shuffled"

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused = {name for name in LATER if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in write(self).items() if name not in unused}

    @field_validator("class_weights", mode="before")
    @classmethod
    def _of_classes(cls, given: Any) -> Any:
        # Before the types: of a wrong weight they would say that all of it should be 'balanced'.
        if not isinstance(given, Mapping):
            return given
        if not given:
            raise ValueError("It names no class: name one at least, or leave it out")
        for name, weight in given.items():
            if type(weight) not in (int, float) or not 0 <= weight <= 1e9:
                raise ValueError(f"It weighs class '{name}' with {weight!r}: give 0 or more, 1e9 at most")
        return given

    @model_validator(mode="after")
    def _balanced_once(self) -> Self:
        if self.class_weights == "balanced" and self.sampling == "balanced":
            raise ValueError("It has class_weights: balanced and sampling: balanced: give one of them")
        if isinstance(self.class_weights, dict):
            effective(self.class_weights)
        return self

    @model_validator(mode="after")
    def _own_rate(self) -> Self:
        if self.optimizer == "adamw" and "learning_rate" not in self.model_fields_set:
            raise ValueError(
                "It has optimizer: adamw, for which SGD's learning rate is too high: give learning_rate"
            )
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.schedule == "cosine" and "milestones" not in self.model_fields_set:
            object.__setattr__(self, "milestones", ())  # frozen; its default is of steps
            self.model_fields_set.add("milestones")

        given = self.model_fields_set
        if self.iterations is None:
            if self.epochs is None:
                raise ValueError("It has no epochs and no iterations: give one of them")
            return self

        if "epochs" not in given:
            object.__setattr__(self, "epochs", None)  # frozen; its default is of a recipe in epochs
        if self.epochs is not None:
            raise ValueError("It has epochs and iterations: give one of them")
        if "milestones" not in given:
            raise ValueError(
                "It has iterations, so milestones count steps: give them, or milestones: [] for a constant rate"
            )
        return self

    def check_classes(self, classes: Collection[str], where: str) -> None:
        """Refuse class weights of a class that is not there.

        Args:
            classes: class names.
            where: what is trained, for the error.

        Raises:
            UnknownNameError: there is none of that name.
        """
        if isinstance(self.class_weights, dict):
            for name in self.class_weights:
                if name not in classes:
                    raise unknown_name(f"class of class_weights of {where}:", name, classes)

    @property
    def trains(self) -> bool:
        """Say whether any step is taken, where there is a batch."""
        return self.epochs != 0

    def rate(self, done: int) -> float:
        """Return the learning rate after `done` epochs, or steps of a recipe in iterations."""
        if self.schedule == "cosine":
            rate = self.learning_rate * self._cosine(done - self.warmup)
        else:
            # The epoch after milestone 150 is that with 150 epochs done.
            rate = self.learning_rate * self.decay ** sum(done >= milestone for milestone in self.milestones)
        # From 1 / warmup on: an epoch at rate 0 would teach nothing.
        return rate * (done + 1) / self.warmup if done < self.warmup else rate

    def _cosine(self, done: int) -> float:
        """Return the share of the learning rate that is left when `done` epochs or steps have followed the warm-up."""
        if done <= 0:
            return 1.0
        length = (self.iterations or self.epochs or 0) - self.warmup
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done / length)) / 2

    def num_epochs(self, steps: int) -> int:
        """Return the number of epochs, of which the last may be cut short.

        Args:
            steps: those of a whole epoch.
        """
        if self.iterations is None:
            return self.epochs or 0
        return math.ceil(self.iterations / steps) if steps else 0  # no batch, so no epoch

    def num_steps(self, steps: int) -> int:
        """Return the number of steps in all, where a whole epoch has `steps`."""
        return self.num_epochs(steps) * steps if self.iterations is None else self.iterations

    def rates(self, epoch: int, steps: int) -> list[float]:
        """Return the learning rate of every step of an epoch.

        Args:
            epoch: counted from 0.
            steps: those of a whole epoch.
        """
        if self.iterations is None:
            return [self.rate(epoch)] * steps
        return [self.rate(done) for done in range(epoch * steps, min((epoch + 1) * steps, self.iterations))]

    def epochs_of(self, share: float, steps: int) -> int:
        """Return after how many epochs a share of the training is done, to the nearest one.

        Args:
            share: in (0, 1).
            steps: those of a whole epoch.
        """
        # At least one: after none, a checkpoint would be the untrained network.
        whole = self.epochs if self.iterations is None else self.iterations / steps
        return max(1, round(share * (whole or 0)))

    def over(self, epochs: int) -> Self:
        """Return this recipe over some epochs at a constant rate; a warm-up that counts steps is not one of epochs."""
        warmup = self.warmup if self.iterations is None else 0
        length = {"epochs": epochs, "iterations": None, "warmup": warmup}
        return self.model_copy(update={**length, "schedule": "steps", "final": 0.0, "milestones": ()})

    def shortened(self, share: float) -> Recipe:
        """Return this recipe for a share of its training, with milestones and warm-up in proportion."""
        if not self.trains:
            return self
        # Milestones, warm-up and length count in one unit, whichever it is.
        unit, length = ("iterations", self.iterations) if self.iterations else ("epochs", self.epochs or 0)
        milestones = tuple(max(1, round(share * milestone)) for milestone in self.milestones)
        warmup = round(share * self.warmup)
        return self.model_copy(
            update={unit: max(1, round(share * length)), "milestones": milestones, "warmup": warmup}
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
    def of(cls, phases: Sequence[Phase], place: int, number: int, steps: int) -> Epoch:
        """Return an epoch of the phase at a place among all.

        Args:
            phases: all of them.
            place: of the phase among them.
            number: of the epoch within the phase, counted from 0.
            steps: those of a whole epoch.
        """
        turns = [phase.recipe.num_epochs(steps) if phase.taught else 0 for phase in phases]
        phase = phases[place]
        return cls(
            phase.name,
            number,
            phase.recipe.num_epochs(steps),
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
