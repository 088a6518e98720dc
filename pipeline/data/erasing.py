"""Random erasing (Zhong et al. 2017, arXiv:1708.04896) as views: a box of some images shows nothing of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline import seeding
from pipeline.data.draws import hashed, uniform
from pipeline.params.views import RandomErasing

_SALT, _NOISE = seeding.derive("random_erasing"), seeding.derive("random_erasing", "noise")
_ATTEMPTS = 10


class RandomErasingSpace:
    """Boxes that are black, or noise; the id seeds the draw of the box, and of whether there is one.

    Area and log-ratio are uniform, and of ten attempts the first that is smaller than the image counts.
    """

    count: int | None = None

    def __init__(self, params: RandomErasing) -> None:
        self.params = params

    def apply(self, image: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """Return images with a box that is erased; see `ViewSpace.apply`."""
        height, width = image.shape[2:]
        top, left, tall, wide = self.boxes(view, index, height, width).unbind(1)  # each (B,)
        rows = torch.arange(height, device=image.device)
        columns = torch.arange(width, device=image.device)
        down = (rows >= top[:, None]) & (rows < (top + tall)[:, None])  # (B, H)
        across = (columns >= left[:, None]) & (columns < (left + wide)[:, None])  # (B, W)
        erased = (down[:, :, None] & across[:, None, :])[:, None]  # (B, 1, H, W)
        if self.params.fill == "black":
            return image * ~erased

        noise = hashed(index, view, image[0].numel(), _NOISE) & 255
        return torch.where(erased, noise.view(image.shape).to(torch.uint8), image)

    def boxes(self, view: Tensor, index: Tensor, height: int, width: int) -> Tensor:
        """Return the boxes, as (top, left, height, width) int64 (B, 4); one of no height erases nothing.

        Computed in float64: so no device rounds to another pixel than the next.

        Args:
            view: view ids int64 (B,).
            index: sample indices int64 (B,).
            height: height of the images.
            width: width of the images.
        """
        draws = uniform(index, view, 4 * _ATTEMPTS + 1, _SALT).double()
        share, ratio, y, x = draws[:, :-1].view(len(draws), 4, _ATTEMPTS).unbind(1)  # (B, attempts)
        low, high = (math.log(bound) for bound in self.params.ratio)
        smallest, largest = self.params.scale
        area = height * width * (smallest + share * (largest - smallest))
        aspect = (low + ratio * (high - low)).exp()
        wide, tall = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()

        fits = (wide >= 1) & (wide < width) & (tall >= 1) & (tall < height)
        first = fits.int().argmax(dim=1, keepdim=True)
        wide, tall, y, x = (draw.gather(1, first)[:, 0] for draw in (wide, tall, y, x))
        drawn = fits.any(dim=1) & (draws[:, -1] < self.params.probability) & (view != 0)
        top, left = (y * (height - tall + 1)).floor(), (x * (width - wide + 1)).floor()
        return torch.stack((top, left, torch.where(drawn, tall, 0.0), wide), dim=1).long()
