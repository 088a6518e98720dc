"""Contract of `pipeline/data/datasets/`, one data set a file, and the layout of prepared data.

A plug-in file holds `Config` (a `DatasetConfig`), `image(config) -> ImageFacts`, which opens no file, and
`open_source(config) -> Source`:

    def image(config: Config) -> ImageFacts:
        return ImageFacts(size=32, channels=3, classes=config.classes)

Prepared data are plain arrays: `<split>_images.npy` uint8 (N, C, H, W), `<split>_labels.npy` int64 (N,),
and `meta.json` (`Meta`). Indexed data have `<split>_files.npy` (`file_index.py`) in the place of the images, which
stay in their files. Splits are `train`, `test` and, when a part is held out for model selection, `holdout`.
`preparation.py` writes them and `prepared.py` reads them: two modules, so that an edit of the writer reruns no stage
that reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipeline.params.base import Block

SCHEMA = 1


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


class Files(Block):
    """How the files of indexed data become images.

    Attributes:
        root: the folder that the listed paths start from.
        resize: pixels that the short side is resized to before the center is cropped.
    """

    root: str
    resize: int


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


class Meta(Block):
    """What `meta.json` holds.

    Attributes:
        schema_version: version of this layout.
        source: the plug-in that the data came from.
        classes: class names.
        channels: channels of an image.
        size: height and width of an image, in pixels.
        samples: number of samples by split.
        mean: per channel in [0, 1].
        std: per channel.
        fingerprint: hash of the images, labels and class names of each split, by split.
        files: of indexed data.
    """

    schema_version: int = SCHEMA
    source: str
    classes: tuple[str, ...]
    channels: int
    size: int
    samples: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: dict[str, str]
    files: Files | None = None


def fingerprinting(
    classes: Sequence[str], shape: Sequence[int], labels: NDArray[np.int64]
) -> hashlib.blake2b:
    """Return the hash of a split, to which its images uint8 (N, C, H, W) are still to be added.

    Args:
        classes: class names.
        shape: of the images.
        labels: int64 (N,).
    """
    found = hashlib.blake2b(json.dumps([list(classes), list(shape)]).encode(), digest_size=16)
    found.update(labels.astype("<i8").tobytes())
    return found


def images_path(folder: Path, split: str) -> Path:
    """Return where prepared data keep the images of `split`."""
    return folder / f"{split}_images.npy"


def files_path(folder: Path, split: str) -> Path:
    """Return where indexed data list the files of `split`."""
    return folder / f"{split}_files.npy"


def labels_path(folder: Path, split: str) -> Path:
    """Return where prepared data keep the labels of `split`."""
    return folder / f"{split}_labels.npy"


def meta_path(folder: Path) -> Path:
    """Return where prepared data keep their `Meta`."""
    return folder / "meta.json"
