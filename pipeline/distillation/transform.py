"""Contract of `pipeline/distillation/transforms/`: what is done to the teacher's features before a method sees them.

A transform composes with every method (KCD's channel permutation with RKD, say). A plug-in file holds `Config`
and `Transform` (a `TeacherTransform`). It is a frozen module: it is never trained with the student, and always in
evaluation mode. It may watch the training and change itself; what it remembers are persistent buffers, which are
checkpointed with the student.

Example:
    The teacher's logits are scaled before a method sees them:

    >>> class Config(TransformConfig):
    ...     factor: float = 0.5
    >>> class Transform(TeacherTransform[Config]):
    ...     def forward(self, teacher: Taps, batch: Batch) -> Taps:
    ...         return teacher | {"logits": self.config.factor * teacher["logits"]}
    >>> Transform.shapes(Config(), {"logits": (100,)}, {})  # as they were
    {'logits': (100,)}
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, Self, TypeVar

from torch import nn

from pipeline.distillation.method import Batch, Context, Known, Matchings, Needs
from pipeline.networks.network import Shape, Taps
from pipeline.params.base import Block
from pipeline.params.recipe import Epoch


class TransformConfig(Block):
    """Settings that every transform has: none."""

    def resolved(self, known: Known) -> Self:
        """Return these settings with what depends on networks or tables filled in; see `MethodConfig.resolved`."""
        return self


C = TypeVar("C", bound=TransformConfig)


class TeacherTransform(nn.Module, Generic[C]):
    """Maps teacher features to teacher features of the shapes that `shapes` gives.

    Args:
        config: the transform's settings, resolved.
        context: what may be known before training; `teacher_shapes` are those before the transform.
    """

    def __init__(self, config: C, context: Context) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def needs(cls, config: C) -> Needs:
        """Return what it reads: tables, matchings, the teacher's own network, student taps to observe."""
        return Needs(student=())

    @classmethod
    def shapes(cls, config: C, teacher: Mapping[str, Shape], matchings: Matchings) -> Mapping[str, Shape]:
        """Return the shapes of the features that the methods see; those of `teacher` by default.

        Args:
            config: the transform's settings.
            teacher: shapes of the features before the transform, without the batch axis.
            matchings: the needed matchings, by their keys.
        """
        return teacher

    @classmethod
    def changes(cls, config: C) -> tuple[str, ...]:
        """Return the features that it changes: a table that was fitted to one of them no longer fits."""
        return ()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def start(self, epoch: Epoch) -> Hashable:
        """Begin an epoch, where it may change itself; see `BaseMethod.start`."""
        return None

    def observe(self, student: Taps, batch: Batch) -> None:
        """Watch a training step, before its lessons; nothing by default.

        Args:
            student: taps of the student, those of `needs` among them, (B, ...), without gradients.
            batch: with the teacher's features before the transform.
        """

    def student(self, taps: Taps) -> Taps:
        """Return what the methods see of the student, with gradients; its taps as they are by default.

        The labels' term `ce` is always of the logits as they are.

        Args:
            taps: needed taps of the student, (B, ...), float32.
        """
        return taps

    def forward(self, teacher: Taps, batch: Batch) -> Taps:
        """Return the transformed features (B, ...) by name.

        Args:
            teacher: features by name, (B, ...).
            batch: the batch that they belong to (its labels choose KCD's class ranges).
        """
        raise NotImplementedError(f"{type(self).__module__} has no forward")
