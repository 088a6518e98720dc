"""The layout of prepared data with boxes, which are plain arrays beside a list of files.

`<split>_files.npy` lists the images (`pipeline/data/file_index.py`), and `<split>_boxes.npy` float32 (M, 4),
`<split>_labels.npy` int64 (M,), `<split>_crowd.npy` bool (M,), `<split>_area.npy` float32 (M,) and
`<split>_offsets.npy` int64 (N + 1,) are `annotated.Annotations`. Splits are `train` and `test`. Images of a source
without files of its own lie in `images/`.

As of other prepared data, every byte is hashed: `meta.json` has the hash of its own content, of each list of files, and
by split that of class names, boxes and hashes of files. Files are compared with theirs when they are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np

from pipeline.data.annotated import Annotations
from pipeline.data.layout import HASH_BYTES, seal
from pipeline.params.base import Block

SCHEMA = 1
TASK = "detection"
IMAGES = "images"  # the folder of a source without files of its own

# Of the arrays that a split has beside its list of files: as little-endian numpy writes them, and their last axes.
ARRAYS = {
    "boxes": ("<f4", (4,)),
    "labels": ("<i8", ()),
    "crowd": ("|b1", ()),
    "area": ("<f4", ()),
    "offsets": ("<i8", ()),
}


class Meta(Block):
    """What `meta.json` of data with boxes holds.

    Attributes:
        task: what tells them from other prepared data.
        schema_version: version of this layout.
        made_by: the DVC stage that made it, for instance "prepare_data@photos".
        source: the plug-in that the data came from.
        classes: class names.
        samples: number of images by split.
        boxes: number of boxes by split.
        mean: per channel in [0, 1].
        std: per channel.
        root: the folder that the listed files start from; None where they lie in the data themselves.
        fingerprint: hash of the images, boxes and class names of each split, by split.
        listing: hash of the list of files, by split.
        seal: hash of all of the above.
    """

    task: Literal["detection"] = "detection"
    schema_version: int = SCHEMA
    made_by: str = "prepare_data"
    source: str
    classes: tuple[str, ...]
    samples: dict[str, int]
    boxes: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    root: str | None
    fingerprint: dict[str, str]
    listing: dict[str, str]
    seal: str = ""

    def sealed(self) -> Self:
        """Return the same with the hash of all other fields."""
        return self.model_copy(update={"seal": seal(self.model_dump(mode="json"))})


def fingerprinting(classes: Sequence[str], annotations: Annotations) -> hashlib.blake2b:
    """Return the hash of a split, to which the hashes uint8 (N, 16) of its files are still to be added."""
    digest = hashlib.blake2b(json.dumps([TASK, list(classes)]).encode(), digest_size=HASH_BYTES)
    for name, (dtype, _) in ARRAYS.items():
        digest.update(np.ascontiguousarray(getattr(annotations, name), np.dtype(dtype)).tobytes())
    return digest


def array_path(folder: Path, split: str, name: str) -> Path:
    """Return where the data keep an array of a split."""
    return folder / f"{split}_{name}.npy"
