"""What a detector learns and what it finds: boxes of one image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The annotated boxes of one image, in pixels of the image as it is shown.

    Attributes:
        boxes: (n, 4): left, top, right and bottom edge.
        labels: int64 (n,): 0 to K-1; the background is none of them.
        crowd: bool (n,): the box is around many objects, which nobody counted.
        area: (n,): of the annotated object, in square pixels; an object with an outline covers less than its box.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    area: Tensor


@dataclass(frozen=True)
class Detected:
    """The boxes that a detector found in one image.

    Attributes:
        boxes: (n, 4): left, top, right and bottom edge, in pixels of the image that it was shown.
        scores: (n,): how sure it is, 0 to 1.
        labels: int64 (n,): 0 to K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
