"""The index of a data set whose images stay in their files, and its reader.

`<split>_files.npy` holds one record a sample (`record_type`) and is mapped, so neither it nor the images are in
memory. Every file that is read is compared with the hash of its content in the index: what is decoded is what
was fingerprinted, and a file that was changed, truncated or exchanged since is reported by its name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.artifacts import advice
from pipeline.data.layout import HASH_BYTES, Files, image_hash
from pipeline.data.raw import image_files, place, regular
from pipeline.errors import DataError
from pipeline.params.size import Size, sides


class Box(NamedTuple):
    """A part of an image, in its own pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def record_type(path_bytes: int) -> np.dtype[Any]:
    """Return the type of a record: path below the root, bytes of the file, size in pixels, hash of the content."""
    return np.dtype(
        [
            ("path", f"S{path_bytes}"),
            ("bytes", "<i8"),
            ("height", "<i4"),
            ("width", "<i4"),
            ("hash", "u1", (HASH_BYTES,)),
        ]
    )


@dataclass(frozen=True)
class FileList:
    """The files of a split, each compared with its hash when it is read.

    Attributes:
        folder: the prepared data, for errors.
        made_by: the DVC stage that made them, for errors.
        root: the folder that the paths start from, as the settings of the source give it.
        records: `record_type` (N,), mapped from disk.
    """

    folder: Path
    made_by: str
    root: Path
    records: NDArray[Any]

    @cached_property
    def here(self) -> Path:
        """The folder that the paths start from, on this machine."""
        return place.located(self.root)

    @property
    def again(self) -> str:
        """The command that lists the files anew."""
        return advice.forced(f"dvc repro {self.made_by}")

    def path(self, row: int) -> Path:
        """Return where the file of sample `row` is."""
        # Paths are bytes on disk and need not be valid UTF-8.
        return self.here / os.fsdecode(self.records["path"][row])

    def content(self, row: int) -> bytes:
        """Return the bytes of the file of sample `row`.

        Raises:
            DataError: the file is missing, or is not the one that was listed.
        """
        path = self.path(row)
        try:
            content = regular.read(path, self.again)
        except FileNotFoundError:
            # Where the raw data are missing as a whole, one file's name says too little.
            if not self.here.is_dir():
                raise DataError(
                    f"{self.here} does not exist, and {self.folder} only lists the images there. Put the raw files "
                    f"of the data set into {self.here}, then run the same command again.{place.hint(self.root)}"
                ) from None
            raise DataError(
                f"{path} does not exist, but {self.folder} lists it. Put the file back, or list the files anew "
                f"with: {self.again}"
            ) from None

        if image_hash(content) != self.records["hash"][row].tobytes():
            listed = f"({self.records['bytes'][row]:,} bytes)"
            raise DataError(
                f"{path} has {len(content):,} bytes that are not those of the file that {self.folder} lists {listed}. "
                f"Put that file back, or list the files anew with: {self.again}"
            )
        return content


@dataclass(frozen=True)
class FileIndex:
    """The images of a split, decoded when they are asked for.

    Attributes:
        folder: the prepared data, for errors.
        made_by: the DVC stage that made them, for errors.
        files: the folder that the paths start from, and how its files become images.
        records: `record_type` (N,), mapped from disk.
        channels: 1 (gray) or 3 (color).
        size: height and width to give, in pixels; one number where it is square.
    """

    folder: Path
    made_by: str
    files: Files
    records: NDArray[Any]
    channels: int
    size: Size

    @cached_property
    def listed(self) -> FileList:
        """The files themselves."""
        return FileList(self.folder, self.made_by, Path(self.files.root), self.records)

    @property
    def root(self) -> Path:
        """The folder that the paths start from, as the settings of the source give it."""
        return self.listed.root

    @property
    def here(self) -> Path:
        """The folder that the paths start from, on this machine."""
        return self.listed.here

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """Return the plain image (C, H, W) of sample `row`; see `pixels`."""
        return self.pixels(row, None)

    def pixels(self, row: int, box: Box | None) -> NDArray[np.uint8]:
        """Decode sample `row`: uint8 (C, H, W).

        Args:
            row: the sample.
            box: the part of the whole image that is resized, as torchvision's RandomResizedCrop does it; None
                gives the plain view.

        Raises:
            DataError: the file is missing, is not the one that was indexed, or is no image.
        """
        path = self.listed.path(row)
        content = self.listed.content(row)
        image = image_files.decode(str(path), content, self.channels, self.listed.again, self.files.decoding)
        if box is None:
            return image_files.array(image_files.plain(str(path), image, self.files.resize, self.size))

        # Cropped before it is resized: the filter then mixes in no pixel from outside the box.
        image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        height, width = sides(self.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        if box.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image_files.array(image)
