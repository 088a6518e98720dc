"""Streams and maps for the tests of tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Array = NDArray[Any]


@dataclass
class MapStream:
    """A stream over samples (N, ...) with labels int64 (N,), `size` at a time."""

    values: Array
    labels: Array
    size: int = 64
    passes: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        self.passes += 1
        for start in range(0, len(self.values), self.size):
            yield self.values[start : start + self.size], self.labels[start : start + self.size]


def digit_maps(samples: int, channels: int = 12, seed: int = 0) -> MapStream:
    """Return handwritten digits through a random layer of 2x2 patches and ReLU, float32 (N, C, 4, 4)."""
    images, labels = load_digits(return_X_y=True)
    patches = images[:samples].reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 4, 4) / 16
    weights = np.random.default_rng(seed).normal(size=(4, channels))
    maps = np.maximum(patches @ weights + 0.1, 0)  # (N, 4, 4, C)
    return MapStream(
        np.ascontiguousarray(np.moveaxis(maps, -1, 1), np.float32), labels[:samples].astype(np.int64)
    )


def pixel_rows(stream: MapStream) -> Array:
    """Return the pixels of maps (N, C, H, W) one by one, float64 (N H W, C)."""
    rows = [
        sample[:, row, column]
        for sample in stream.values
        for row in range(stream.shape[2])
        for column in range(stream.shape[3])
    ]
    return np.array(rows, np.float64)
