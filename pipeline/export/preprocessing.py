"""What an exported student must be shown: `preprocessing.json` beside its model.

It says all that lies between a file and the model's input, so that whoever has the two files needs nothing else. Here
no torch is needed: a model of ONNX runs with numpy, Pillow and onnxruntime alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.data.layout import AS_STORED, Decoding, Meta, Reading
from pipeline.data.raw import image_files, regular
from pipeline.errors import DataError
from pipeline.params.base import Block
from pipeline.params.size import Size, sides

FILE = "preprocessing.json"
INPUT, OUTPUT = "image", "logits"  # names in a graph of ONNX
ORDER = (
    "decode the first frame as `decoding` says, 8 bits a channel, and drop an alpha channel",
    "convert to the mode",
    "resize to cover `resize` in its own proportions (a number: its short side), bilinear with antialiasing",
    "crop the center, height x width",
    "divide by 255, subtract mean, divide by std, per channel, float32",
    "put channels first: (batch, channels, height, width)",
)
NOTHING: Mapping[str, Any] = MappingProxyType({})
# What comes after the repair of a file.
SAME = "the same command (--damaged skip leaves out what cannot be read)"


class Preprocessing(Block):
    """What becomes of a file before a network reads it, and what the network's outputs are of.

    Attributes:
        mode: Pillow's mode of a decoded image: L (gray) or RGB.
        channels: of an image.
        height: of an image, in pixels.
        width: of an image, in pixels.
        resize: the size that an image is resized to cover, in its own proportions: of a number, its short side.
        mean: per channel in [0, 1].
        std: per channel.
        classes: their names, in the order of the logits.
        decoding: what is done to a file when it is decoded, beside the rest.
        order: what is done, step by step, in words.
        format: of the model beside it; these three are empty where there is none.
        model: its file.
        hash: of that file, which has passed the gate.
    """

    mode: str
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    resize: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    decoding: Decoding = AS_STORED
    order: tuple[str, ...] = ORDER
    format: str = ""
    model: str = ""
    hash: str = ""

    @classmethod
    def of(cls, meta: Meta, settings: Mapping[str, Any] = NOTHING) -> Self:
        """Return the preprocessing of prepared data, as they say themselves how their files were read.

        Args:
            meta: of the prepared data.
            settings: of their source, for copied data that were prepared before these said so.

        Raises:
            DataError: no file becomes such an image.
        """
        if meta.channels not in (1, 3):
            raise DataError(
                f"Images of {meta.channels} channels cannot be read from files, expected 1 (gray) or 3 (color). "
                "Export a student of other data."
            )
        # A source that has no files of any size says nothing of them: theirs become images of the same size.
        reading = (
            meta.files
            or meta.reading
            or Reading(
                resize=settings.get("resize") or meta.size,
                decoding=Decoding(**{key: settings[key] for key in Decoding.model_fields if key in settings}),
            )
        )
        height, width = sides(meta.size)
        return cls(
            mode="L" if meta.channels == 1 else "RGB",
            channels=meta.channels,
            height=height,
            width=width,
            resize=reading.resize,
            decoding=reading.decoding,
            mean=meta.mean,
            std=meta.std,
            classes=meta.classes,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        return self.channels, self.height, self.width

    def image(self, path: Path) -> NDArray[np.uint8]:
        """Return the image uint8 (C, H, W) of a file, as `prepare_data` makes it.

        Raises:
            DataError: the file is missing or damaged, or no image.
        """
        image = image_files.decode(str(path), _content(path), self.channels, SAME, self.decoding)
        return image_files.array(image_files.plain(str(path), image, self.resize, (self.height, self.width)))

    def normalized(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what a network reads, float32 (B, C, H, W), of images uint8 (B, C, H, W).

        Bit for bit what `pipeline.data.normalize` gives on a CPU: the same factor and offset, and the same two steps.
        """
        mean, std = (np.array(x, np.float64).reshape(1, -1, 1, 1) for x in (self.mean, self.std))
        scale = (1 / (255 * std)).astype(np.float32)
        # There the offset's deviation is rounded to float32 first.
        shift = (mean / std.astype(np.float32).astype(np.float64)).astype(np.float32)
        normalized: NDArray[np.float32] = images.astype(np.float32) * scale - shift
        return normalized


def _content(path: Path) -> bytes:
    try:
        return regular.read(path, SAME)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Put the file back, then: {SAME}") from None
