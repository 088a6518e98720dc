"""Which images a network is tested with: those of a split of one of the usual names, or a share of every class."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import PhotographConfig
from pipeline.data.raw.image_files import FileSplit
from pipeline.data.raw.listing import Listing
from pipeline.errors import DataError

TRAIN = "train"
TEST = ("val", "valid", "validation", "test")  # as data sets call it
Paths = tuple[list[str], NDArray[np.int64]]  # files, and their labels int64 (N,)


class Parts(NamedTuple):
    """Class names, and the images of each split."""

    classes: Sequence[str]
    train: FileSplit
    test: FileSplit
    holdout: FileSplit | None = None


def test_name(there: Collection[str], config: PhotographConfig, place: str) -> str:
    """Return the name of the test split.

    Args:
        there: the names that splits have.
        config: the settings of the source.
        place: what has these splits, for the error.

    Raises:
        DataError: there are several, and the settings name none.
    """
    if config.test is not None:
        return config.test
    known = [name for name in TEST if name in there and name != config.holdout_split]
    if len(known) > 1:
        raise DataError(
            f"{place} has {' and '.join(known)}, expected one test split. Under the settings of the source in "
            f"params.yaml set test: {known[-1]}, or holdout_split: {known[0]} to choose the best epoch by that one, "
            "then: dvc repro"
        )
    # Where there is none, the error is about the folder that was looked for.
    return known[0] if known else next(name for name in (TEST[0], TEST[-1]) if name != config.holdout_split)


def of_share(
    config: PhotographConfig,
    listing: Listing,
    paths: Sequence[str],
    labels: NDArray[np.int64],
    classes: Sequence[str],
) -> tuple[FileSplit, FileSplit]:
    """Divide files into training and test images, as `split` and `split_seed` say.

    Args:
        config: the settings of the source.
        listing: of its folder.
        paths: the files.
        labels: int64 (N,).
        classes: class names.

    Raises:
        DataError: a class has a single image.
    """
    assert config.split is not None
    names = [listing.below(path) for path in paths]
    testing = divided(names, labels, classes, config.split, config.split_seed)
    rows = (np.flatnonzero(~testing), np.flatnonzero(testing))
    train, test = (files(config, [paths[row] for row in of.tolist()], labels[of]) for of in rows)
    return train, test


def files(config: PhotographConfig, paths: Sequence[str], labels: NDArray[np.int64]) -> FileSplit:
    """Return a split of files that are decoded as the settings of the source say."""
    return FileSplit(paths, labels, config.channels, config.size, config.covered, config.decoding)


def divided(
    names: Sequence[str], labels: NDArray[np.int64], classes: Sequence[str], share: float, seed: int
) -> NDArray[np.bool_]:
    """Choose the images that are for testing: a share of each class, rounded, at least one and never all.

    An image is ranked within its class by a hash of seed and name alone. So one that is added or removed moves no other
    from split to split, but for one of its own class where the share then counts another number.

    Args:
        names: of the images, below the folder of the data set.
        labels: int64 (N,).
        classes: class names.
        share: of each class, in (0, 1).
        seed: another one makes another choice.

    Returns:
        bool (N,), true where for testing.

    Raises:
        DataError: a class has a single image.
    """
    ranks = np.array([_rank(seed, name) for name in names], dtype=np.uint64)
    order = np.lexsort((ranks, labels))  # by class, then by rank

    testing, start = np.zeros(len(labels), dtype=np.bool_), 0
    for label, count in enumerate(np.bincount(labels, minlength=len(classes)).tolist()):
        if count < 2:
            raise DataError(
                f"The class '{classes[label]}' has {count} image, expected 2 or more, to train and to test with "
                f"(split: {share:g}). Add images or remove the class, then: dvc repro"
            )
        # Halves are rounded up.
        number = min(max(1, math.floor(share * count + 0.5)), count - 1)
        testing[order[start : start + number]] = True
        start += count
    return testing


def _rank(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big")
