"""Image files, decoded when they are asked for.

What is done to an image, and no more: the first frame is taken, an alpha channel is dropped, color becomes
gray by ITU-R 601 luma and gray becomes color by repetition. An orientation noted in a photograph's EXIF data
is ignored, as torchvision's ImageFolder does, unless the settings ask for it (`Decoding`); Pillow itself applies that
of a TIFF. Of color with 16 bits a channel Pillow keeps the higher 8, and so does gray where that is asked for. The
plain view is torchvision's evaluation transform: the short side is resized (bilinear with antialiasing) and the center
is cropped.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.data.layout import AS_STORED, Decoding
from pipeline.data.raw import regular
from pipeline.errors import DataError
from pipeline.params.size import Size, shown, sides

# A fixed list, as that of suffixes: of others Pillow asks programs that must be there, or libraries that may not.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# Of a decoded image, and of one whose short side is resized: a few bytes may say that they are any number.
MOST_PIXELS = 178_956_970
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, whose warnings come in two lines

_PREPARE = "dvc repro"  # runs the preparation again where it has failed

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
        size: height and width to give, in pixels; one number where it is square.
        resize: the size that an image is resized to cover before its center is cropped; None where an image of another
            size is an error.
        decoding: what is done to a file when it is decoded.
    """

    paths: Sequence[str]
    labels: NDArray[np.int64]
    channels: int
    size: Size
    resize: Size | None
    decoding: Decoding = AS_STORED

    def images(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Decode images [start, stop) on all processors: uint8 (n, C, H, W).

        Raises:
            DataError: a file that cannot be read, by name.
        """
        paths = self.paths[start:stop]
        out = np.empty((len(paths), self.channels, *sides(self.size)), dtype=np.uint8)
        parts = runs(len(paths), file_bytes(paths[0]), os.cpu_count() or 1)

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
        return self.view(path, decode(path, content, self.channels, decoding=self.decoding))

    def view(self, path: str, image: Image.Image) -> NDArray[np.uint8]:
        """Return the plain view (C, H, W) of a decoded file.

        Raises:
            DataError: it is of another size where that is an error, or too long to be resized.
        """
        width, height = image.size
        if self.resize is None and (height, width) != sides(self.size):
            tall, wide = sides(self.size)
            raise DataError(
                f"{path} is {width}x{height}, expected {wide}x{tall}. Replace the file, or read the "
                "data with source: image_folder, which resizes."
            )
        return array(plain(path, image, self.resize or self.size, self.size))


def file_bytes(path: str) -> int:
    """Return the size of a file; 0 where there is none, which is reported when it is read."""
    return Path(path).stat().st_size if Path(path).is_file() else 0


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
        DataError: there is no such file, or it is no regular one.
    """
    try:
        return regular.read(path)
    except FileNotFoundError:
        raise _unreadable(path, "no such file", _PREPARE) from None


def decode(
    path: str, content: bytes, channels: int, then: str = _PREPARE, decoding: Decoding | None = AS_STORED
) -> Image.Image:
    """Decode the content of a file: mode L for one channel, RGB for three.

    Args:
        path: its name, for errors.
        content: its bytes.
        channels: 1 or 3.
        then: the command that comes after its repair.
        decoding: what is done beside; None does nothing, for a source without such settings.

    Raises:
        DataError: it is no image, is truncated or damaged, has too many pixels, or pixels of more than 8 bits.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check_pixels(image.size)  # before any is decoded
        if image.format == "PNG":
            _check_chunks(content)
        image.load()
        kind = image.format  # what is turned has none
        if decoding is not None and decoding.orientation == "apply":
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            # Pillow would clip or scale 16 bits and floats silently.
            image = _shallow(path, image, kind, decoding, then)
        if "transparency" in image.info:  # of a palette, in bytes: converted in one step Pillow warns
            image = image.convert("RGBA")
        return image if image.mode == mode else image.convert(mode)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged files
        raise _unreadable(path, _reason(error), then) from None


def _shallow(
    path: str, image: Image.Image, kind: str | None, decoding: Decoding | None, then: str
) -> Image.Image:
    """Return the higher 8 bits of gray pixels of 16, where that is asked for; of others no range is known."""
    # Pillow gives the 16 bits of a PGM as 32.
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM"))
    if not sixteen or decoding is None or decoding.deep == "refuse":
        settable = sixteen and decoding is not None
        scale = ", or set deep: scale for its source in params.yaml" if settable else ""
        raise DataError(
            f"{path} holds pixels of mode {image.mode}, expected 8 bits a channel. "
            f"Convert the file{scale}, then: {then}"
        )

    return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))


def plain(path: str, image: Image.Image, resize: Size, size: Size) -> Image.Image:
    """Resize an image to cover `resize`, then crop the center of `size`, as torchvision's transforms do with squares.

    Args:
        path: the name of the file, for errors.
        image: of any size.
        resize: the size that it covers then: of a number, its short side.
        size: height and width of the crop.

    Raises:
        DataError: it is so narrow that it would become too large.
    """
    width, height = resized_size(path, image, resize)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    tall, wide = sides(size)
    left, top = round((width - wide) / 2), round((height - tall) / 2)
    return image.crop((left, top, left + wide, top + tall))


def resized_size(path: str, image: Image.Image, resize: Size) -> tuple[int, int]:
    """Return width and height of an image once it just covers `resize`, in its own proportions.

    Raises:
        DataError: it is so narrow that it would become too large.
    """
    width, height = image.size
    tall, wide = sides(resize)
    # Of the two sides, the one that has to grow more decides.
    upright = width * tall <= height * wide
    resized = (wide, wide * height // width) if upright else (tall * width // height, tall)
    if resized[0] * resized[1] > MOST_PIXELS:
        how = f"its short side resized to {resize}" if isinstance(resize, int) else f"{shown(resize)} covered"
        raise DataError(
            f"{path} is {width}x{height}, which with {how} has more than "
            f"{MOST_PIXELS:,} pixels. Crop or remove the file, then: dvc repro"
        )
    return resized


def array(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels (C, H, W) of an image of mode L or RGB."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _check_pixels(size: tuple[int, int]) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"it is {width}x{height}")
    if width * height > MOST_PIXELS:
        raise ValueError(f"it is {width}x{height}, more than {MOST_PIXELS:,} pixels")


def _check_chunks(content: bytes) -> None:
    """Compare every chunk of a PNG with its checksum; Pillow skips those of the pixels."""
    start, name = 8, b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", content, start)
        (expected,) = struct.unpack_from(">I", content, start + 8 + length)
        if zlib.crc32(memoryview(content)[start + 4 : start + 8 + length]) != expected:
            raise ValueError("a chunk does not have its checksum")
        start += length + 12


def _reason(error: Exception) -> str:
    # Pillow would name the object that holds the bytes, by its address.
    if isinstance(error, UnidentifiedImageError):
        return "no image"
    if isinstance(error, struct.error):
        return "it is cut off"
    return " ".join(str(error).split()) or type(error).__name__


def _unreadable(path: str, reason: str, then: str) -> DataError:
    skip = ", or set damaged: skip for its source in params.yaml" if then == _PREPARE else ""
    return DataError(
        f"Cannot read the image {path} ({reason}). Replace or delete the file{skip}, then: {then}"
    )
