"""The nearest of many centers, as tiles of one matrix product.

||x - c||^2 is ||c||^2 - 2 x . c, without the ||x||^2 that is the same for all centers, in float32 as in
scikit-learn's engine. A row whose two nearest centers are equally near to float32 may go to the other one there.
Products must be IEEE float32 (`full_products`): in TF32 differences of distances drown.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

TILE_BYTES = 256 << 20  # of distances that are in memory at a time


class Nearest:
    """Finds the nearest of centers for rows; of equal ones the first.

    Args:
        centers: float32 (K, D).
    """

    def __init__(self, centers: Tensor) -> None:
        # Minus two is a factor of the centers, not of the product: with that the product adds the squares itself.
        self._factors = -2 * centers.T
        self._square = (centers**2).sum(dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the nearest center of rows float32 (n, D), int64 (n,)."""
        parts = [
            torch.addmm(self._square, tile, self._factors).argmin(dim=1)
            for tile in tiles(x, len(self._square))
        ]
        return torch.cat(parts)


def tiles(x: Tensor, values: int) -> Iterator[Tensor]:
    """Cut rows (n, D) into tiles for which as many `values` a row, in float32, fit `TILE_BYTES`."""
    yield from torch.split(x, max(1, TILE_BYTES // (4 * values)))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared distance of each row of (n, D) to the same row of another, (n,)."""
    return ((x - y) ** 2).sum(dim=-1)
