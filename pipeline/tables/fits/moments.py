"""Mean and standard deviation of every channel, over all pixels of all plain training samples.

Streamed with the parallel update of Chan, Golub and LeVeque 1983 ("Algorithms for computing the sample
variance"), in float64: exact whatever the block size, and without the cancellation of sums of squares.
"""

from __future__ import annotations

import numpy as np

from pipeline.tables.table import Array, FitContext, Fitted, Stream, TableConfig

UNIT: str | None = None


class Config(TableConfig):
    """No settings beside the feature."""


def stand_in(config: Config, channels: int, num_classes: int) -> dict[str, Array]:
    """Return arrays of the table's sizes."""
    return {"mean": np.zeros(channels), "std": np.ones(channels)}


def fit(stream: Stream, config: Config, context: FitContext) -> Fitted:
    """Fit `mean` and `std`, float64 (C,), of a stream of (N, C, ...)."""
    count, mean, square = 0, np.zeros(stream.shape[1]), np.zeros(stream.shape[1])
    for block, _ in stream:
        x = np.moveaxis(block, 1, -1).reshape(-1, stream.shape[1]).astype(np.float64)  # (pixels, C)
        delta, total = x.mean(axis=0) - mean, count + len(x)
        square += ((x - x.mean(axis=0)) ** 2).sum(axis=0) + delta**2 * count * len(x) / total
        mean += delta * len(x) / total
        count = total

    std = np.sqrt(square / count)
    quality = {"channels": float(len(std)), "constant_channels": float((std == 0).sum())}
    return Fitted({"mean": mean, "std": std}, quality)
