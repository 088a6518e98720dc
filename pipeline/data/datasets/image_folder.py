"""Any classification set kept as folders: `train/<class>/*` and `val/<class>/*`.

Files ending in .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .pbm, .pgm, .png, .pnm, .ppm, .tif, .tiff or .webp count, in any
case, and of several frames the first. Classes are the folders of `train/` in alphabetical order. An image is resized,
short side to `resize` (bilinear with antialiasing), and its center is cropped. What else decoding does is said in
`pipeline/data/raw/image_files.py`.

A set that does not fit memory is `storage: indexed`: prepared data hold a list of the files and the hash of each,
and images are decoded whenever they are read. Random resized crops are then cut out of the whole photograph, not
out of its size x size center.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from pipeline.data.dataset import FolderConfig, ImageFacts, Source
from pipeline.data.layout import Files
from pipeline.data.raw import names
from pipeline.data.raw.image_files import FileSplit
from pipeline.data.raw.listing import SUFFIXES, Listed, Listing, described
from pipeline.errors import DataError


class Config(FolderConfig):
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
        DataError: a folder is missing or empty, or leads out of the data set; or the classes of `train/` and `val/`
            differ, or cannot be told apart.
    """
    listing = Listing(config.path, config.links)
    root = listing.root
    train_folder, val_folder = (
        listing.folder(root / name, "a folder for each class in it. Put the data there")
        for name in ("train", "val")
    )
    listing.beside(root, ("train", "val"))

    classes = _classes(listing, train_folder)
    _check_same(classes, _classes(listing, val_folder), train_folder, val_folder)
    train = _split(config, listing, train_folder, classes)
    test = _split(config, listing, val_folder, classes)

    # As params.yaml gives the path: where it leads is another place on another machine.
    files = Files(root=str(config.path), resize=config.resize or config.size)
    return Source(
        classes,
        config.channels,
        config.size,
        train,
        test,
        files=files if config.storage == "indexed" else None,
        listed=listing.done(skip_damaged=config.damaged == "skip"),
    )


def listed(config: Config) -> Listed | None:
    """Return the files as they lie there now."""
    return open_source(config).listed


def _classes(listing: Listing, folder: Path) -> list[str]:
    classes = listing.classes(folder)
    if not classes:
        raise DataError(f"{folder} holds no folders, expected one for each class. Put the data there.")
    return classes


def _check_same(train: list[str], val: list[str], train_folder: Path, val_folder: Path) -> None:
    # The other way round, `_split` finds the class that `val/` lacks.
    known = names.by_likeness(train, train_folder)
    for name in val:
        if name in train:
            continue
        other = names.alike(name, known)
        if other is not None:
            raise DataError(
                f"{val_folder} and {train_folder} hold one class under two names, "
                f"{names.difference(name, other)}. Rename one as the other, then: dvc repro"
            )
        raise DataError(
            f"{val_folder / name} is a class that {train_folder} does not have. "
            "Add its training images or remove it."
        )


def _split(config: Config, listing: Listing, folder: Path, classes: list[str]) -> FileSplit:
    paths: list[str] = []
    counts = []
    for name in classes:
        if not (folder / name).is_dir():
            raise DataError(f"{folder / name} does not exist, expected images of every training class there.")
        before = listing.left_out.copy()
        found = listing.images(folder / name)
        if not found:
            others = described(listing.left_out - before)
            raise DataError(
                f"{folder / name} holds no images{f', but {others}' if others else ''}, expected files ending in "
                f"{', '.join(SUFFIXES)}. Add some, or remove the class."
            )
        paths += found
        counts.append(len(found))

    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return FileSplit(paths, labels, config.channels, config.size, config.resize or config.size)
