"""The reader of prepared data: memory maps, checked against their `meta.json`.

All but the images is compared with its hash when the data are opened, and the images when they are read. None is read
before it is asked for: what needs labels and names alone works where the raw files of indexed data are not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.artifacts import advice
from pipeline.artifacts.publish import read_json
from pipeline.data.array_file import header, open_array
from pipeline.data.file_index import FileIndex, record_type
from pipeline.data.image_array import ImageArray
from pipeline.data.layout import (
    HASH_BYTES,
    SCHEMA,
    Meta,
    files_path,
    fingerprinting,
    hashes_path,
    images_path,
    index_hash,
    labels_path,
    meta_path,
    seal,
)
from pipeline.errors import DamagedArtifactError, StaleArtifactError, unknown_name
from pipeline.params.base import Block
from pipeline.params.size import Size, sides

_BLOCK = 1 << 16  # records that are hashed at a time
M = TypeVar("M", bound=Block)


@dataclass(frozen=True)
class Split:
    """A split of prepared data.

    Attributes:
        name: for instance "train".
        images: those of copied data, mapped from disk, or the index of the files that hold them. Both give a plain
            image uint8 (C, H, W) by its row, and compare it with its hash.
        labels: int64 (N,).
        fingerprint: hash of the images, labels and class names.
        classes: class names.
        folder: the prepared data that it is a part of.
        made_by: the DVC stage that made it.
    """

    name: str
    images: ImageArray | FileIndex
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
    def open(cls, folder: Path) -> Self:
        """Open `folder` and check that all but its images is what was prepared; images stay on disk.

        Raises:
            MissingArtifactError: the folder or one of its files is not there.
            StaleArtifactError: it was written in another layout.
            DamagedArtifactError: a file is not what `meta.json` says, or that itself is not what was written.
        """
        # The folder is named for the data set; once read, the data themselves say which stage makes them.
        meta = _read_meta(meta_path(folder), f"dvc repro prepare_data@{folder.name}")
        return cls(folder, meta, {split: _open_split(folder, split, meta) for split in meta.samples})

    def split(self, name: str) -> Split:
        """Return the split `name`.

        Raises:
            UnknownNameError: there is none of that name.
        """
        if name not in self.splits:
            hint = f"Splits of {self.folder}; 'holdout' is there when its share in params.yaml is not 0."
            raise unknown_name("split", name, self.splits, hint)
        return self.splits[name]


def _read_meta(path: Path, hint: str) -> Meta:
    content = read_json(path, hint)
    if isinstance(content, dict) and "task" in content:
        raise StaleArtifactError(
            f"{path.parent} holds data for {content['task']}, expected images with one label each. Name another data "
            "set in params.yaml, then: dvc repro"
        )
    return checked_meta(Meta, path, content, SCHEMA, hint)


def checked_meta(kind: type[M], path: Path, content: Any, schema: int, hint: str) -> M:
    """Return what a `meta.json` holds.

    Args:
        kind: what it is read as.
        path: of the file, for the errors.
        content: of the file.
        schema: version of the layout that is expected.
        hint: the command that makes the file.

    Raises:
        StaleArtifactError: it was written in another layout.
        DamagedArtifactError: it is not what was written.
    """
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != schema:
        raise StaleArtifactError(
            f"{path} has schema version {version}, expected {schema}. {advice.again(hint)}"
        )
    if content.get("seal") != seal(content):
        raise DamagedArtifactError(
            f"{path} is not what was written: its content does not have the hash that it gives as 'seal'. "
            f"{advice.again(hint)}"
        )

    try:
        return kind.model_validate_json(json.dumps(content))  # as json, a list may be a tuple
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedArtifactError(f"{path}: {place}: {first['msg']}. {advice.again(hint)}") from None


def _open_split(folder: Path, split: str, meta: Meta) -> Split:
    hint, number = f"dvc repro {meta.made_by}", meta.samples[split]
    # Copies: what is in memory is what was hashed.
    labels = np.array(open_array(labels_path(folder, split), np.dtype("<i8"), (number,), hint))
    shape = (number, meta.channels, *sides(meta.size))
    images: ImageArray | FileIndex
    marks: tuple[Size | str, ...] = ()

    if meta.files is None:
        path = hashes_path(folder, split)
        hashes = np.array(open_array(path, np.dtype("u1"), (number, HASH_BYTES), hint))
        pixels = open_array(images_path(folder, split), np.dtype("u1"), shape, hint)
        images = ImageArray(images_path(folder, split), meta.made_by, pixels, hashes)
    else:
        path, marks = files_path(folder, split), meta.files.marks
        records = open_records(path, number, (meta.listing or {}).get(split), hint)
        hashes = records["hash"]
        images = FileIndex(folder, meta.made_by, meta.files, records, meta.channels, meta.size)

    digest = fingerprinting(meta.classes, (*shape, *marks), labels)
    digest.update(np.ascontiguousarray(hashes).data)
    if digest.hexdigest() != meta.fingerprint.get(split):
        raise DamagedArtifactError(
            f"{labels_path(folder, split)} or {path} is not what was prepared: they do not have the hash that "
            f"meta.json gives. {advice.again(hint)}"
        )
    return Split(split, images, labels, meta.fingerprint[split], meta.classes, folder, meta.made_by)


def open_records(path: Path, number: int, expected: str | None, hint: str) -> NDArray[Any]:
    """Map a list of files, and compare it with its hash.

    Args:
        path: the list.
        number: of its records.
        expected: its hash.
        hint: the command that makes it.

    Raises:
        MissingArtifactError: there is no such file.
        DamagedArtifactError: it holds something else.
    """
    # Paths are as long as the longest of them.
    width = re.search(r"'path', '\|S(\d{1,6})'", header(path, hint)[0])
    records = open_array(path, record_type(int(width[1]) if width else 1), (number,), hint)

    digest = index_hash()
    for start in range(0, number, _BLOCK):
        digest.update(records[start : start + _BLOCK].tobytes())
    if digest.hexdigest() != expected:
        raise DamagedArtifactError(
            f"{path} is not what was prepared: it does not have the hash that meta.json gives. {advice.again(hint)}"
        )
    return records
