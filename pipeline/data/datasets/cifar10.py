"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, 10 classes.

The published normalisation is (125.3, 123.0, 113.9) / 255 and (63.0, 62.1, 66.7) / 255.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.data.dataset import Source
from pipeline.data.raw import cifar_batches


class Config(cifar_batches.Config):
    """Settings of CIFAR-10.

    Attributes:
        path: the folder that holds `cifar-10-batches-py` or `cifar-10-python.tar.gz`.
        download: download the archive when neither is there.
    """

    path: Path = Path("data/raw/cifar10")


def open_source(config: Config) -> Source:
    """Open CIFAR-10.

    Raises:
        DataError: files are missing, cannot be downloaded, or have another checksum.
    """
    from torchvision.datasets import CIFAR10

    classes, train, test = cifar_batches.read(CIFAR10, config, "labels")
    mean = (125.3 / 255, 123.0 / 255, 113.9 / 255)
    std = (63.0 / 255, 62.1 / 255, 66.7 / 255)
    return Source(classes, channels=3, size=32, train=train, test=test, mean=mean, std=std)
