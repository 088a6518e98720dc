"""Views of images with boxes, as ids: scales and flips, under which boxes and areas move with the pixels.

View id = flip * S + position, where position counts the S short sides; id 0, the plain view, is the first of them and
not mirrored. Which view an image shows in a slot is drawn as for other images (`pipeline/data/views.py`), so what is
seen is a function of seed, epoch and sample alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.raw import image_files
from pipeline.detection.sample import Target
from pipeline.params.detection import BoxViews, ScaleFlip


@dataclass(frozen=True)
class Shown:
    """How an image is shown.

    Attributes:
        height: in pixels.
        width: in pixels.
        mirrored: left and right are exchanged.
    """

    height: int
    width: int
    mirrored: bool = False


class BoxSpace:
    """The views that there are.

    Args:
        params: the space.

    Attributes:
        count: number of views, the plain one included.
    """

    def __init__(self, params: BoxViews) -> None:
        self.params = params
        self.count = len(params.short) * (2 if params.flip else 1) if isinstance(params, ScaleFlip) else 1

    def shown(self, view: int, height: int, width: int) -> Shown:
        """Return how a view shows an image of this size, in pixels."""
        if not isinstance(self.params, ScaleFlip):
            return Shown(height, width)
        flip, position = divmod(view, len(self.params.short))
        short, longest = self.params.short[position], self.params.longest
        # Whole numbers decide which side bounds the scale, and floats only what is rounded.
        bounded = short * max(height, width) > longest * min(height, width)
        scale = longest / max(height, width) if bounded else short / min(height, width)
        return Shown(max(1, round(height * scale)), max(1, round(width * scale)), bool(flip))


def pixels(image: Image.Image, shown: Shown) -> Tensor:
    """Return how an image is shown, uint8 (C, H, W): resized, bilinear with antialiasing, and then mirrored."""
    if image.size != (shown.width, shown.height):
        image = image.resize((shown.width, shown.height), Image.Resampling.BILINEAR)
    if shown.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # A copy, in the order of the axes: Pillow's own memory may not be written.
    return torch.from_numpy(np.array(image_files.array(image), order="C"))


def moved(target: Target, height: int, width: int, shown: Shown) -> Target:
    """Return the boxes of an image as it is shown.

    Args:
        target: the boxes in the image's own pixels.
        height: of the image, in pixels.
        width: likewise.
        shown: how it is shown.
    """
    down, across = shown.height / height, shown.width / width
    boxes = target.boxes * torch.tensor([across, down, across, down])
    if shown.mirrored:
        left, top, right, bottom = boxes.unbind(1)
        boxes = torch.stack((shown.width - right, top, shown.width - left, bottom), dim=1)
    return Target(boxes, target.labels, target.crowd, target.area * (down * across))


def back(boxes: Tensor, height: int, width: int, shown: Shown) -> Tensor:
    """Return boxes (n, 4) that were found in an image as it is shown, in its own pixels; see `moved`."""
    if shown.mirrored:
        left, top, right, bottom = boxes.unbind(1)
        boxes = torch.stack((shown.width - right, top, shown.width - left, bottom), dim=1)
    across, down = width / shown.width, height / shown.height
    return boxes * boxes.new_tensor([across, down, across, down])
