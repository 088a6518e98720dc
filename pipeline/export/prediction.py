"""Classes and probabilities of a folder's images, by a student or by what it was exported as."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import progress
from pipeline.artifacts import publish
from pipeline.data.raw import names
from pipeline.data.raw.listing import SUFFIXES
from pipeline.errors import DataError
from pipeline.export.models import Model
from pipeline.export.preprocessing import Preprocessing

_BATCH_BYTES = 16 << 20  # of images as a network reads them
_MOST = 256  # images of a batch


@dataclass(frozen=True)
class Predictor:
    """What is asked for classes.

    Attributes:
        model: gives logits.
        preprocessing: what it must be shown.
        skip: leave out files that cannot be decoded, in the place of stopping at the first.
        skipped: why each file that was left out cannot be read.
    """

    model: Model
    preprocessing: Preprocessing
    skip: bool = False
    skipped: list[str] = field(default_factory=list)

    def batches(self, paths: Sequence[Path]) -> Iterator[tuple[list[Path], NDArray[np.float64]]]:
        """Give files, and their probabilities (B, K), in the order of `paths`.

        Raises:
            DataError: a file cannot be read, and is not to be skipped.
        """
        size = max(1, min(_MOST, _BATCH_BYTES // (4 * int(np.prod(self.preprocessing.shape)))))
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,  # Pillow releases Python's lock while it decodes
            progress.bar("predict", len(paths)) as advance,
        ):
            for start in range(0, len(paths), size):
                part = paths[start : start + size]
                read = list(zip(part, pool.map(self._read, part), strict=True))
                kept = [(path, image) for path, image in read if image is not None]
                if kept:
                    images = self.preprocessing.normalized(np.stack([image for _, image in kept]))
                    yield [path for path, _ in kept], _softmax(self.model(images))
                advance(len(part))

    def write(self, folder: Path, paths: Sequence[Path], out: Path) -> int:
        """Write a csv of `paths` below `folder`, whole or not at all, and return the number of its rows.

        Columns are `file` (below the folder), `class`, `probability`, and `p_<class>` for each class.

        Raises:
            DataError: a file cannot be read, and is not to be skipped; or none is left.
        """
        classes, rows = self.preprocessing.classes, 0
        with publish.writing(out) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["file", "class", "probability", *(f"p_{name}" for name in classes)])
            for files, probabilities in self.batches(paths):
                for path, row in zip(files, probabilities, strict=True):
                    best = int(row.argmax())
                    values = [f"{value:.6g}" for value in (row[best], *row)]
                    writer.writerow([path.relative_to(folder).as_posix(), classes[best], *values])
                rows += len(files)
            if not rows:
                raise DataError(
                    f"None of the {len(paths):,} images of {folder} can be read. {self.skipped[0]}"
                )
        return rows

    def _read(self, path: Path) -> NDArray[np.uint8] | None:
        try:
            return self.preprocessing.image(path)
        except DataError as error:
            if not self.skip:
                raise
            self.skipped.append(str(error))
            return None


def images_below(folder: Path) -> list[Path]:
    """Return the image files in a folder and in the folders below it, sorted by their paths.

    Files count by their suffix, as in a data set; hidden ones and folders do not, nor do links to folders. Whether they
    can be read is found when they are.

    Raises:
        DataError: the folder is not there, or holds none.
        OSError: a folder cannot be looked into.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder, expected one of images. Give another one.")
    paths: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                names.check_text(name, f"{place}/{name}")
                paths.append(Path(place, name))
    if not paths:
        raise DataError(f"{folder} holds no images, neither in folders below it. Give another folder.")
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def _refuse(error: OSError) -> None:
    raise error


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
