"""Prepared data with boxes as they lie on disk: checked against their `meta.json`, and read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from pipeline.artifacts import advice
from pipeline.artifacts.publish import read_json
from pipeline.data.annotated import CHANNELS, Annotations
from pipeline.data.array_file import open_array
from pipeline.data.file_index import FileList
from pipeline.data.layout import files_path, meta_path
from pipeline.data.prepared import checked_meta, open_records
from pipeline.data.raw import image_files
from pipeline.detection.layout import ARRAYS, IMAGES, SCHEMA, TASK, Meta, array_path, fingerprinting
from pipeline.errors import DamagedArtifactError, StaleArtifactError

S = TypeVar("S", bound="StoredSplit")


@dataclass(frozen=True)
class StoredSplit:
    """A split of prepared data with boxes.

    Attributes:
        name: "train" or "test".
        files: the images.
        annotations: their boxes.
        fingerprint: hash of the images, boxes and class names.
    """

    name: str
    files: FileList
    annotations: Annotations
    fingerprint: str

    def __len__(self) -> int:
        return len(self.files.records)

    def image(self, row: int) -> Image.Image:
        """Decode an image, in color.

        Raises:
            DataError: the file is missing, is not the one that was listed, or is no image.
        """
        content = self.files.content(row)
        return image_files.decode(str(self.files.path(row)), content, CHANNELS, self.files.again, None)


def read_meta(folder: Path) -> Meta:
    """Read the `meta.json` of prepared data with boxes.

    Raises:
        MissingArtifactError: it is not there.
        StaleArtifactError: it was written in another layout, or has no boxes.
        DamagedArtifactError: it is not what was written.
    """
    path, hint = meta_path(folder), f"dvc repro prepare_data@{folder.name}"
    content = read_json(path, hint)
    content = content if isinstance(content, dict) else {}
    if content.get("task") != TASK:
        raise StaleArtifactError(
            f"{path.parent} holds images with one label each, expected boxes. Name a data set whose source is one "
            "of detection in params.yaml, then: dvc repro"
        )
    return checked_meta(Meta, path, content, SCHEMA, hint)


def open_split(kind: type[S], folder: Path, split: str, meta: Meta) -> S:
    """Open a split and check that all but its images is what was prepared.

    Args:
        kind: what it is opened as.
        folder: of the prepared data.
        split: its name.
        meta: of the prepared data.

    Raises:
        MissingArtifactError: a file is not there.
        DamagedArtifactError: one is not what `meta` says.
    """
    hint, number, boxes = f"dvc repro {meta.made_by}", meta.samples[split], meta.boxes.get(split, 0)
    arrays: dict[str, Any] = {}
    for name, (dtype, rest) in ARRAYS.items():
        rows = number + 1 if name == "offsets" else boxes
        mapped = open_array(array_path(folder, split, name), np.dtype(dtype), (rows, *rest), hint)
        arrays[name] = np.array(mapped)  # a copy: what is in memory is what was hashed
    annotations = Annotations(**arrays)
    records = open_records(files_path(folder, split), number, meta.listing.get(split), hint)

    digest = fingerprinting(meta.classes, annotations)
    digest.update(np.ascontiguousarray(records["hash"]).data)
    if digest.hexdigest() != meta.fingerprint.get(split):
        raise DamagedArtifactError(
            f"The boxes of {split} in {folder} are not what was prepared: they do not have the hash that meta.json "
            f"gives. {advice.again(hint)}"
        )

    root = (folder / IMAGES).resolve() if meta.root is None else Path(meta.root)
    files = FileList(folder, meta.made_by, root, records)
    return kind(split, files, annotations, meta.fingerprint[split])
