"""CIFAR's python batches: pickled dicts, of which nothing but arrays, lists and strings is ever built.

Names, checksums and the address are torchvision's tables. Every file's checksum is verified before it is
opened, and the unpickler knows only what the official batches need.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import ArraySplit
from pipeline.data.raw import download as downloads
from pipeline.data.raw import place
from pipeline.errors import DataError


class Official(Protocol):
    """What is taken from torchvision's class."""

    base_folder: str
    url: str
    filename: str
    tgz_md5: str
    train_list: list[list[str]]
    test_list: list[list[str]]
    meta: dict[str, str]


def read(
    official: Official, path: Path, label_key: str, *, download: bool
) -> tuple[list[str], ArraySplit, ArraySplit]:
    """Read class names, training and test samples.

    Args:
        official: names and checksums of the files.
        path: the folder that holds the archive, or the folder that it extracts to.
        label_key: the batches' key of the labels.
        download: download the archive when neither is there.

    Raises:
        DataError: files are missing, cannot be downloaded, or have another checksum.
    """
    folder = place.located(path) / official.base_folder
    if not os.path.lexists(folder):
        archive = folder.parent / official.filename
        downloads.fetch(official.url, archive, official.tgz_md5, download=download, note=place.hint(path))
        downloads.extract(archive, official.base_folder)

    meta = _load(folder, official.meta["filename"], official.meta["md5"])
    classes = meta.get(official.meta["key"])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _no_batch(folder / official.meta["filename"], "it holds no list of class names")

    train, test = (
        _split(folder, files, label_key, len(classes)) for files in (official.train_list, official.test_list)
    )
    return classes, train, test


def _split(folder: Path, files: list[list[str]], label_key: str, num_classes: int) -> ArraySplit:
    batches = [_arrays(folder, name, checksum, label_key, num_classes) for name, checksum in files]
    # A row of a batch is one image, channel after channel.
    images = np.concatenate([data for data, _ in batches]).reshape(-1, 3, 32, 32)
    return ArraySplit(images, np.concatenate([labels for _, labels in batches]))


def _arrays(
    folder: Path, name: str, checksum: str, label_key: str, num_classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images uint8 (n, 3072) and labels int64 (n,) of a batch."""
    batch = _load(folder, name, checksum)
    data, labels = batch.get("data"), batch.get(label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise _no_batch(folder / name, "it holds no images uint8 (n, 3072)")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise _no_batch(folder / name, f"it does not hold {len(data)} labels, one an image")
    if not all(type(label) is int and 0 <= label < num_classes for label in labels):
        raise _no_batch(folder / name, f"its labels are not all whole numbers from 0 to {num_classes - 1}")
    return data, np.asarray(labels, dtype=np.int64)


def _load(folder: Path, name: str, checksum: str) -> dict[str, Any]:
    path = folder / name
    if not os.path.lexists(path):
        raise DataError(
            f"{path} does not exist, expected it beside the other batches. Delete {folder}, so that it is "
            "extracted anew, then: dvc repro"
        )
    downloads.check(path, checksum, f"Delete {folder}, so that it is extracted anew")

    try:
        with path.open("rb") as file:  # a regular one, by now
            # Python 2 wrote them, whose strings are bytes.
            batch = _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle makes the unpickler and numpy raise nearly anything
        raise _no_batch(path, " ".join(str(error).split()) or type(error).__name__) from None
    if not isinstance(batch, dict):
        raise _no_batch(path, "it holds no dict of images and labels")
    return batch


def _no_batch(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is no CIFAR batch ({reason}). Delete {path.parent}, then: dvc repro")


def _dtype(name: str, *_: int) -> np.dtype[Any]:
    # The batches also give `align` and `copy` as integers, which numpy is about to refuse.
    if name != "u1":
        raise pickle.UnpicklingError(f"it asks for an array of {name}")
    return np.dtype(np.uint8)


def _empty(*_: object) -> NDArray[np.uint8]:
    # What the array holds comes with its state; a shape of its own could ask for any amount of memory.
    return np.empty(0, dtype=np.uint8)


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]
