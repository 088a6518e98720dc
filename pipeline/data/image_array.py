"""The images of copied data, and their reader.

`<split>_images.npy` is mapped, so that its images are not in memory. Every row that is read is compared with its hash
in `<split>_hashes.npy`: what is computed from is what was fingerprinted, whoever reads it and how often.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import advice
from pipeline.data.layout import image_hashes
from pipeline.errors import DamagedArtifactError

_LARGE = 64 << 20  # bytes that are worth threads
_THREADS = 4


@dataclass(frozen=True)
class ImageArray:
    """The images of a split, compared with their hashes when they are asked for.

    Attributes:
        path: of the images, for errors.
        made_by: the DVC stage that made them, for errors.
        pixels: uint8 (N, C, H, W), mapped from disk, read-only; read them through `rows`.
        hashes: of each image, uint8 (N, 16).
    """

    path: Path
    made_by: str
    pixels: NDArray[np.uint8]
    hashes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """Return the image (C, H, W) of sample `row`; see `rows`."""
        image: NDArray[np.uint8] = self.rows(np.array([range(len(self))[row]]))[0]
        return image

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return self.pixels.nbytes

    def rows(self, index: NDArray[np.int64], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Read samples.

        Args:
            index: the samples, int64 (n,), from 0.
            out: where they go, uint8 (n, C, H, W); None makes a new array.

        Returns:
            their images uint8 (n, C, H, W), a copy.

        Raises:
            DamagedArtifactError: an image is not the one that was prepared.
        """
        # Clipped, since numpy takes into a buffer otherwise; all are in range.
        images = np.take(self.pixels, index, axis=0, out=out, mode="raise" if out is None else "clip")
        hashes = image_hashes(images)
        expected = self.hashes[index]
        if hashes.tobytes() != expected.tobytes():
            row = index[(hashes != expected).any(axis=1)][0]
            raise DamagedArtifactError(
                f"{self.path}: image {row} is not the one that was prepared. "
                f"{advice.again(f'dvc repro {self.made_by}')}"
            )
        return images

    def block(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Read samples [start, stop), uint8 (n, C, H, W), large ones by several threads; see `rows`."""
        index = np.arange(start, min(stop, len(self)))
        if len(index) * self.nbytes < _LARGE * len(self):
            return self.rows(index)

        images = np.empty((len(index), *self.pixels.shape[1:]), dtype=np.uint8)
        parts = zip(np.array_split(index, _THREADS), np.array_split(images, _THREADS), strict=True)
        with ThreadPoolExecutor(_THREADS, "images") as pool:
            for _ in pool.map(lambda part: self.rows(*part), parts):  # raises the first error
                pass
        return images
