"""Any classification set kept as folders: `train/<class>/*` and `val/<class>/*`.

Files ending in .bmp, .jpeg, .jpg, .png or .webp count, in any case. Classes are the folders of `train/` in
alphabetical order. An image is resized, short side to `resize` (bilinear with antialiasing), and its center is
cropped. What else decoding does is said in `pipeline/data/raw/image_files.py`.

A set that does not fit memory is `storage: indexed`: prepared data hold a list of the files and the hash of each,
and images are decoded whenever they are read. Random resized crops are then cut out of the whole photograph, not
out of its size x size center.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from pipeline.data.dataset import DatasetConfig, ImageFacts, Source
from pipeline.data.layout import Files
from pipeline.data.raw.image_files import SUFFIXES, FileSplit, files, subfolders
from pipeline.errors import DataError


class Config(DatasetConfig):
    """Settings of an image folder.

    Attributes:
        path: the folder that holds `train/` and `val/`.
        size: height and width of the prepared images, in pixels.
        channels: 1 (gray) or 3 (color).
        resize: pixels that the short side is resized to before the center is cropped; None is `size`. ImageNet's
            usual evaluation has size 224 and resize 256.
        storage: "copied" keeps the pixels of all images, "indexed" a list of the files.
    """

    path: Path
    size: int = Field(ge=1)
    channels: Literal[1, 3] = 3
    resize: int | None = None
    storage: Literal["copied", "indexed"] = "copied"

    @field_validator("resize")
    @classmethod
    def _covers(cls, resize: int | None, info: ValidationInfo) -> int | None:
        # 'size' is absent where it was refused itself.
        if resize is not None and resize < info.data.get("size", 0):
            raise ValueError(
                f"Expected {info.data['size']} or more, as 'size' is: the center is cropped out of it"
            )
        return resize


def image(config: Config) -> ImageFacts:
    """Return what the images are like; the folders are the classes."""
    return ImageFacts(config.size, config.channels, classes=None)


def open_source(config: Config) -> Source:
    """List the files of every class; nothing is decoded yet.

    Raises:
        DataError: a folder is missing or empty, or the classes of `train/` and `val/` differ.
    """
    classes = _classes(config.path / "train")
    # The other way round, `_split` finds the class that `val/` lacks.
    for name in _classes(config.path / "val"):
        if name not in classes:
            raise DataError(
                f"{config.path / 'val' / name} is a class that {config.path / 'train'} does not have. "
                "Add its training images or remove it."
            )

    train = _split(config, config.path / "train", classes)
    test = _split(config, config.path / "val", classes)

    files = Files(root=str(config.path), resize=config.resize or config.size)
    indexed = files if config.storage == "indexed" else None
    return Source(classes, config.channels, config.size, train, test, files=indexed)


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} does not exist, expected a folder for each class in it. Put the data there."
        )
    classes = subfolders(folder)
    if not classes:
        raise DataError(f"{folder} holds no folders, expected one for each class. Put the data there.")
    return classes


def _split(config: Config, folder: Path, classes: list[str]) -> FileSplit:
    paths: list[str] = []
    counts = []
    for name in classes:
        if not (folder / name).is_dir():
            raise DataError(f"{folder / name} does not exist, expected images of every training class there.")
        listed = files(folder / name)
        if not listed:
            raise DataError(
                f"{folder / name} holds no images, expected files ending in {', '.join(SUFFIXES)}. "
                "Add some, or remove the class."
            )
        paths += listed
        counts.append(len(listed))

    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return FileSplit(paths, labels, config.channels, config.size, config.resize or config.size)
