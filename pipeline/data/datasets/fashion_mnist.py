"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747): 60,000 + 10,000 gray images, 28x28.

Four idx files, plain or with the suffix .gz. Debian's package dataset-fashion-mnist installs them in
/usr/share/datasets/fashion-mnist; what `path` lacks is downloaded from torchvision's mirror, its checksum
verified. There is no published normalization: it is measured on the training images.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import ArraySplit, DatasetConfig, ImageFacts, Source
from pipeline.data.raw import download, place, regular
from pipeline.data.raw.listing import Listed
from pipeline.errors import DataError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_NAMES = tuple(
    f"{prefix}-{kind}-ubyte" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
_LARGEST = 2**28  # bytes of an idx file; the largest of the published ones has a sixth


class Config(DatasetConfig):
    """Settings of Fashion-MNIST.

    Attributes:
        path: the folder of the idx files.
        download: download those that are missing.
    """

    path: Path = Path("data/raw/fashion_mnist")
    download: bool = True


def image(config: Config) -> ImageFacts:
    """Return what the images are like."""
    return ImageFacts(size=28, channels=1, classes=len(CLASSES))


def open_source(config: Config) -> Source:
    """Open Fashion-MNIST.

    Raises:
        DataError: a file is missing, cannot be downloaded, or is damaged.
    """
    train, test = (_split(config, prefix) for prefix in ("train", "t10k"))
    return Source(CLASSES, channels=1, size=28, train=train, test=test, listed=listed(config))


def listed(config: Config) -> Listed:
    """Return the files as they lie there now.

    Raises:
        DataError: one of them is no regular file.
    """
    folder = place.located(config.path)
    digest, found = hashlib.blake2b(digest_size=16), [_present(folder, name) for name in _NAMES]
    files = [path for path in found if path is not None]
    for path in files:
        digest.update(f"{path.name}\0{regular.check(path).st_size}\0".encode())
    return Listed(folder, len(files), digest.hexdigest())


def _split(config: Config, prefix: str) -> ArraySplit:
    images_file = _locate(config, f"{prefix}-images-idx3-ubyte")
    labels_file = _locate(config, f"{prefix}-labels-idx1-ubyte")
    images, labels = _read_idx(images_file, 3), _read_idx(labels_file, 1)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{images_file} holds images of {images.shape[1:]}, expected (28, 28).")
    if len(images) != len(labels):
        raise DataError(
            f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels, expected as "
            "many. Delete both, then: dvc repro"
        )
    if len(labels) and labels.max() >= len(CLASSES):
        raise DataError(
            f"{labels_file} holds the label {labels.max()}, expected 0 to {len(CLASSES) - 1}. "
            "Delete it, then: dvc repro"
        )
    return ArraySplit(images[:, None], labels.astype(np.int64))  # images (N, 1, 28, 28)


def _present(folder: Path, name: str) -> Path | None:
    # Also what is no file: a download beside it would leave the user wondering.
    return next((path for path in (folder / name, folder / f"{name}.gz") if os.path.lexists(path)), None)


def _locate(config: Config, name: str) -> Path:
    folder = place.located(config.path)
    # A file that is there is taken as it is: header and length are checked when it is read.
    present = _present(folder, name)
    if present is not None:
        return present

    # Here, because torchvision is needed only where something is to be downloaded.
    from torchvision.datasets import FashionMNIST

    file = f"{name}.gz"
    url = f"{FashionMNIST.mirrors[0]}{file}"
    checksum = dict(FashionMNIST.resources)[file]
    return download.fetch(
        url, folder / file, checksum, download=config.download, note=place.hint(config.path)
    )


def _read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes: two zeros, 8 for uint8, the number of axes, big-endian sizes, the values."""
    content = regular.read(path, limit=_LARGEST)
    if path.suffix == ".gz":
        content = _unpacked(path, content)

    start = 4 + 4 * axes
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < start:
        raise DataError(f"{path} is no idx file of uint8 with {axes} axes. Delete it, then: dvc repro")

    shape = tuple(np.frombuffer(content, ">u4", count=axes, offset=4).tolist())
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} holds {len(content) - start} values, but its header says {shape}. "
            "Delete it, then: dvc repro"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _unpacked(path: Path, packed: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            content = file.read(_LARGEST)
            if file.read(1):
                raise DataError(f"{path} unpacks to more than {_LARGEST:,} bytes. Delete it, then: dvc repro")
            return content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({error}). Delete it, then: dvc repro") from None
