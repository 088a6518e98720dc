"""The layout of prepared data, which are plain arrays.

`<split>_images.npy` uint8 (N, C, H, W), `<split>_hashes.npy` uint8 (N, 16) of each image, `<split>_labels.npy` int64
(N,), and `meta.json` (`Meta`). Indexed data have `<split>_files.npy` (`file_index.py`) in the place of images and
hashes: the images stay in their files, and each record has the hash of one. Splits are `train`, `test` and, when a part
is held out for model selection, `holdout`. `preparation.py` writes them and `prepared.py` reads them: two modules, so
that an edit of the writer reruns no stage that reads.

Every byte is hashed. `meta.json` has the hash of its own content and, by split, that of class names, labels and hashes:
whoever opens the data compares these at once. Images are compared row by row when they are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import SerializerFunctionWrapHandler, model_serializer

from pipeline.artifacts.hashing import content_hash
from pipeline.params.base import Block
from pipeline.params.size import Size

SCHEMA = 2
HASH_BYTES = 16


class Decoding(Block):
    """What may be done to an image when it is decoded; by default nothing.

    Attributes:
        deep: what becomes of gray images of 16 bits.
        orientation: whether an image is turned upright as its EXIF data say.
    """

    deep: Literal["refuse", "scale"] = "refuse"
    orientation: Literal["ignore", "apply"] = "ignore"

    @property
    def marks(self) -> tuple[str, ...]:
        """What a hash of the pixels must know of it."""
        return tuple(f"{key}={value}" for key, value in self.model_dump(exclude_defaults=True).items())


AS_STORED = Decoding()


class Reading(Block):
    """How a file becomes an image.

    Attributes:
        resize: the size that an image is resized to cover before its center is cropped.
        decoding: what is done to a file when it is decoded.
    """

    resize: Size
    decoding: Decoding = AS_STORED

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Where it does nothing it is not there, as in data that were prepared before there was any.
        content: dict[str, Any] = handler(self)
        return content if self.decoding.marks else {k: v for k, v in content.items() if k != "decoding"}


class Files(Reading):
    """How the files of indexed data become images.

    Attributes:
        root: the folder that the listed paths start from.
    """

    root: str

    @property
    def marks(self) -> tuple[Size | str, ...]:
        """What the hash of a split must know of it, since the hashes of files do not."""
        return (self.resize, *self.decoding.marks)


class Kind(TypedDict):
    """What images are like: height and width in pixels, channels, and number of classes."""

    size: Size
    channels: int
    classes: int


class Meta(Block):
    """What `meta.json` holds.

    Attributes:
        schema_version: version of this layout.
        made_by: the DVC stage that made it, for instance "prepare_data@digits".
        source: the plug-in that the data came from.
        classes: class names.
        channels: channels of an image.
        size: height and width of an image, in pixels; one number where it is square.
        samples: number of samples by split.
        mean: per channel in [0, 1].
        std: per channel.
        fingerprint: hash of the images, labels and class names of each split, by split.
        files: how files become images, of indexed data alone.
        reading: how files have become images, of copied data that were made from files of any size.
        listing: hash of the list of files, by split, of indexed data alone.
        seal: hash of all of the above.
    """

    schema_version: int = SCHEMA
    made_by: str = "prepare_data"
    source: str
    classes: tuple[str, ...]
    channels: int
    size: Size
    samples: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: dict[str, str]
    files: Files | None = None
    listing: dict[str, str] | None = None
    reading: Reading | None = None
    seal: str = ""

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Of other data it is not there, as in those that were prepared before there was any.
        content: dict[str, Any] = handler(self)
        return content if self.reading else {k: v for k, v in content.items() if k != "reading"}

    @property
    def kind(self) -> Kind:
        """What a network must know of the images."""
        return {"size": self.size, "channels": self.channels, "classes": len(self.classes)}

    def sealed(self) -> Self:
        """Return the same with the hash of all other fields."""
        return self.model_copy(update={"seal": seal(self.model_dump(mode="json"))})


def seal(content: Mapping[str, Any]) -> str:
    """Return the hash of what `meta.json` holds, but for the seal itself."""
    return content_hash({key: value for key, value in content.items() if key != "seal"})


def fingerprinting(
    classes: Sequence[str], shape: Sequence[Size | str], labels: NDArray[np.int64]
) -> hashlib.blake2b:
    """Return the hash of a split, to which the hashes uint8 (N, 16) of its images are still to be added.

    Args:
        classes: class names.
        shape: (N, C, H, W) of the images, and what else decides on their pixels.
        labels: int64 (N,).
    """
    digest = hashlib.blake2b(json.dumps([list(classes), list(shape)]).encode(), digest_size=HASH_BYTES)
    digest.update(labels.astype("<i8").tobytes())
    return digest


def index_hash() -> hashlib.blake2b:
    """Return the hash of a list of files, to which its records are still to be added."""
    return hashlib.blake2b(digest_size=HASH_BYTES)


def image_hash(content: bytes | memoryview) -> bytes:
    """Return the hash of an image's pixels, or of its file."""
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


def image_hashes(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the hash of each of the images uint8 (n, C, H, W): uint8 (n, 16)."""
    rows = np.ascontiguousarray(images)
    return np.frombuffer(b"".join([image_hash(row.data) for row in rows]), np.uint8).reshape(-1, HASH_BYTES)


def images_path(folder: Path, split: str) -> Path:
    """Return where prepared data keep the images of `split`."""
    return folder / f"{split}_images.npy"


def hashes_path(folder: Path, split: str) -> Path:
    """Return where prepared data keep the hashes of the images of `split`."""
    return folder / f"{split}_hashes.npy"


def files_path(folder: Path, split: str) -> Path:
    """Return where indexed data list the files of `split`."""
    return folder / f"{split}_files.npy"


def labels_path(folder: Path, split: str) -> Path:
    """Return where prepared data keep the labels of `split`."""
    return folder / f"{split}_labels.npy"


def meta_path(folder: Path) -> Path:
    """Return where prepared data keep their `Meta`."""
    return folder / "meta.json"
