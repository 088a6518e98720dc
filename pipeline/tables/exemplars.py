"""Exemplars: the pixels that show best what a cluster or a kernel stands for, for pictures in the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.tables.pixels import Block, Points

Array = NDArray[Any]

LARGEST = SPREAD = 12
EXEMPLARS = 9


def chosen(counts: Array) -> Array:
    """Choose groups to show, int64 (G,): the 12 largest, and 12 spread evenly over the sizes of the others.

    Args:
        counts: members of each group, int64 (K,). Groups without members are not shown.
    """
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    others = order[LARGEST:]
    spread = np.unique(np.linspace(0, max(0, len(others) - 1), SPREAD).round().astype(int))
    return np.concatenate([order[:LARGEST], others[spread[: len(others)]]]).astype(np.int64)


def exemplars(
    points: Points, groups: Array, score: Callable[[Block], Array], height: int, width: int
) -> dict[str, Array]:
    """Find the pixels of distinct images that score highest in each group.

    Args:
        points: the pixels.
        groups: those to show, int64 (G,).
        score: gives every pixel a score in each shown group, (n, G); -inf excludes it.
        height: rows of the map.
        width: columns of the map.

    Returns:
        `gallery`, the groups, and int64 (G, 9) `nearest_sample`, `nearest_row` and `nearest_column`: the best
        first, of equal ones that of the first image; -1 where there are fewer images.
    """
    gallery = Gallery(groups, height, width)
    for block in points:
        gallery.add(score(block), np.broadcast_to(block.pixel[:, None], (len(block.pixel), len(groups))))
    return gallery.arrays()


class Gallery:
    """The best pixels of distinct images so far, group by group.

    Args:
        groups: those to show, int64 (G,).
        height: rows of the map.
        width: columns of the map.
    """

    def __init__(self, groups: Array, height: int, width: int) -> None:
        self._groups, self._height, self._width = groups, height, width
        self._best = [(np.zeros(0), np.zeros(0, np.int64)) for _ in groups]

    def add(self, scores: Array, pixel: Array) -> None:
        """Let pixels compete.

        Args:
            scores: of each pixel in each group, (n, G); -inf excludes it.
            pixel: their numbers, those of each group in its column, int64 (n, G).
        """
        for group, (score_before, index_before) in enumerate(self._best):
            # Once nine are known, few pixels can still beat the last of them: only these are sorted.
            floor = score_before[-1] if len(score_before) == EXEMPLARS else -np.inf
            able = scores[:, group] > floor
            values = np.concatenate([score_before, scores[able, group]])
            index = np.concatenate([index_before, pixel[able, group]])
            self._best[group] = _distinct(values, index, self._height * self._width)

    def arrays(self) -> dict[str, Array]:
        """Return the arrays of `exemplars`."""
        pixel = np.full((len(self._groups), EXEMPLARS), -1, np.int64)
        for group, (_, index) in enumerate(self._best):
            pixel[group, : len(index)] = index

        sample, rest = np.divmod(pixel, self._height * self._width)
        row, column = np.divmod(rest, self._width)
        places = {"nearest_sample": sample, "nearest_row": row, "nearest_column": column}
        return {"gallery": self._groups} | {
            name: np.where(pixel < 0, -1, array) for name, array in places.items()
        }


def _distinct(scores: Array, index: Array, area: int) -> tuple[Array, Array]:
    """Return the highest scores of distinct images and their pixels, the best first."""
    order = np.lexsort((index, -scores))  # by score, of equal ones by position
    _, first = np.unique(index[order] // area, return_index=True)
    order = order[np.sort(first)[:EXEMPLARS]]
    return scores[order], index[order]
