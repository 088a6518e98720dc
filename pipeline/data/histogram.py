"""Counts of pixel values: mean and deviation of any number of images, exactly."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def count(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each channel of images (n, C, H, W) has each value, int64 (C, 256)."""
    channels = images.shape[1]
    return np.stack(
        [np.bincount(images[:, channel].reshape(-1), minlength=256) for channel in range(channels)]
    )


def moments(counts: list[int]) -> tuple[float, float]:
    """Return mean and standard deviation of pixel / 255 of a channel: the sums are exact integers."""
    number = sum(counts)
    first = sum(value * count for value, count in enumerate(counts))
    second = sum(value * value * count for value, count in enumerate(counts))
    # Variance times the squared number is still an integer: nothing cancels in the difference.
    return first / (255 * number), math.sqrt(number * second - first * first) / (255 * number)
