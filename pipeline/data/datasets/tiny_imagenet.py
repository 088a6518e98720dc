"""Tiny-ImageNet (Stanford CS231n): 100,000 + 10,000 color images of 64x64, 200 classes, official layout.

The official test images have no labels, so the validation images are the test split. letKD parts those of each
class into 25 that it validates with and 25 that it tests with. `test: half` tests with the second 25 of each class, in
the order of their file names (which ones letKD took is not said), and leaves the others out; `holdout` is there to
choose an epoch with. Classes are the WordNet ids of wnids.txt in alphabetical order, as a folder reader would number
them; a class name is the id and the first word of words.txt. There is no official checksum, hence no download.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.data.dataset import FolderConfig, ImageFacts, Source
from pipeline.data.raw import names, place, regular
from pipeline.data.raw.image_files import FileSplit
from pipeline.data.raw.listing import Listed, Listing
from pipeline.errors import DataError

SIZE = 64
_ARCHIVE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_HALF = 25  # of the 50 validation images of a class
_LARGEST_TEXT = 2**26  # bytes; words.txt has 2.5 million


class Config(FolderConfig):
    """Settings of Tiny-ImageNet.

    Attributes:
        path: the unpacked folder, with wnids.txt in it.
        test: "official" tests with all 50 validation images of each class, "half" with the second 25, as letKD does.
    """

    path: Path = Path("data/raw/tiny-imagenet-200")
    test: Literal["official", "half"] = "official"


def image(config: Config) -> ImageFacts:
    """Return what the images are like; wnids.txt lists the classes."""
    return ImageFacts(SIZE, channels=3, classes=None)


def open_source(config: Config) -> Source:
    """List the files of every class; nothing is decoded yet.

    Raises:
        DataError: a part of the official layout is missing, leads out of the folder, or does not fit the rest; or a
            class has too few validation images for a half of them.
    """
    listing = Listing(config.path, config.links)
    root = listing.root
    ids = _ids(root / "wnids.txt", config.path)
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt", config.path) if "\t" in line)
    for wnid in ids:
        if wnid not in words:
            raise DataError(f"{root / 'words.txt'} has no line for {wnid}, which wnids.txt lists.")
    classes = [f"{wnid} {words[wnid].split(',')[0]}" for wnid in ids]
    for name in classes:
        names.check_class(name, root / "words.txt")

    train, test = _train(listing, root / "train", ids), _val(listing, root / "val", ids)
    if config.test == "half":
        test = _half(test, classes, root / "val" / "val_annotations.txt")
    return Source(
        classes,
        channels=3,
        size=SIZE,
        train=train,
        test=test,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2302, 0.2265, 0.2262),
        listed=listing.done(skip_damaged=config.damaged == "skip"),
    )


def listed(config: Config) -> Listed | None:
    """Return the files as they lie there now."""
    return open_source(config).listed


def _ids(path: Path, given: Path) -> list[str]:
    ids = sorted(_lines(path, given))
    # They name folders, so one with a separator would lead elsewhere.
    wrong = [
        wnid for place, wnid in enumerate(ids) if not wnid.isalnum() or wnid in ids[place + 1 : place + 2]
    ]
    if wrong or not ids:
        found = f"lists {wrong[0]!a}" if wrong else "is empty"
        raise DataError(
            f"{path} {found}, expected ids of letters and digits, each once. Unpack {_ARCHIVE} anew, then: dvc repro"
        )
    return ids


def _lines(path: Path, given: Path) -> list[str]:
    try:
        content = regular.read(path, limit=_LARGEST_TEXT)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist. Unpack {_ARCHIVE} there, then: dvc repro.{place.hint(given)}"
        ) from None
    try:
        return [line for line in content.decode().splitlines() if line]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start:,}). Unpack {_ARCHIVE} anew, then: "
            "dvc repro"
        ) from None


def _train(listing: Listing, folder: Path, ids: list[str]) -> FileSplit:
    present = listing.classes(listing.folder(folder, f"that of {_ARCHIVE}"))
    # A folder reader would count it as a class, and number all those after it differently.
    extra = sorted(set(present) - set(ids))
    if extra:
        raise DataError(
            f"{folder / extra[0]} is a class that wnids.txt does not list. Remove it or add the id."
        )

    paths: list[str] = []
    counts = []
    for wnid in ids:
        images = listing.folder(folder / wnid / "images", "images of a class that wnids.txt lists")
        found = listing.images(images)
        if not found:
            raise DataError(
                f"{images} holds no images of a class that wnids.txt lists. Unpack {_ARCHIVE} anew."
            )
        paths += found
        counts.append(len(found))

    labels = np.repeat(np.arange(len(ids), dtype=np.int64), counts)
    return FileSplit(paths, labels, channels=3, size=SIZE, resize=None)


def _val(listing: Listing, folder: Path, ids: list[str]) -> FileSplit:
    annotations, images = folder / "val_annotations.txt", folder / "images"
    label = {wnid: index for index, wnid in enumerate(ids)}
    labels: dict[str, int] = {}
    for line in _lines(annotations, listing.path):
        file, *rest = line.split("\t")  # then the id and a bounding box
        if not rest or rest[0] not in label:
            raise DataError(
                f"{annotations} has the line '{line.expandtabs(1)}', "
                "expected a file name and an id of wnids.txt."
            )
        if labels.setdefault(str(images / file), label[rest[0]]) != label[rest[0]]:
            raise DataError(
                f"{annotations} gives {file} two classes. Unpack {_ARCHIVE} anew, then: dvc repro"
            )

    present = set(listing.images(listing.folder(images, f"that of {_ARCHIVE}")))
    # Either way: a file without a line, or a line without a file.
    differ = sorted(present ^ set(labels))
    if differ:
        lacks = "is not annotated in" if differ[0] in present else "does not exist, but is annotated in"
        raise DataError(f"{differ[0]} {lacks} {annotations}. Unpack {_ARCHIVE} anew.")

    paths = sorted(labels)
    return FileSplit(paths, np.array([labels[path] for path in paths], np.int64), 3, SIZE, resize=None)


def _half(val: FileSplit, classes: list[str], annotations: Path) -> FileSplit:
    """Return the second half of each class's validation images, in the order of their file names."""
    kept = []
    for label, name in enumerate(classes):
        places = np.flatnonzero(val.labels == label)
        if len(places) < 2 * _HALF:
            raise DataError(
                f"{annotations} has {len(places)} images of class '{name}', and 'test: half' needs {2 * _HALF}. "
                f"Unpack {_ARCHIVE} anew, or set test: official."
            )
        kept.append(places[_HALF : 2 * _HALF])

    rows = np.sort(np.concatenate(kept))
    return FileSplit([val.paths[row] for row in rows], val.labels[rows], 3, SIZE, resize=None)
