"""Contract of `pipeline/distillation/methods/`: what a student is trained to minimise, one method a file.

A plug-in file holds a docstring (paper, formula, what differs), `Config` (a `MethodConfig`) and `Method` (a
`BaseMethod`). A method says what it needs, and returns every term of its loss by name, unweighted; the loop
weights and sums them. It touches no disk, and never runs the teacher. A file whose method inserts layers names
their files in `LAYERS`, so that a run depends on their code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.matching.matching import Matching, Wanted
from pipeline.networks.layer import LayerSpec
from pipeline.networks.network import Network, Shape, Taps
from pipeline.params.base import Block
from pipeline.params.recipe import Phase, Recipe

Terms = dict[str, Tensor]  # scalars by name
Weights = dict[str, float]
Tables = Mapping[str, Mapping[str, NDArray[Any]]]  # arrays of fitted tables, by table and array name
Matchings = Mapping[str, Matching]  # by the key of what was wanted


class MethodConfig(Block):
    """Settings that every method has.

    Attributes:
        weights: of the terms, by name; a term that has none is an error.
        insert: layers to put into the student for good, by tap, beside those of the method itself; so a method
            can be compared with another at the same number of parameters.
    """

    weights: Weights
    insert: dict[str, LayerSpec] = {}


@dataclass(frozen=True)
class Needs:
    """What a method reads; schedules and transforms say theirs in the same words.

    Attributes:
        student: taps of the student.
        teacher: features of the teacher, for instance "logits" or "stage3:attention".
        tables: fitted tables, by the names of `tables` in params.yaml.
        network: the teacher's own modules (its classifier for SimKD, its BN for OFD).
        matchings: of the teacher's channels to the student's.
    """

    student: tuple[str, ...] = ("logits",)
    teacher: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    network: bool = False
    matchings: tuple[Wanted, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        """Return what either reads, in the order of first mention."""
        return Needs(
            tuple(dict.fromkeys(self.student + other.student)),
            tuple(dict.fromkeys(self.teacher + other.teacher)),
            tuple(dict.fromkeys(self.tables + other.tables)),
            self.network or other.network,
            tuple(dict.fromkeys(self.matchings + other.matchings)),
        )


@dataclass(frozen=True)
class Operations:
    """What a method does to the student for good: it is saved, evaluated and counted.

    Attributes:
        insert: layers after taps, by tap; what they compute inside is recorded as "<tap>.<name>".
        classifier_width: features that the classifier reads, where a layer inserted at `final` changes them.
    """

    insert: Mapping[str, LayerSpec] = field(default_factory=dict)
    classifier_width: int | None = None


@dataclass(frozen=True)
class Context:
    """What may be known before training.

    Attributes:
        num_classes: number of classes.
        labels: of the training samples, int64 (N,); an index of a batch points into it.
        student: the network that is trained, operations done. Build heads from it (`rest`), but do not keep
            it as a submodule: what a method keeps is trained beside the student and dropped afterwards.
        student_shapes: of every student tap, without the batch axis.
        teacher_shapes: of the needed features, after the transform, without the batch axis.
        tables: arrays of the needed tables, by table and array name.
        teacher: the frozen teacher when `Needs.network` asks for it.
        seed: of the run, for `pipeline.seeding`.
        matchings: the needed ones, by their keys.
        autocast: the context of a forward pass of networks that are added (heads, self-learning teachers);
            losses are computed outside it, in float32.
    """

    num_classes: int
    labels: Tensor
    student: Network
    student_shapes: Mapping[str, Shape]
    teacher_shapes: Mapping[str, Shape]
    tables: Tables = field(default_factory=dict)
    teacher: Network | None = None
    seed: int = 0
    matchings: Matchings = field(default_factory=dict)
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext

    @property
    def num_samples(self) -> int:
        """Number of training samples."""
        return len(self.labels)


@dataclass(frozen=True)
class Batch:
    """A training batch.

    Attributes:
        image: normalised views (B, C, H, W).
        label: int64 (B,).
        index: of the samples in the training split, int64 (B,).
        teacher: needed features by name, (B, ...), without gradients.
        epoch: counted from 0, within the phase.
        epochs: of the phase.
        step: counted from 0, over all phases.
        phase: name of the phase.
        generator: for draws of this step, on the CPU.
    """

    image: Tensor
    label: Tensor
    index: Tensor
    teacher: Taps
    epoch: int
    epochs: int
    step: int
    phase: str
    generator: torch.Generator


C = TypeVar("C", bound=MethodConfig)


class BaseMethod(nn.Module, Generic[C]):
    """A method. Its own parameters (projectors, heads) are trained with the student and dropped afterwards.

    Args:
        config: the method's settings.
        context: what may be known before training.
    """

    def __init__(self, config: C, context: Context) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def needs(cls, config: C) -> Needs:
        """Return what the method reads under `config`."""
        return Needs()

    @classmethod
    def operations(
        cls, config: C, student: Mapping[str, Shape], teacher: Mapping[str, Shape], tables: Tables
    ) -> Operations:
        """Return what is done to the student for good; `config.insert` by default.

        Args:
            config: the method's settings.
            student: shapes of the plain student's taps.
            teacher: shapes of the needed features.
            tables: arrays of the needed tables.
        """
        return Operations(insert=config.insert)

    @property
    def taps(self) -> tuple[str, ...]:
        """The student taps that `forward` reads: those of `needs`, and more where the student decides them."""
        return type(self).needs(self.config).student

    def phases(self, recipe: Recipe) -> tuple[Phase, ...]:
        """Return the parts of the training, in their order; the student's recipe is the only one by default."""
        return (Phase("main", recipe),)

    def weights(self, batch: Batch) -> Weights:
        """Return the weights of the terms at this batch; override it for a warm-up."""
        return self.config.weights

    def diagnose(self) -> dict[str, float]:
        """Return what the epoch showed beside its terms, for the history; asked for once, at an epoch's end.

        A name has a dot, which no term has.
        """
        return {}

    def forward(self, student: Taps, batch: Batch) -> Terms:
        """Return every term, unweighted.

        Args:
            student: needed taps of the student, (B, ...), float32, with gradients.
            batch: images, labels and the teacher's features.
        """
        raise NotImplementedError(f"{type(self).__module__} has no forward")
