"""Image files, decoded when they are asked for.

What is done to an image, and no more: the first frame is taken, an alpha channel is dropped, colour becomes
grey by ITU-R 601 luma and grey becomes colour by repetition. An orientation noted in a photograph's EXIF data
is ignored, as torchvision's ImageFolder does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

# Bytes of a file. Two threads decode JPEGs of 500x400 1.6 times as fast as one, but those of 32x32 0.7 times:
# such a file takes longer under Python's lock than in the decoder.
_WORTH_A_THREAD = 16_000


@dataclass(frozen=True)
class FileSplit:
    """A split whose images are files.

    Attributes:
        paths: one file a sample; plain strings, which a million samples can afford.
        labels: int64 (N,).
        channels: 1 (grey) or 3 (colour).
        size: height and width to give, in pixels.
        resize: whether an image of another size is resized and cropped; otherwise it is an error.
    """

    paths: Sequence[str]
    labels: NDArray[np.int64]
    channels: int
    size: int
    resize: bool

    def images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Decode images [start, stop) on all processors: uint8 (n, C, H, W).

        Raises:
            DataError: a file that cannot be read, by name.
        """
        paths = self.paths[start:stop]
        out = np.empty((len(paths), self.channels, self.size, self.size), dtype=np.uint8)
        first = Path(paths[0])  # a dangling link is told of by the decoder
        large = first.is_file() and first.stat().st_size > _WORTH_A_THREAD
        threads = (os.cpu_count() or 1) if large else 1
        # One run of files a thread: a task a file would cost as much as decoding a small one.
        runs = np.array_split(np.arange(len(paths)), threads)

        def decode(run: NDArray[np.int64]) -> None:
            for row in run.tolist():
                out[row] = self._decode(paths[row])

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(decode, runs):  # raises the first error in the order of the files
                pass
        return out

    def _decode(self, path: str) -> NDArray[np.uint8]:
        image = _open(path, "L" if self.channels == 1 else "RGB")
        if image.size != (self.size, self.size):
            if not self.resize:
                width, height = image.size
                raise DataError(
                    f"{path} is {width}x{height}, expected {self.size}x{self.size}. Replace the file, or "
                    "read the data with source: image_folder, which resizes."
                )
            image = _fit(image, self.size)
        pixels = np.asarray(image)
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)  # (C, H, W)


def files(folder: Path) -> list[str]:
    """List the image files right in `folder` by name; hidden files and other suffixes are left out."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return sorted(str(path) for path in found if not path.name.startswith("."))


def subfolders(folder: Path) -> list[str]:
    """List the names of the folders in `folder`, hidden ones left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _open(path: str, mode: str) -> Image.Image:
    try:
        with Image.open(path) as file:
            image = file.copy()
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged files
        reason = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise DataError(
            f"Cannot read the image {path} ({reason}). Replace or delete the file, then: dvc repro"
        ) from None
    if image.mode.startswith(("I", "F")):
        # Pillow would clip or scale 16 bits and floats without a word.
        raise DataError(
            f"{path} holds pixels of mode {image.mode}, expected 8 bits a channel. Convert the file."
        )
    if "transparency" in image.info:  # of a palette, in bytes: converted in one step Pillow warns
        image = image.convert("RGBA")
    return image.convert(mode)


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` (bilinear with antialiasing), then crop the centre."""
    width, height = image.size
    short = min(width, height)
    width, height = size * width // short, size * height // short
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
