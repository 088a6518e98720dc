"""Disks, squares and triangles on noise, of differing colors, sizes and places; made here, nothing to download.

For trying detection out: a detector learns them in minutes on a CPU. No number that is measured on them says anything
about photographs. Every sixteenth training image is empty. What is drawn follows from the seed, the split and the
number of the image alone, whatever is installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.data.annotated import (
    CHANNELS,
    AnnotatedConfig,
    AnnotatedSource,
    AnnotatedSplit,
    Annotations,
    Expected,
)
from pipeline.params.numbers import Seed

TASK = "detection"
CLASSES = ("disk", "square", "triangle")
EMPTY = 16  # of so many training images one has no shape

_NOISE = 64  # values of the background, from 0 on
_ATTEMPTS = 8  # places that are tried for a shape before it is left out


class Config(AnnotatedConfig):
    """Settings of the shapes.

    Attributes:
        train: number of training images.
        test: number of images for evaluation.
        smallest: shortest side of an image, in pixels.
        largest: longest side.
        shapes: shapes of an image at most; there is at least one where it is not empty.
        seed: another seed draws other images.
    """

    train: int = Field(default=96, ge=1, le=100_000)
    test: int = Field(default=32, ge=1, le=100_000)
    smallest: int = Field(default=64, ge=32, le=1024)
    largest: int = Field(default=112, ge=32, le=1024)
    shapes: int = Field(default=3, ge=1, le=16)
    seed: Seed = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(
                f"smallest is {self.smallest} and largest {self.largest}: expected it the other way"
            )
        return self


@dataclass(frozen=True)
class Drawn:
    """An image with its shapes.

    Attributes:
        pixels: uint8 (H, W, 3).
        boxes: (left, top, right, bottom) of each, in pixels.
        labels: of each.
        areas: pixels of each.
    """

    pixels: NDArray[np.uint8]
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Drawings:
    """The images of a split, drawn when they are asked for; see `annotated.Pictures`."""

    config: Config
    split: str
    names: tuple[str, ...]

    def content(self, row: int) -> bytes:
        """Return the image as a PPM: plain pixels, which every library reads and none packs in its own way."""
        pixels = drawn(self.config, self.split, row).pixels
        height, width = pixels.shape[:2]
        return f"P6 {width} {height} 255\n".encode() + pixels.tobytes()

    def place(self, row: int) -> str:
        """Return what an error calls the image."""
        return self.names[row]


def open_source(config: Config) -> AnnotatedSource:
    """Draw all shapes; the pixels are drawn again when they are asked for."""
    return AnnotatedSource(
        CLASSES, _split(config, "train", config.train), _split(config, "test", config.test)
    )


def expected(config: Config) -> Expected:
    """Return what will be drawn: images of all sizes, about half as many shapes as there may be."""
    samples = {"train": config.train, "test": config.test}
    sides = (config.smallest, (config.smallest + config.largest) // 2, config.largest)
    return Expected(
        len(CLASSES),
        samples,
        {split: number * (config.shapes + 1) // 2 for split, number in samples.items()},
        tuple((height, width) for height in sides for width in sides),
        kept=sum(samples.values()) * CHANNELS * sides[1] ** 2,
    )


def drawn(config: Config, split: str, row: int) -> Drawn:
    """Draw an image.

    Args:
        config: the settings.
        split: "train" or "test".
        row: number of the image in it.
    """
    numbers = _numbers(f"shapes {config.seed} {split} {row}")
    height, width = (config.smallest + next(numbers) % (config.largest - config.smallest + 1) for _ in "hw")
    noise = hashlib.shake_256(f"noise {config.seed} {split} {row}".encode()).digest(height * width * CHANNELS)
    image = Drawn(np.frombuffer(noise, np.uint8).reshape(height, width, CHANNELS) % _NOISE)
    if split == "train" and row % EMPTY == EMPTY - 1:
        return image

    for _ in range(1 + next(numbers) % config.shapes):
        _add(image, numbers)
    return image


def _split(config: Config, split: str, number: int) -> AnnotatedSplit:
    images = [drawn(config, split, row) for row in range(number)]
    counts = [len(image.labels) for image in images]
    annotations = Annotations(
        boxes=np.array([box for image in images for box in image.boxes], np.float32).reshape(-1, 4),
        labels=np.array([label for image in images for label in image.labels], np.int64),
        crowd=np.zeros(sum(counts), np.bool_),
        area=np.array([area for image in images for area in image.areas], np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )
    names = tuple(f"{split}/{row:06d}.ppm" for row in range(number))
    sizes = np.array([image.pixels.shape[:2] for image in images], np.int64)
    return AnnotatedSplit(Drawings(config, split, names), sizes, annotations, "its drawing")


def _add(image: Drawn, numbers: Iterator[int]) -> None:
    """Add a shape where it hides no other one; it is left out where no place is found."""
    height, width = image.pixels.shape[:2]
    side = min(height, width)
    label = next(numbers) % len(CLASSES)
    # Bright in one channel at least, so that it stands out from the noise.
    color = np.array([128 + next(numbers) % 128, next(numbers) % 256, next(numbers) % 256], np.uint8)
    color = np.roll(color, next(numbers) % CHANNELS)

    for _ in range(_ATTEMPTS):
        size = side // 4 + next(numbers) % (side // 4 + 1)
        left, top = next(numbers) % (width - size + 1), next(numbers) % (height - size + 1)
        box = left, top, left + size, top + size
        if any(_meet(box, other) for other in image.boxes):
            continue
        mask = _mask(label, size)  # (size, size), which it touches on all sides
        image.pixels[top : top + size, left : left + size][mask] = color
        image.boxes.append(box)
        image.labels.append(label)
        image.areas.append(int(mask.sum()))
        return


def _mask(label: int, size: int) -> NDArray[np.bool_]:
    """Return where a shape is, bool (size, size)."""
    y, x = np.mgrid[:size, :size]
    if CLASSES[label] == "square":
        return np.ones((size, size), np.bool_)
    # Twice the distance from the center: whole numbers, so no machine rounds otherwise.
    across, down = 2 * x - (size - 1), 2 * y - (size - 1)
    if CLASSES[label] == "disk":
        return np.asarray(across**2 + down**2 <= size**2)
    return np.asarray(np.abs(across) <= y + 1)


def _meet(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _numbers(key: str) -> Iterator[int]:
    """Give numbers from 0 to below 2^32 without end."""
    block = 0
    while True:
        digest = hashlib.shake_256(f"{key} {block}".encode()).digest(256)
        yield from np.frombuffer(digest, "<u4").tolist()
        block += 1
