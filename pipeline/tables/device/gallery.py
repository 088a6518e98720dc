"""Exemplars of rows on a device: each image's best pixel is found there, and only these come to the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.tables.device.rows import DeviceRows, Rows
from pipeline.tables.exemplars import Gallery

Array = NDArray[Any]


def exemplars(
    rows: DeviceRows, groups: Array, score: Callable[[Rows], Tensor], height: int, width: int
) -> dict[str, Array]:
    """Return what `pipeline.tables.exemplars.exemplars` does.

    Args:
        rows: the pixels.
        groups: those to show, int64 (G,).
        score: gives every pixel a score in each shown group, (n, G); -inf excludes it.
        height: rows of the map.
        width: columns of the map.
    """
    gallery = Gallery(groups, height, width)
    for block in rows:
        scores, pixel = best_of_images(score(block), block.pixel, height * width)
        gallery.add(scores.cpu().numpy(), pixel.cpu().numpy())
    return gallery.arrays()


def best_of_images(scores: Tensor, pixel: Tensor, area: int) -> tuple[Tensor, Tensor]:
    """Return each image's highest score in each group, and the first pixel that has it: (I, G) and int64 (I, G).

    Args:
        scores: of pixels in groups, (n, G).
        pixel: their numbers, ascending, int64 (n,).
        area: pixels of an image.

    Returns:
        For more places than there are images: those left over have -inf.
    """
    image = pixel // area
    place = torch.zeros_like(image)
    place[1:] = (image[1:] != image[:-1]).cumsum(dim=0)

    # As many as there may be, whole ones and a part at each end: the number itself would have to be read back.
    size, groups = len(pixel) // area + 2, scores.shape[1]
    spread = place[:, None].expand(-1, groups)
    best = scores.new_full((size, groups), -torch.inf).scatter_reduce_(0, spread, scores, "amax")

    # Of equal pixels the first: maxima and minima do not depend on the order in which threads come.
    last = torch.iinfo(torch.int64).max
    candidates = torch.where(scores == best[place], pixel[:, None], last)
    first = torch.full_like(best, last, dtype=torch.int64).scatter_reduce_(0, spread, candidates, "amin")
    return best, first
