"""Changes of color of a batch, each image by a factor of its own, and the views that they make.

All are what torchvision's functions of these names do to tensors of bytes. Sums are of whole numbers, and products and
sums of float32 are taken one by one, which every device rounds alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline import seeding
from pipeline.data.draws import uniform
from pipeline.params.views import ColorJitter

_SALT = seeding.derive("color_jitter")


class ColorJitterSpace:
    """Brightness, contrast, saturation and hue, in this order; the id seeds the draw of their factors."""

    count: int | None = None

    def __init__(self, params: ColorJitter) -> None:
        self.params = params

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return images of other colors; see `ViewSpace.apply`."""
        params, draws = self.params, uniform(index, view, 4, _SALT)
        changed = image
        for number, (change, most) in enumerate(
            ((brightened, params.brightness), (contrasted, params.contrast), (saturated, params.saturation))
        ):
            if most:
                least = max(0.0, 1 - most)
                changed = change(changed, least + draws[:, number] * (1 + most - least))
        if params.hue:
            changed = turned(changed, (2 * draws[:, 3] - 1) * params.hue)
        return torch.where((view == 0)[:, None, None, None], image, changed)


def gray(image: Tensor) -> Tensor:
    """Return the brightness of each pixel, rounded down.

    Args:
        image: uint8 (B, C, H, W), of one channel or of three.

    Returns:
        uint8 (B, 1, H, W).
    """
    if image.shape[1] == 1:
        return image
    red, green, blue = image.float().unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8)[:, None]


def blended(image: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return `image` for a factor of 1, `other` for 0, and what lies between and beyond; uint8 (B, C, H, W).

    Args:
        image: uint8 (B, C, H, W).
        other: anything that it can be added to.
        factor: float32 (B,).
    """
    # From the difference, as Pillow does: where both are alike nothing changes, whatever the factor rounds to.
    return (other + factor.view(-1, 1, 1, 1) * (image.float() - other)).clamp(0, 255).to(torch.uint8)


def mean(image: Tensor) -> Tensor:
    """Return the mean brightness of images, float32 (B, 1, 1, 1)."""
    pixels = image.shape[2] * image.shape[3]
    total = gray(image).sum(dim=(1, 2, 3), dtype=torch.int64)
    return (total.double() / pixels).float().view(-1, 1, 1, 1)


def brightened(image: Tensor, factor: Tensor) -> Tensor:
    """Return images (B, C, H, W) as many times as bright."""
    return (factor.view(-1, 1, 1, 1) * image).clamp(0, 255).to(torch.uint8)


def contrasted(image: Tensor, factor: Tensor) -> Tensor:
    """Return images (B, C, H, W) whose distance from their mean brightness is multiplied."""
    return blended(image, mean(image), factor)


def saturated(image: Tensor, factor: Tensor) -> Tensor:
    """Return images (B, C, H, W) whose distance from gray is multiplied; those of one channel are gray."""
    return image if image.shape[1] == 1 else blended(image, gray(image), factor)


def turned(image: Tensor, shift: Tensor) -> Tensor:
    """Return images (B, 3, H, W) whose hue is moved by a share of the circle (B,); value and saturation stay."""
    red, green, blue = image.float().unbind(1)  # each (B, H, W)
    top, low = image.float().amax(dim=1), image.float().amin(dim=1)
    spread = top - low
    divisor = torch.where(spread == 0, 1.0, spread)

    # In sixths of the circle, from red on.
    of_green, of_blue = 2 + (blue - red) / divisor, 4 + (red - green) / divisor
    hue = torch.where(top == green, of_green, of_blue)
    hue = torch.where(top == red, (green - blue) / divisor, hue) + 6 * shift[:, None, None]

    channels = []
    for start in (5, 3, 1):
        place = (start + hue) % 6
        channels.append(top - spread * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, dim=1).round().clamp(0, 255).to(torch.uint8)
