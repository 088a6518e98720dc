"""Any classification set kept as folders: `train/<class>/*` and `val/<class>/*`, or `<class>/*` divided here.

Files ending in .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .pbm, .pgm, .png, .pnm, .ppm, .tif, .tiff or .webp count, in any
case, and of several frames the first. Classes are the folders in alphabetical order. An image is resized, short side to
`resize` (bilinear with antialiasing), and its center is cropped. What else decoding does is said in
`pipeline/data/raw/image_files.py`.

The folder of the test images is called `val`, `valid`, `validation` or `test`; where there are several of these, or
another one, `test` names it, and `holdout_split` may name one to choose the best epoch on. With `split: 0.2` there are
no such folders: a fifth of each class is for testing.

A set that does not fit memory is `storage: indexed`: prepared data hold a list of the files and the hash of each,
and images are decoded whenever they are read. Random resized crops are then cut out of the whole photograph, not
out of its size x size center.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data.dataset import ImageFacts, PhotographConfig, Source
from pipeline.data.raw import names, splits
from pipeline.data.raw.listing import SUFFIXES, Listed, Listing, described
from pipeline.data.raw.splits import TEST, TRAIN, Parts
from pipeline.errors import DataError


class Config(PhotographConfig):
    """Settings of an image folder.

    Attributes:
        path: the folder that holds `train/` and `val/`, or with `split` one of images for each class.
    """


def image(config: Config) -> ImageFacts:
    """Return what the images are like; the folders are the classes."""
    return ImageFacts(config.size, config.channels, classes=None)


def open_source(config: Config) -> Source:
    """List the files of every class; nothing is decoded yet.

    Raises:
        DataError: a folder is missing or empty, or leads out of the data set; there are several test splits, or with
            `split` any; the classes of the splits differ, or cannot be told apart; or a class has too few images.
    """
    listing = Listing(config.path, config.links)
    parts = _given(config, listing) if config.split is None else _divided(config, listing)
    return Source(
        parts.classes,
        config.channels,
        config.size,
        parts.train,
        parts.test,
        files=config.files,
        listed=listing.done(skip_damaged=config.damaged == "skip"),
        holdout=parts.holdout,
    )


def listed(config: Config) -> Listed | None:
    """Return the files as they lie there now."""
    return open_source(config).listed


def _given(config: Config, listing: Listing) -> Parts:
    """Return classes and images of a folder that holds the splits."""
    root = listing.root
    there = [name for name in TEST if (root / name).is_dir() or (root / name).is_symlink()]
    expected = [TRAIN, splits.test_name(there, config, str(root))]
    if config.holdout_split is not None:
        expected.append(config.holdout_split)
    content = (
        "a folder for each class in it. Put the data there, or set split: 0.2 for classes without splits"
    )
    folders = [listing.folder(root / name, content) for name in expected]
    listing.beside(root, expected)

    train_folder, *others = folders
    classes = _classes(listing, train_folder)
    for folder in others:
        _check_same(classes, _classes(listing, folder), train_folder, folder)
    return Parts(classes, *(splits.files(config, *_images(listing, folder, classes)) for folder in folders))


def _divided(config: Config, listing: Listing) -> Parts:
    """Return classes, training and test images of a folder of classes, of which a share is for testing."""
    root = listing.folder(listing.root, "a folder for each class in it. Put the data there")
    tests = [name for name in TEST if (root / name).is_dir()]
    # A class may well be called "test"; beside "train" it is none.
    if tests and (root / TRAIN).is_dir():
        raise DataError(
            f"{root} holds {TRAIN} and {' and '.join(tests)}, which are splits already, and split is {config.split:g}. "
            f"Drop split, or give the path of a folder of classes, then: dvc repro"
        )
    classes = _classes(listing, root)
    return Parts(classes, *splits.of_share(config, listing, *_images(listing, root, classes), classes))


def _classes(listing: Listing, folder: Path) -> list[str]:
    classes = listing.classes(folder)
    if not classes:
        raise DataError(f"{folder} holds no folders, expected one for each class. Put the data there.")
    return classes


def _check_same(train: list[str], test: list[str], train_folder: Path, test_folder: Path) -> None:
    # The other way round, `_images` finds the class that the test split lacks.
    known = names.by_likeness(train, train_folder)
    for name in test:
        if name in train:
            continue
        other = names.alike(name, known)
        if other is not None:
            raise DataError(
                f"{test_folder} and {train_folder} hold one class under two names, "
                f"{names.difference(name, other)}. Rename one as the other, then: dvc repro"
            )
        raise DataError(
            f"{test_folder / name} is a class that {train_folder} does not have. "
            "Add its training images or remove it."
        )


def _images(listing: Listing, folder: Path, classes: list[str]) -> splits.Paths:
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
    return paths, labels
