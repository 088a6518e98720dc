"""CIFAR's python batches: pickled dicts, of which nothing but arrays, lists and strings is ever built.

Names, checksums and the address are torchvision's tables. Every file's checksum is verified before it is
opened, and the unpickler knows only what the official batches need.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.data.dataset import ArraySplit
from pipeline.data.raw import download as downloads
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
    folder = path / official.base_folder
    if not folder.exists():
        archive = path / official.filename
        downloads.fetch(official.url, archive, official.tgz_md5, download=download)
        downloads.extract(archive, official.base_folder)

    meta = _load(folder, official.meta["filename"], official.meta["md5"])
    train, test = (_split(folder, files, label_key) for files in (official.train_list, official.test_list))
    return list(meta[official.meta["key"]]), train, test


def _split(folder: Path, files: list[list[str]], label_key: str) -> ArraySplit:
    batches = [_load(folder, name, checksum) for name, checksum in files]
    # A row of a batch is one image, channel after channel.
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([np.asarray(batch[label_key], dtype=np.int64) for batch in batches])
    return ArraySplit(images, labels)


def _load(folder: Path, name: str, checksum: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise DataError(
            f"{path} does not exist, expected it beside the other batches. Delete {folder}, so that it is "
            "extracted anew, then: dvc repro"
        )
    downloads.check(path, checksum, f"Delete {folder}, so that it is extracted anew")

    with path.open("rb") as file:
        try:
            # Python 2 wrote them, whose strings are bytes.
            batch = _Unpickler(file, encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise DataError(f"{path} is no CIFAR batch ({error}). Delete {folder}, then: dvc repro") from None

    if not isinstance(batch, dict):
        raise DataError(f"{path} holds no dict of images and labels. Delete {folder}, then: dvc repro")
    return batch


def _dtype(name: str, *_: int) -> np.dtype[Any]:
    # The batches also give `align` and `copy` as integers, which numpy is about to refuse.
    return np.dtype(name)


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]
