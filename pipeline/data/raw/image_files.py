"""Image files, decoded when they are asked for.

What is done to an image, and no more: the first frame is taken, an alpha channel is dropped, color becomes
gray by ITU-R 601 luma and gray becomes color by repetition. An orientation noted in a photograph's EXIF data
is ignored, as torchvision's ImageFolder does. The plain view is torchvision's evaluation transform: the short
side is resized (bilinear with antialiasing) and the center is cropped.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

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
        channels: 1 (gray) or 3 (color).
        size: height and width to give, in pixels.
        resize: pixels that the short side is resized to before the center is cropped; None where an image of
            another size is an error.
    """

    paths: Sequence[str]
    labels: NDArray[np.int64]
    channels: int
    size: int
    resize: int | None

    def images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Decode images [start, stop) on all processors: uint8 (n, C, H, W).

        Raises:
            DataError: a file that cannot be read, by name.
        """
        paths = self.paths[start:stop]
        out = np.empty((len(paths), self.channels, self.size, self.size), dtype=np.uint8)
        first = Path(paths[0])  # a dangling link is reported when it is read
        parts = runs(len(paths), first.stat().st_size if first.is_file() else 0, os.cpu_count() or 1)

        def fill(run: NDArray[np.int64]) -> None:
            for row in run.tolist():
                out[row] = self.pixels(paths[row], read(paths[row]))

        with ThreadPoolExecutor(len(parts)) as pool:
            for _ in pool.map(fill, parts):  # raises the first error in the order of the files
                pass
        return out

    def pixels(self, path: str, content: bytes) -> NDArray[np.uint8]:
        """Return the plain view (C, H, W) of a file.

        Raises:
            DataError: it is no image, or of another size where that is an error.
        """
        image = decode(path, content, self.channels)
        if self.resize is None and image.size != (self.size, self.size):
            width, height = image.size
            raise DataError(
                f"{path} is {width}x{height}, expected {self.size}x{self.size}. Replace the file, or "
                "read the data with source: image_folder, which resizes."
            )
        return array(plain(image, self.resize or self.size, self.size))


def files(folder: Path) -> list[str]:
    """List the image files right in `folder` by name; without hidden files and other suffixes."""
    images = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return sorted(str(path) for path in images if not path.name.startswith("."))


def subfolders(folder: Path) -> list[str]:
    """List the names of the folders in `folder`, without hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def runs(count: int, file_bytes: int, threads: int) -> list[NDArray[np.int64]]:
    """Share out 0..count-1 in runs, one a thread: a task a file would cost as much as decoding a small one.

    Args:
        count: number of files, at least one.
        file_bytes: usual size of one; small files are left to a single thread.
        threads: number of threads that there are.
    """
    number = min(threads, count) if file_bytes > _WORTH_A_THREAD else 1
    return np.array_split(np.arange(count), number)


def read(path: str) -> bytes:
    """Return the content of a file that is to be prepared.

    Raises:
        DataError: there is no such file.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise _unreadable(path, "no such file", "dvc repro") from None


def decode(path: str, content: bytes, channels: int, then: str = "dvc repro") -> Image.Image:
    """Decode the content of a file: mode L for one channel, RGB for three.

    Args:
        path: its name, for errors.
        content: its bytes.
        channels: 1 or 3.
        then: the command that comes after its repair.

    Raises:
        DataError: it is no image, is truncated, or has pixels of more than 8 bits.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged files
        raise _unreadable(path, _reason(error), then) from None
    if image.mode.startswith(("I", "F")):
        # Pillow would clip or scale 16 bits and floats silently.
        raise DataError(
            f"{path} holds pixels of mode {image.mode}, expected 8 bits a channel. Convert the file."
        )
    if "transparency" in image.info:  # of a palette, in bytes: converted in one step Pillow warns
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def dimensions(path: str, content: bytes) -> tuple[int, int]:
    """Return height and width of an image, from the head of its file.

    Raises:
        DataError: it is no image.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.height, image.width
    except Exception as error:
        raise _unreadable(path, _reason(error), "dvc repro") from None


def plain(image: Image.Image, resize: int, size: int) -> Image.Image:
    """Resize the short side to `resize`, then crop the center, size x size, as torchvision's transforms do."""
    width, height = image.size
    short = min(width, height)
    width, height = resize * width // short, resize * height // short
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def array(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels (C, H, W) of an image of mode L or RGB."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _reason(error: Exception) -> str:
    # Pillow would name the object that holds the bytes, by its address.
    return "no image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())


def _unreadable(path: str, reason: str, then: str) -> DataError:
    return DataError(f"Cannot read the image {path} ({reason}). Replace or delete the file, then: {then}")
