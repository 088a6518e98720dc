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
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.data.layout import Decoding, Files
from pipeline.data.raw.listing import Links, Listed
from pipeline.params.base import Block
from pipeline.params.numbers import Seed
from pipeline.params.size import Size, shown, sides


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


class PhotographConfig(FolderConfig):
    """Settings of a data set whose files are images of any size, and which comes in splits or is divided here.

    Attributes:
        path: the folder that all files lie in.
        size: height and width of the prepared images, in pixels: one number, or `[height, width]`.
        channels: 1 (gray) or 3 (color).
        resize: an image is resized until it just covers this size, and then the center is cropped; of a number that is
            the short side. None is `size`. ImageNet's usual evaluation has size 224 and resize 256.
        storage: "copied" keeps the pixels of all images, "indexed" a list of the files.
        deep: gray images of 16 bits: "refuse" stops at them, "scale" keeps their higher 8 bits.
        orientation: "apply" turns an image upright as its EXIF data say, "ignore" takes it as it is stored.
        test: which split is for testing; None takes the only one of `val`, `valid`, `validation` and `test`.
        holdout_split: which split is held out for model selection, for instance `val` beside `test`; None leaves it to
            `holdout`, a share of the training images.
        split: share of the images of each class that is for testing, where the data come without splits.
        split_seed: another seed tests with other images.
    """

    path: Path
    size: Size
    channels: Literal[1, 3] = 3
    resize: Size | None = None
    storage: Literal["copied", "indexed"] = "copied"
    deep: Literal["refuse", "scale"] = "refuse"
    orientation: Literal["ignore", "apply"] = "ignore"
    test: str | None = Field(default=None, pattern=r"^[^/.][^/]*$")
    holdout_split: str | None = Field(default=None, pattern=r"^[^/.][^/]*$")
    split: float | None = Field(default=None, gt=0, lt=1)
    split_seed: Seed = 0

    @field_validator("resize")
    @classmethod
    def _covers(cls, resize: Size | None, info: ValidationInfo) -> Size | None:
        # 'size' is absent where it was refused itself.
        size = info.data.get("size", 1)
        if resize is not None and any(x < y for x, y in zip(sides(resize), sides(size), strict=True)):
            least = size if isinstance(size, int) else shown(size)
            raise ValueError(f"Expected {least} or more, as 'size' is: the center is cropped out of it")
        return resize

    @model_validator(mode="after")
    def _one_way_to_test(self) -> Self:
        if self.test == "train":
            raise ValueError("It has test: train, which is what is trained with: name another split")
        if self.test is not None and self.split is not None:
            raise ValueError("It has test and split: give one of them")
        if self.holdout_split is not None:
            if self.holdout_split in ("train", self.test):
                raise ValueError(
                    f"It has holdout_split: {self.holdout_split}, which is another split: name a third"
                )
            if self.split is not None:
                raise ValueError("It has holdout_split and split, for data without splits: give holdout: 0.1")
            if self.holdout:
                raise ValueError("It has holdout_split and holdout: give one of them")
        if self.split is None and "split_seed" in self.model_fields_set:
            raise ValueError("It has split_seed and no split, a share such as 0.2: give both, or neither")
        return self

    @property
    def covered(self) -> Size:
        """The size that an image just covers before its center is cropped."""
        return self.resize or self.size

    @property
    def decoding(self) -> Decoding:
        """How a file becomes an image."""
        return Decoding(deep=self.deep, orientation=self.orientation)

    @property
    def files(self) -> Files | None:
        """How indexed files become images; None where they are copied."""
        if self.storage == "copied":
            return None
        # As params.yaml gives the path: where it leads is another place on another machine.
        return Files(root=str(self.path), resize=self.covered, decoding=self.decoding)


@dataclass(frozen=True)
class ImageFacts:
    """What the settings of a data set say of its images before any file is there: enough to know a network's shapes.

    Attributes:
        size: height and width of an image, in pixels; one number where it is square.
        channels: channels of an image.
        classes: number of classes; None where only the files know it.
    """

    size: Size
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
        size: height and width of an image, in pixels; one number where it is square.
        train: training samples.
        test: samples for evaluation (some data sets call them validation).
        mean: published normalization per channel in [0, 1], or None.
        std: as `mean`.
        holdout: samples for model selection, where the data set has a split for it.
        listed: the raw files as they were found; None where checksums say what they are, or there are none.
        files: where it is, the files are indexed and not copied; the splits are then `raw.image_files.FileSplit`.
    """

    classes: Sequence[str]
    channels: int
    size: Size
    train: RawSplit
    test: RawSplit
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    files: Files | None = None
    listed: Listed | None = None
    holdout: RawSplit | None = None
