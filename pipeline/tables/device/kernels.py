"""The table of kernels on a device: what `pipeline.tables.fits.kernels` computes on the CPU else."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline import progress
from pipeline.tables.device import nearest
from pipeline.tables.device.fixed_point import count_members
from pipeline.tables.device.gallery import exemplars
from pipeline.tables.device.rows import DeviceRows, Rows
from pipeline.tables.exemplars import chosen
from pipeline.tables.pixels import Array, Pixels
from pipeline.tables.softness import Softness


def kernels(pixels: Pixels, scale: float, device: str) -> tuple[Array, Softness, dict[str, Array]]:
    """Return how often each kernel is the strongest, int64 (K,), how soft p_T is, and the exemplars.

    Args:
        pixels: activations of K kernels.
        scale: their factor.
        device: name of the device.
    """
    rows, softness = DeviceRows.of(pixels, torch.device(device)), Softness()
    number = torch.zeros(rows.width, dtype=torch.int64, device=rows.device)
    with progress.bar(f"kernels of {pixels.feature}", len(rows)) as advance:
        for x, _, _ in rows:
            count_members(number, x.argmax(dim=1))
            for tile in nearest.tiles(x, rows.width):
                softness.add(scale * tile)
            advance(len(x))

    counts: Array = number.cpu().numpy()
    groups = chosen(counts)
    shown = torch.from_numpy(groups).to(rows.device)

    def score(block: Rows) -> Tensor:
        # The softmax is over all kernels; only then are the shown ones taken, (n, G).
        return (scale * block.x).log_softmax(dim=1)[:, shown]

    return counts, softness, exemplars(rows, groups, score, *pixels.stream.shape[2:])
