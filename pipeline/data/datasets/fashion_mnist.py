"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747): 60,000 + 10,000 gray images, 28x28.

Four idx files, plain or with the suffix .gz. Debian's package dataset-fashion-mnist installs them in
/usr/share/datasets/fashion-mnist; what `path` lacks is downloaded from torchvision's mirror, its checksum
verified. There is no published normalization: it is measured on the training images.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import ArraySplit, DatasetConfig, ImageFacts, Source
from pipeline.data.raw import download
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
    return Source(CLASSES, channels=1, size=28, train=train, test=test)


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
    return ArraySplit(images[:, None], labels.astype(np.int64))  # images (N, 1, 28, 28)


def _locate(config: Config, name: str) -> Path:
    # A file that is there is taken as it is: header and length are checked when it is read.
    for path in (config.path / name, config.path / f"{name}.gz"):
        if path.is_file():
            return path

    # Here, because torchvision is needed only where something is to be downloaded.
    from torchvision.datasets import FashionMNIST

    file = f"{name}.gz"
    url = f"{FashionMNIST.mirrors[0]}{file}"
    checksum = dict(FashionMNIST.resources)[file]
    return download.fetch(url, config.path / file, checksum, download=config.download)


def _read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """Read an idx file of bytes: two zeros, 8 for uint8, the number of axes, big-endian sizes, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked ({error}). Delete it, then: dvc repro") from None

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
