"""The reader of prepared data with boxes: checked against their `meta.json`, images decoded when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch

from pipeline.detection.layout import Meta
from pipeline.detection.sample import Target
from pipeline.detection.stored import StoredSplit, open_split, read_meta


@dataclass(frozen=True)
class Split(StoredSplit):
    """A split of prepared data with boxes, as tensors."""

    @cached_property
    def sizes(self) -> torch.Tensor:
        """Height and width of each image, int64 (N, 2), in pixels."""
        records = self.files.records
        return torch.from_numpy(np.stack((records["height"], records["width"]), axis=1).astype(np.int64))

    def target(self, row: int) -> Target:
        """Return the boxes of an image, in its own pixels."""
        rows = slice(*self.annotations.offsets[row : row + 2].tolist())
        kept = self.annotations
        return Target(
            *(torch.from_numpy(x[rows].copy()) for x in (kept.boxes, kept.labels, kept.crowd, kept.area))
        )


@dataclass(frozen=True)
class Prepared:
    """Prepared data with boxes, opened; `Prepared.open` is the way to make one.

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
        """Open `folder` and check that all but its images is what was prepared.

        Raises:
            MissingArtifactError: the folder or one of its files is not there.
            StaleArtifactError: it was written in another layout, or has no boxes.
            DamagedArtifactError: a file is not what `meta.json` says, or that itself is not what was written.
        """
        meta = read_meta(folder)
        return cls(folder, meta, {split: open_split(Split, folder, split, meta) for split in meta.samples})
