"""The digits that scikit-learn brings along: 1,797 gray images of 8x8, 10 classes; nothing to download.

They come as one set. It is split by scikit-learn's stratified `train_test_split` with random state 0, by default
into 1,437 training and 360 test samples, each in their original order. Values 0..16 become 0..255.

`samples` keeps a stratified part of them, drawn in the same way before they are split.

Larger and colored ones stand in for other data sets where a pipeline is tried out: each pixel becomes a square of equal
pixels, and all channels are the same.
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.data.dataset import ArraySplit, DatasetConfig, ImageFacts, Source

SIDE = 8  # pixels, as they come
SAMPLES = 1797
CLASSES = 10


class Config(DatasetConfig):
    """Settings of the digits.

    Attributes:
        test_share: share of the samples that is for testing. A larger one measures more finely, and fewer samples for
            training set methods further apart.
        samples: how many there are of both, at least one of each class in each.
        size: height and width of an image, a multiple of 8.
        channels: 1 (gray) or 3 (color).
    """

    test_share: float = Field(default=0.2, gt=0, lt=1)
    samples: int = Field(default=SAMPLES, le=SAMPLES)
    size: int = Field(default=SIDE, ge=SIDE, le=256, multiple_of=SIDE)
    channels: Literal[1, 3] = 1

    @model_validator(mode="after")
    def _all_classes(self) -> Self:
        smaller = min(self.test_share, 1 - self.test_share) * self.samples
        if smaller < CLASSES:
            raise ValueError(
                f"{self.samples} samples and a test_share of {self.test_share} leave {smaller:.1f} samples in the"
                f" smaller split; expected at least {CLASSES}, one a class."
            )
        return self


def image(config: Config) -> ImageFacts:
    """Return what the images are like."""
    return ImageFacts(config.size, config.channels, CLASSES)


def open_source(config: Config) -> Source:
    """Open the digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()

    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # (N, 1, 8, 8)
    images = images.repeat(config.channels, axis=1)
    for axis in (2, 3):
        images = images.repeat(config.size // SIDE, axis=axis)
    labels = digits.target.astype(np.int64)

    rows = np.arange(len(labels))
    if config.samples < len(rows):
        kept, _ = train_test_split(rows, train_size=config.samples, random_state=0, stratify=labels)
        rows = np.sort(kept)
    splits = train_test_split(rows, test_size=config.test_share, random_state=0, stratify=labels[rows])
    train, test = (ArraySplit(images[rows], labels[rows]) for rows in map(np.sort, splits))
    names = [str(name) for name in digits.target_names]
    return Source(names, config.channels, config.size, train=train, test=test)
