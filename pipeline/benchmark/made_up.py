"""Made-up images with boxes, prepared as real ones are: for measuring where there are no data, or none to disturb."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.annotated import (
    CHANNELS,
    AnnotatedConfig,
    AnnotatedSource,
    AnnotatedSplit,
    Annotations,
    Expected,
)
from pipeline.detection.preparation import prepare

_SMALL = 8  # pixels of the noise that is enlarged: a photograph is smooth, too
_GRAIN = 12  # of 255
_QUALITY = 90  # of the JPEGs, which then have about half a byte a pixel, as COCO's


@dataclass(frozen=True)
class MadeUp:
    """Images of one split; see `annotated.Pictures`."""

    names: Sequence[str]
    files: Sequence[bytes]

    def content(self, row: int) -> bytes:
        """Return the content of a file."""
        return self.files[row]

    def place(self, row: int) -> str:
        """Return what an error calls the file."""
        return self.names[row]


def make(expected: Expected, train: int, test: int, folder: Path) -> float:
    """Prepare made-up data of the sizes of others, and return the seconds that each image took.

    Args:
        expected: the data that they stand for.
        train: number of training images.
        test: number of images for evaluation.
        folder: to make.
    """
    splits = {split: _split(expected, split, number) for split, number in (("train", train), ("test", test))}
    source = AnnotatedSource([f"class {k}" for k in range(expected.classes)], splits["train"], splits["test"])
    start = time.perf_counter()
    prepare(source, "made_up", AnnotatedConfig(), folder)
    return (time.perf_counter() - start) / (train + test)


def _split(expected: Expected, split: str, number: int) -> AnnotatedSplit:
    """Return images of sizes that occur, each with as many boxes as there are on average."""
    draws = np.random.default_rng(number)
    sizes = np.array(expected.sizes, np.int64)[draws.integers(0, len(expected.sizes), number)]
    each = max(1, round(expected.boxes[split] / max(1, expected.samples[split])))
    # From a tenth to a half of the image, anywhere in it.
    sides = draws.uniform(0.1, 0.5, (number, each, 2))
    corners = draws.uniform(0, 1, (number, each, 2)) * (1 - sides)
    scale = np.repeat(sizes[:, None, ::-1], each, axis=1)
    boxes = np.concatenate([corners * scale, (corners + sides) * scale], axis=2).reshape(-1, 4)
    annotations = Annotations(
        boxes.astype(np.float32),
        draws.integers(0, expected.classes, len(boxes)),
        np.zeros(len(boxes), np.bool_),
        ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).astype(np.float32),
        np.arange(number + 1, dtype=np.int64) * each,
    )
    # Now, so that the time of preparing them is not that of drawing them.
    files = [_jpeg(height, width, draws) for height, width in sizes.tolist()]
    names = [f"{split}/{row}.jpg" for row in range(number)]
    return AnnotatedSplit(MadeUp(names, files), sizes, annotations, "what was made up")


def _jpeg(height: int, width: int, draws: np.random.Generator) -> bytes:
    """Return smooth noise with some grain as a JPEG."""
    small = draws.integers(0, 256, (height // _SMALL + 1, width // _SMALL + 1, CHANNELS), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    grain = draws.integers(-_GRAIN, _GRAIN + 1, (height, width, 1))
    pixels = np.clip(np.asarray(image, np.int16) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
