"""The layout of prepared data, which are plain arrays.

`<split>_images.npy` uint8 (N, C, H, W), `<split>_labels.npy` int64 (N,), and `meta.json` (`Meta`). Indexed data have
`<split>_files.npy` (`file_index.py`) in the place of the images, which stay in their files. Splits are `train`, `test`
and, when a part is held out for model selection, `holdout`. `preparation.py` writes them and `prepared.py` reads them:
two modules, so that an edit of the writer reruns no stage that reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.params.base import Block

SCHEMA = 1


class Files(Block):
    """How the files of indexed data become images.

    Attributes:
        root: the folder that the listed paths start from.
        resize: pixels that the short side is resized to before the center is cropped.
    """

    root: str
    resize: int


class Meta(Block):
    """What `meta.json` holds.

    Attributes:
        schema_version: version of this layout.
        made_by: the DVC stage that made it, for instance "prepare_data@digits".
        source: the plug-in that the data came from.
        classes: class names.
        channels: channels of an image.
        size: height and width of an image, in pixels.
        samples: number of samples by split.
        mean: per channel in [0, 1].
        std: per channel.
        fingerprint: hash of the images, labels and class names of each split, by split.
        files: how files become images, of indexed data alone.
    """

    schema_version: int = SCHEMA
    made_by: str = "prepare_data"
    source: str
    classes: tuple[str, ...]
    channels: int
    size: int
    samples: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: dict[str, str]
    files: Files | None = None


def fingerprinting(
    classes: Sequence[str], shape: Sequence[int], labels: NDArray[np.int64]
) -> hashlib.blake2b:
    """Return the hash of a split, to which its images uint8 (N, C, H, W) are still to be added.

    Args:
        classes: class names.
        shape: (N, C, H, W) of the images, and what else decides on their pixels.
        labels: int64 (N,).
    """
    digest = hashlib.blake2b(json.dumps([list(classes), list(shape)]).encode(), digest_size=16)
    digest.update(labels.astype("<i8").tobytes())
    return digest


def images_path(folder: Path, split: str) -> Path:
    """Return where prepared data keep the images of `split`."""
    return folder / f"{split}_images.npy"


def files_path(folder: Path, split: str) -> Path:
    """Return where indexed data list the files of `split`."""
    return folder / f"{split}_files.npy"


def labels_path(folder: Path, split: str) -> Path:
    """Return where prepared data keep the labels of `split`."""
    return folder / f"{split}_labels.npy"


def meta_path(folder: Path) -> Path:
    """Return where prepared data keep their `Meta`."""
    return folder / "meta.json"
