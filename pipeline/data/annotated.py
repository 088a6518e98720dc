"""Contract of the files of `pipeline/data/datasets/` whose images have boxes instead of one label.

Such a file holds `TASK = "detection"`, `Config` and `open_source(config) -> AnnotatedSource`, and where its raw files
can be listed `listed(config) -> Listed`, as any data set. Its images are of any size, so it has no `image(config)`.
Where it knows what it will hold before any file is there, `expected(config) -> Expected | None` tells the plan.

Numpy arrays alone: what becomes of them is in `pipeline/detection/layout.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.data.raw.listing import Listed
from pipeline.params.base import Block

CHANNELS = 3  # what detectors read
# Of ImageNet's training images: what the library's pretrained backbones were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Shares = tuple[Annotated[float, Field(ge=0, le=1)], ...]
Spreads = tuple[Annotated[float, Field(gt=0, le=1)], ...]


class AnnotatedConfig(Block):
    """Settings that every data set with boxes has.

    Attributes:
        mean: of red, green and blue, in [0, 1]; by default ImageNet's.
        std: as `mean`, above 0.
    """

    mean: Shares = Field(default=MEAN, min_length=CHANNELS, max_length=CHANNELS)
    std: Spreads = Field(default=STD, min_length=CHANNELS, max_length=CHANNELS)


@dataclass(frozen=True)
class Annotations:
    """The boxes of all images of a split; those of image i are rows `offsets[i]` to `offsets[i + 1]`.

    Attributes:
        boxes: float32 (M, 4): left, top, right and bottom edge, in pixels.
        labels: int64 (M,), an index into the classes.
        crowd: bool (M,): the box is around many objects that nobody counted.
        area: float32 (M,), of the object, in square pixels.
        offsets: int64 (N + 1,).
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]
    offsets: NDArray[np.int64]


class Pictures(Protocol):
    """The images of a split: files, or what would be in files."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the files, below the folder that they start from."""
        ...

    def content(self, row: int) -> bytes:
        """Return the content of an image's file.

        Raises:
            DataError: it cannot be read.
        """
        ...

    def place(self, row: int) -> str:
        """Return what an error calls the file."""
        ...


@dataclass(frozen=True)
class AnnotatedSplit:
    """A split as the source holds it.

    Attributes:
        images: the images.
        sizes: height and width as the source gives them, int64 (N, 2), in pixels.
        annotations: their boxes.
        told_by: what gives the sizes, for an error.
    """

    images: Pictures
    sizes: NDArray[np.int64]
    annotations: Annotations
    told_by: str


@dataclass(frozen=True)
class AnnotatedSource:
    """An opened data set with boxes, checked but for its images.

    Attributes:
        classes: class names; a label is an index into them.
        train: training images.
        test: images for evaluation.
        root: the folder that the names start from, as the settings give it; None where there are no files, and the
            prepared data keep the images.
        listed: the raw files as they were found; None where there are none.
    """

    classes: Sequence[str]
    train: AnnotatedSplit
    test: AnnotatedSplit
    root: str | None = None
    listed: Listed | None = None


@dataclass(frozen=True)
class Expected:
    """What a data set will hold, known before it is prepared; no result depends on it.

    Attributes:
        classes: number of classes.
        samples: images by split.
        boxes: by split, about so many.
        sizes: height and width of images as they occur, in pixels.
        kept: bytes of the images that the prepared data will hold, about so many; 0 where they stay in their files.
    """

    classes: int
    samples: Mapping[str, int]
    boxes: Mapping[str, int]
    sizes: Sequence[tuple[int, int]]
    kept: int = 0
