"""Tiny-ImageNet (Stanford CS231n): 100,000 + 10,000 color images of 64x64, 200 classes, official layout.

The official test images have no labels, so the validation images are the test split. Classes are the WordNet
ids of wnids.txt in alphabetical order, as a folder reader would number them; a class name is the id and the
first word of words.txt. There is no official checksum, hence no download.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data.dataset import DatasetConfig, ImageFacts, Source
from pipeline.data.raw.image_files import FileSplit, files, subfolders
from pipeline.errors import DataError

SIZE = 64
_ARCHIVE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


class Config(DatasetConfig):
    """Settings of Tiny-ImageNet.

    Attributes:
        path: the unpacked folder, with wnids.txt in it.
    """

    path: Path = Path("data/raw/tiny-imagenet-200")


def image(config: Config) -> ImageFacts:
    """Return what the images are like; wnids.txt lists the classes."""
    return ImageFacts(SIZE, channels=3, classes=None)


def open_source(config: Config) -> Source:
    """List the files of every class; nothing is decoded yet.

    Raises:
        DataError: a part of the official layout is missing or does not fit the rest.
    """
    ids = sorted(_lines(config.path / "wnids.txt"))
    words = dict(line.split("\t", 1) for line in _lines(config.path / "words.txt") if "\t" in line)
    for wnid in ids:
        if wnid not in words:
            raise DataError(f"{config.path / 'words.txt'} has no line for {wnid}, which wnids.txt lists.")

    classes = [f"{wnid} {words[wnid].split(',')[0]}" for wnid in ids]
    train, test = _train(config.path / "train", ids), _val(config.path / "val", ids)
    mean, std = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
    return Source(classes, channels=3, size=SIZE, train=train, test=test, mean=mean, std=std)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path} does not exist. Unpack {_ARCHIVE} there, then: dvc repro")
    return [line for line in path.read_text().splitlines() if line]


def _train(folder: Path, ids: list[str]) -> FileSplit:
    paths: list[str] = []
    counts = []
    for wnid in ids:
        images = folder / wnid / "images"
        listed = files(images) if images.is_dir() else []
        if not listed:
            raise DataError(
                f"{images} holds no images of a class that wnids.txt lists. Unpack {_ARCHIVE} anew."
            )
        paths += listed
        counts.append(len(listed))

    # A folder reader would count it as a class, and number all those after it differently.
    extra = sorted(set(subfolders(folder)) - set(ids))
    if extra:
        raise DataError(
            f"{folder / extra[0]} is a class that wnids.txt does not list. Remove it or add the id."
        )
    labels = np.repeat(np.arange(len(ids), dtype=np.int64), counts)
    return FileSplit(paths, labels, channels=3, size=SIZE, resize=None)


def _val(folder: Path, ids: list[str]) -> FileSplit:
    annotations = folder / "val_annotations.txt"
    label = {wnid: index for index, wnid in enumerate(ids)}
    labels: dict[str, int] = {}
    for line in _lines(annotations):
        file, *rest = line.split("\t")  # then the id and a bounding box
        if not rest or rest[0] not in label:
            raise DataError(
                f"{annotations} has the line '{line.expandtabs(1)}', "
                "expected a file name and an id of wnids.txt."
            )
        labels[str(folder / "images" / file)] = label[rest[0]]

    present = set(files(folder / "images")) if (folder / "images").is_dir() else set()
    # Either way: a file without a line, or a line without a file.
    differ = sorted(present ^ set(labels))
    if differ:
        lacks = "is not annotated in" if differ[0] in present else "does not exist, but is annotated in"
        raise DataError(f"{differ[0]} {lacks} {annotations}. Unpack {_ARCHIVE} anew.")

    paths = sorted(labels)
    return FileSplit(paths, np.array([labels[path] for path in paths], np.int64), 3, SIZE, resize=None)
