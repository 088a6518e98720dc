"""Methods that read maps alone, beside another loss than that of a label.

A detector says no class of an image. So its methods are given none: their term `ce` is computed from stand-ins and
dropped, and what they lack is refused when they ask for it. What remains must not depend on the stand-ins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from pipeline import seeding
from pipeline.distillation.combination import LABELS
from pipeline.distillation.method import BaseMethod, Batch, Context, Matchings, Terms
from pipeline.errors import ParamsError
from pipeline.networks.network import Network, Shape, Taps
from pipeline.params.recipe import Epoch, Phase, Recipe

LOGITS = "logits"
_CLASSES = 2  # of the stand-ins


class _Absent:
    """Stands where a classifier would: no method of detectors may look at it."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ParamsError(
            "A method builds on the student's own layers, and those of a detector are no classifier's. Name methods "
            "that read maps alone in the run's methods, in params.yaml."
        )


def context(
    student: Mapping[str, Shape],
    teacher: Mapping[str, Shape],
    matchings: Matchings | None = None,
    seed: int = 0,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Context:
    """Return what a method of maps may know before training.

    Args:
        student: shapes of the student's taps, without the batch axis; height and width are those of one image.
        teacher: the same of the teacher, as the method sees them.
        matchings: the needed matchings, by their keys.
        seed: the run's.
        autocast: in which added networks run their forward pass.
    """
    return Context(
        num_classes=_CLASSES,
        labels=torch.zeros(0, dtype=torch.int64),
        student=cast(Network, _Absent()),
        student_shapes=student,
        teacher_shapes=teacher,
        matchings=matchings or {},
        seed=seed,
        autocast=autocast,
    )


def lesson(
    image: Tensor, index: Tensor, teacher: Taps, epoch: Epoch, at: tuple[Tensor, Tensor], seed: int
) -> Batch:
    """Return a batch without labels.

    Args:
        image: padded to one size (B, 3, H, W).
        index: of the samples, int64 (B,).
        teacher: the maps by name, (B, ...), without gradients.
        epoch: which it is.
        at: number of the epoch and of the step, int64 () each, on the device.
        seed: of the run.
    """
    label = torch.zeros(len(index), dtype=torch.int64, device=image.device)
    return Batch(
        image, label, index, teacher,
        epoch=at[0], epochs=epoch.epochs, step=at[1], phase=epoch.phase, seed=seed,
    )  # fmt: skip


def terms(method: BaseMethod[Any], student: Taps, batch: Batch) -> Terms:
    """Return the terms of a method, without that of labels."""
    logits = torch.zeros(len(batch.label), _CLASSES, device=batch.label.device)
    computed = method({**student, LOGITS: logits}, batch)
    return {name: term for name, term in computed.items() if name != LABELS}


def rehearse(method: BaseMethod[Any], student: Mapping[str, Shape], teacher: Mapping[str, Shape]) -> None:
    """Refuse a method that learns from more than maps, in other phases than the recipe's, or from maps of one size.

    Args:
        method: built by `context`.
        student: shapes of the student's maps that it reads, for an image of another size than `context` was given.
        teacher: the same of the teacher.

    Raises:
        ParamsError: it does.
    """
    if method.phases(Recipe()) != (Phase("main", Recipe()),):
        raise ParamsError(
            "A method trains in phases of its own, and detectors have one. Set its epochs to 0 if it has that "
            "setting, or name another in the run's methods, in params.yaml."
        )
    draws, none, epoch = seeding.generator("rehearsal"), torch.tensor(0), Epoch("main", 0, 1)
    maps, taught = (
        {name: torch.rand(2, *shape, generator=draws) for name, shape in shapes.items()}
        for shapes in (student, teacher)
    )
    seen = []
    for label in (0, 1):
        batch = lesson(torch.zeros(2, 3, 1, 1), torch.arange(2), taught, epoch, (none, none), 0)
        batch.label.fill_(label)
        logits = torch.full((2, _CLASSES), float(label)).cumsum(dim=1)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("error")  # losses of torch warn before they compare unequal shapes
                seen.append(method({**maps, LOGITS: logits}, batch))
        except (RuntimeError, UserWarning) as error:
            raise ParamsError(
                f"The methods fit maps of one size, and images of detectors have any ({str(error).splitlines()[0]}). "
                "Choose taps of one stride, in the run's settings in params.yaml."
            ) from None
        weights = method.weights(batch)

    one, two = seen
    if LABELS not in weights:
        raise ParamsError(
            f"The methods have no term '{LABELS}', in whose place a detector's own losses stand. Name a method that "
            "has it in the run's methods, in params.yaml."
        )
    for name in one:
        if name != LABELS and not torch.equal(one[name], two[name]):
            raise ParamsError(
                f"Term '{name}' of the methods follows from classes of images, which a detector does not say. Name "
                "methods that read maps alone in the run's methods, in params.yaml."
            )
