"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 color images of 32x32, of 10 or 100 (fine) classes.

`source: cifar` is CIFAR-100, the data set of the distillation papers; `{cifar: {classes: 10}}` is the other one.
The normalization of CIFAR-100 is the one that these papers share. That of CIFAR-10 is published in pixel values:
(125.3, 123.0, 113.9) and (63.0, 62.1, 66.7).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.data.dataset import DatasetConfig, ImageFacts, Source
from pipeline.data.raw import cifar_batches

Values = tuple[float, float, float]

NORMALIZATION: dict[int, tuple[Values, Values]] = {
    10: ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


class Config(DatasetConfig):
    """Settings of a CIFAR data set.

    Attributes:
        classes: 10 or 100.
        path: the folder that holds the published archive, or the folder that it extracts to:
            `cifar-10-batches-py` or `cifar-100-python`. Both data sets can lie in the same one.
        download: download the archive when neither is there.
    """

    classes: Literal[10, 100] = 100
    path: Path = Path("data/raw/cifar")
    download: bool = True


def image(config: Config) -> ImageFacts:
    """Return what the images are like."""
    return ImageFacts(size=32, channels=3, classes=config.classes)


def open_source(config: Config) -> Source:
    """Open a CIFAR data set.

    Raises:
        DataError: files are missing, cannot be downloaded, or have another checksum.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    # CIFAR-100 also has coarse labels, of 20 superclasses.
    official, label_key = (CIFAR10, "labels") if config.classes == 10 else (CIFAR100, "fine_labels")
    classes, train, test = cifar_batches.read(official, config.path, label_key, download=config.download)
    mean, std = NORMALIZATION[config.classes]
    return Source(classes, channels=3, size=32, train=train, test=test, mean=mean, std=std)
