"""CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, 100 (fine) classes.

The normalisation is the one that the distillation papers share.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.data.dataset import Source
from pipeline.data.raw import cifar_batches


class Config(cifar_batches.Config):
    """Settings of CIFAR-100.

    Attributes:
        path: the folder that holds `cifar-100-python` or `cifar-100-python.tar.gz`.
        download: download the archive when neither is there.
    """

    path: Path = Path("data/raw/cifar100")


def open_source(config: Config) -> Source:
    """Open CIFAR-100.

    Raises:
        DataError: files are missing, cannot be downloaded, or have another checksum.
    """
    from torchvision.datasets import CIFAR100

    classes, train, test = cifar_batches.read(CIFAR100, config, "fine_labels")
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return Source(classes, channels=3, size=32, train=train, test=test, mean=mean, std=std)
