"""The reader of prepared data: memory maps, checked against their `meta.json`.

Nothing is read of the raw files of indexed data before an image is asked for: what needs labels and names alone
works where the raw files are not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.artifacts.publish import read_json
from pipeline.data.file_index import FileIndex, record_type
from pipeline.data.layout import SCHEMA, Meta, files_path, fingerprinting, images_path, labels_path, meta_path
from pipeline.errors import DamagedArtifactError, MissingArtifactError, StaleArtifactError, unknown_name


@dataclass(frozen=True)
class Split:
    """A split of prepared data.

    Attributes:
        name: for instance "train".
        images: uint8 (N, C, H, W), mapped from disk, read-only; or the index of the files that hold them. Both
            give a plain image (C, H, W) by its row.
        labels: int64 (N,).
        fingerprint: hash of the images, labels and class names.
        classes: class names.
        folder: the prepared data that it is a part of.
        made_by: the DVC stage that made it.
    """

    name: str
    images: NDArray[np.uint8] | FileIndex
    labels: NDArray[np.int64]
    fingerprint: str
    classes: tuple[str, ...]
    folder: Path
    made_by: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Prepared:
    """Prepared data, opened; `Prepared.open` is the way to make one.

    Attributes:
        folder: where they lie.
        meta: what `meta.json` holds.
        splits: every split, by name.
    """

    folder: Path
    meta: Meta
    splits: dict[str, Split]

    @classmethod
    def open(cls, folder: Path, hint: str = "dvc repro") -> Self:
        """Open `folder` and check that its arrays are those that its `meta.json` names; images stay on disk.

        Args:
            folder: the prepared data.
            hint: the command that makes them, for the error where they cannot say so themselves.

        Raises:
            MissingArtifactError: the folder or one of its files is not there.
            StaleArtifactError: it was written in another layout.
            DamagedArtifactError: a file is not what `meta.json` says.
        """
        meta = _read_meta(meta_path(folder), hint)
        # From here on the data themselves say which stage makes them.
        hint = f"dvc repro {meta.made_by}"
        splits = {split: _open_split(folder, split, meta, hint) for split in meta.samples}
        return cls(folder, meta, splits)

    def split(self, name: str) -> Split:
        """Return the split `name`.

        Raises:
            UnknownNameError: there is none of that name.
        """
        if name not in self.splits:
            hint = f"Splits of {self.folder}; 'holdout' is there when its share in params.yaml is not 0."
            raise unknown_name("split", name, self.splits, hint)
        return self.splits[name]


def verified(split: Split) -> NDArray[np.uint8]:
    """Return a copy of all images uint8 (N, C, H, W) of a split that is not indexed.

    Raises:
        DamagedArtifactError: the bytes, or the labels', are not those that were prepared.
    """
    assert isinstance(split.images, np.ndarray)
    images = np.array(split.images)  # a copy: torch cannot hold a read-only map
    digest = fingerprinting(split.classes, images.shape, split.labels)
    digest.update(images.data)
    if digest.hexdigest() != split.fingerprint:
        raise DamagedArtifactError(
            f"{images_path(split.folder, split.name)} or its labels are not what was prepared: they hash to "
            f"{digest.hexdigest()[:8]}, meta.json says {split.fingerprint[:8]}. Make them again with: "
            f"dvc repro --force {split.made_by}"
        )
    return images


def _read_meta(path: Path, hint: str) -> Meta:
    content = read_json(path, hint)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA:
        raise StaleArtifactError(
            f"{path} has schema version {version}, expected {SCHEMA}. Make it again with: {hint}"
        )

    try:
        meta = Meta.model_validate_json(json.dumps(content))  # as json, a list may be a tuple
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedArtifactError(f"{path}: {place}: {first['msg']}. Make it again with: {hint}") from None

    if set(meta.fingerprint) != set(meta.samples):
        raise DamagedArtifactError(
            f"{path} has fingerprints of {', '.join(meta.fingerprint)}, "
            f"expected of {', '.join(meta.samples)}. Make it again with: {hint}"
        )
    return meta


def _open_split(folder: Path, split: str, meta: Meta, hint: str) -> Split:
    number = meta.samples[split]
    labels = np.array(_open_array(labels_path(folder, split), (number,), np.dtype("int64"), hint))
    images: NDArray[np.uint8] | FileIndex
    if meta.files is None:
        shape = (number, meta.channels, meta.size, meta.size)
        images = _open_array(images_path(folder, split), shape, np.dtype("uint8"), hint)
    else:
        records = _open_array(files_path(folder, split), (number,), None, hint)
        images = FileIndex(
            folder, meta.made_by, Path(meta.files.root), records, meta.channels, meta.size, meta.files.resize
        )
    return Split(split, images, labels, meta.fingerprint[split], meta.classes, folder, meta.made_by)


def _open_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any] | None, hint: str) -> NDArray[Any]:
    """Map an array; without a dtype, one of an index's records."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise MissingArtifactError(f"{path} does not exist. Make it with: {hint}") from None
    except (ValueError, EOFError) as error:  # a header that is no header, or fewer bytes than it promises
        raise DamagedArtifactError(f"{path} cannot be read ({error}). Make it again with: {hint}") from None
    if dtype is None:  # paths are as long as the longest of them
        dtype = record_type(array.dtype["path"].itemsize if "path" in (array.dtype.names or ()) else 1)
    if array.shape != shape or array.dtype != dtype:
        raise DamagedArtifactError(
            f"{path} holds {array.dtype} {array.shape}, meta.json says {dtype} {shape}. "
            f"Make it again with: {hint}"
        )
    return array
