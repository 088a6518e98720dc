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
    mean, std = _on_cpu(stream) if context.device is None else _on_device(stream, context.device)
    quality = {"channels": float(len(std)), "constant_channels": float((std == 0).sum())}
    return Fitted({"mean": mean, "std": std}, quality)


def _on_cpu(stream: Stream) -> tuple[Array, Array]:
    count, mean, square = 0, np.zeros(stream.shape[1]), np.zeros(stream.shape[1])
    for block, _ in stream:
        x = np.moveaxis(block, 1, -1).reshape(-1, stream.shape[1]).astype(np.float64)  # (pixels, C)
        delta, total = x.mean(axis=0) - mean, count + len(x)
        square += ((x - x.mean(axis=0)) ** 2).sum(axis=0) + delta**2 * count * len(x) / total
        mean += delta * len(x) / total
        count = total
    return mean, np.sqrt(square / count)


def _on_device(stream: Stream, name: str) -> tuple[Array, Array]:
    """Compute the same in the same precision; the sums within a block have another order."""
    import torch

    from pipeline.tables.device.rows import Sender

    device = torch.device(name)
    send, count = Sender(device), 0
    mean = torch.zeros(stream.shape[1], dtype=torch.float64, device=device)
    square = torch.zeros_like(mean)
    for block, _ in stream:
        x = send(block).movedim(1, -1).reshape(-1, stream.shape[1]).double()  # (pixels, C)
        own, total = x.mean(dim=0), count + len(x)
        delta = own - mean
        square += ((x - own) ** 2).sum(dim=0) + delta**2 * count * len(x) / total
        mean += delta * len(x) / total
        count = total
    return mean.cpu().numpy(), (square / count).sqrt().cpu().numpy()
