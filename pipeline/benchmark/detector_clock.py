"""The time of a detector's training steps, and of work on plain images one by one, read from files as stages do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.compute.distributed import ALONE
from pipeline.compute.machine import Machine
from pipeline.detection.detector import padded
from pipeline.detection.images import BoxImages, Picture
from pipeline.params.recipe import Epoch, Recipe
from pipeline.training.detectors import BoxSetting
from pipeline.training.optimizer import recipe_optimizer
from pipeline.training.step import Objective, Step, take

ENOUGH = 5.0  # seconds that are measured of each thing, about
ONCE = 30.0  # seconds: what takes longer is measured once, and its first run counts, which warms up
MOST = 64  # steps that are measured at most


@dataclass(frozen=True)
class Timed:
    """Steps or images that were timed.

    Attributes:
        seconds: of one.
        pixels: of one, padding included.
        images: of one.
    """

    seconds: float
    pixels: float
    images: int = 1


def steps(
    setting: BoxSetting,
    recipe: Recipe,
    objective: Objective,
    parameters: list[nn.Parameter],
    where: Machine,
    size: int,
    enough: float | None = None,
) -> Iterator[Timed]:
    """Give steps of a batch size.

    Args:
        setting: gives the batches.
        recipe: how it is trained, but for the batch size.
        objective: what is minimized.
        parameters: what is trained.
        where: the machine.
        size: images of a step.
        enough: seconds of steps that follow one which warms up; None gives a single step, which does.

    Raises:
        StillhouseError: a step cannot be taken.
    """
    # A batch of one image is none of a recipe's, so the copy is not validated.
    batches = setting.batches(recipe.model_copy(update={"batch_size": size, "drop_last": True}), 0)
    optimizer = recipe_optimizer(parameters, recipe, fused=where.fused)
    step = Step("made up", objective, batches, batches.feed(fixed=False), optimizer, ALONE, clip=recipe.clip)
    spent, taken, epoch = 0.0, 0, 0
    most = 1 if enough is None else MOST
    while True:
        number = min(len(batches), most)
        step.start(Epoch("main", epoch, epoch + 1), 0, [0.0] * number, 0)
        for row in range(number):
            start = time.perf_counter()
            for error in take([step], row).values():
                raise error
            _wait(where)
            seconds = time.perf_counter() - start
            views = step.feed.views(row)
            if enough is None or taken:
                spent += seconds
                sides = [(image.shape[1], image.shape[2]) for image in views.images]
                yield Timed(seconds, pixels(sides), size)
            taken += 1
            if taken >= most or (enough is not None and taken >= 2 and spent > enough):
                return
        epoch += 1


def each(images: BoxImages, where: Machine, work: Callable[[Picture], None], enough: float) -> Timed:
    """Return the mean time of work on plain images, one by one; the first warms up, unless it takes long.

    Args:
        images: of a split.
        where: the machine.
        work: what is done with each.
        enough: seconds after which there are no more.
    """
    rows = torch.split(torch.arange(len(images.split)), 1)
    timed: list[Timed] = []
    start = time.perf_counter()
    for (picture,) in images.views(0, rows):
        work(picture)
        _wait(where)
        now = time.perf_counter()
        timed.append(Timed(now - start, pixels([(picture.shown.height, picture.shown.width)])))
        start = now
        kept = timed[1:] or timed
        if timed[0].seconds > ONCE or sum(x.seconds for x in timed[1:]) > enough:
            break
    return Timed(*(sum(getattr(x, key) for x in kept) / len(kept) for key in ("seconds", "pixels")))


def pixels(sizes: list[tuple[int, int]]) -> float:
    """Return the pixels of a batch of images of these heights and widths, with what pads them."""
    height, width = padded(sizes)
    return float(len(sizes) * height * width)


def _wait(where: Machine) -> None:
    if where.device.type == "cuda":
        torch.cuda.synchronize(where.device)
