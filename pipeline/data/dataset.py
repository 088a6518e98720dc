"""Contract of `pipeline/data/datasets/`, one data set a file.

A plug-in file holds `Config` (a `DatasetConfig`), `image(config) -> ImageFacts`, which opens no file, and
`open_source(config) -> Source`.

Example:
    def image(config: Config) -> ImageFacts:
        return ImageFacts(size=8, channels=1, classes=10)

    def open_source(config: Config) -> Source:
        train, test = (ArraySplit(*read(config.path / name)) for name in ("train", "test"))
        return Source(NAMES, channels=1, size=8, train=train, test=test)

A source whose raw files can be listed without opening them may also have `listed(config) -> Listed`: `stages.plan` and
`stages.params` say by it whether they are still those that were prepared.

What becomes of a source is in `layout.py`, which those who read prepared data import: an edit of this contract reruns
the preparation alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipeline.data.layout import Files
from pipeline.data.raw.listing import Links, Listed
from pipeline.params.base import Block


class DatasetConfig(Block):
    """Settings that every data set has.

    Attributes:
        holdout: share of the training samples of each class that is held out for model selection.
        holdout_seed: another seed holds out other samples.
        mean: per channel, in [0, 1]; None takes the data set's published one, or the training images' own.
        std: as `mean`, above 0.
    """

    holdout: float = Field(default=0.0, ge=0.0, lt=1.0)
    holdout_seed: int = 0
    mean: tuple[Annotated[float, Field(ge=0.0)], ...] | None = Field(default=None, min_length=1)
    std: tuple[Annotated[float, Field(gt=0.0)], ...] | None = Field(default=None, min_length=1)

    @field_validator("mean", "std")
    @classmethod
    def _of_shares(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if values is not None and max(values) > 1:
            raise ValueError(
                "Expected one value a channel, in [0, 1]: divide those of pixels in 0..255 by 255"
            )
        return values


class FolderConfig(DatasetConfig):
    """Settings of every data set that is folders of images.

    Attributes:
        links: "inside" follows links that stay within the folder of the data set and refuses others; "anywhere" follows
            all.
        damaged: "refuse" stops at the first file that cannot be decoded; "skip" leaves such files out and lists them in
            `raw.json` of the prepared data, for one more decoding of every image.
    """

    links: Links = "inside"
    damaged: Literal["refuse", "skip"] = "refuse"


@dataclass(frozen=True)
class ImageFacts:
    """What the settings of a data set say of its images before any file is there: enough to know a network's shapes.

    Attributes:
        size: height and width of an image, in pixels.
        channels: channels of an image.
        classes: number of classes; None where only the files know it.
    """

    size: int
    channels: int
    classes: int | None


class RawSplit(Protocol):
    """Samples as the source holds them; images are decoded when asked for."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 (N,)."""
        ...

    def images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return images [start, stop) as uint8 (n, C, H, W)."""
        ...


@dataclass(frozen=True)
class ArraySplit:
    """A split that fits memory: images uint8 (N, C, H, W), labels int64 (N,)."""

    array: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return images [start, stop) as uint8 (n, C, H, W)."""
        return self.array[start:stop]


@dataclass(frozen=True)
class Source:
    """An opened data set, checked: it exists, and its labels, classes and shapes fit together.

    Attributes:
        classes: class names; a label is an index into them.
        channels: channels of an image.
        size: height and width of an image, in pixels.
        train: training samples.
        test: samples for evaluation (some data sets call them validation).
        mean: published normalization per channel in [0, 1], or None.
        std: as `mean`.
        listed: the raw files as they were found; None where checksums say what they are, or there are none.
        files: where it is, the files are indexed and not copied; the splits are then `raw.image_files.FileSplit`.
    """

    classes: Sequence[str]
    channels: int
    size: int
    train: RawSplit
    test: RawSplit
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    files: Files | None = None
    listed: Listed | None = None
