"""The scatter of LDA on a device: the sums of `pipeline.tables.discriminants.Scatter`, in float64 there too.

Class sums are products with a one-hot matrix, so they have one order and the same bits in each run; no index_add, whose
order a GPU changes. What the CPU engine adds up in another order differs by float64's rounding, 1e-12 of the values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline import progress
from pipeline.tables.device.rows import DeviceRows
from pipeline.tables.discriminants import Scatter

ROWS = 1 << 15  # that are in float64 at a time


def scatter(rows: DeviceRows, num_classes: int, title: str) -> Scatter:
    """Return the scatter of all rows, in one pass.

    Args:
        rows: with the classes of their images.
        num_classes: K.
        title: of the progress bar.
    """
    sums = DeviceScatter(num_classes, rows.width, rows.device)
    with progress.bar(title, len(rows)) as advance:
        for block in rows:
            for x, label in zip(torch.split(block.x, ROWS), torch.split(block.label, ROWS), strict=True):
                sums.add(x, label)
            advance(len(block.x))
    return sums.on_cpu()


class DeviceScatter:
    """Sums over the pixels seen so far.

    Args:
        num_classes: K.
        channels: C.
        device: where they are.
    """

    def __init__(self, num_classes: int, channels: int, device: torch.device) -> None:
        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float64, device=device)

        self.counts, self.means, self.within = (
            zeros(num_classes),
            zeros(num_classes, channels),
            zeros(channels, channels),
        )

    def add(self, x: Tensor, label: Tensor) -> None:
        """Add pixels (n, C) with labels int64 (n,)."""
        x = x.double()
        one_hot = x.new_zeros(len(x), len(self.counts)).scatter_(1, label[:, None], 1.0)
        counts = one_hot.sum(dim=0)
        means = (one_hot.T @ x) / counts.clamp(min=1)[:, None]
        rest = x - means[label]

        # Two groups of pixels scatter as each does, and as their means lie apart. A class without pixels here has no
        # step; to pick out the others would wait for the device.
        step = torch.where(counts[:, None] > 0, means - self.means, 0.0)
        total = (self.counts + counts).clamp(min=1)
        weighted = step * (self.counts * counts / total).sqrt()[:, None]
        self.within += rest.T @ rest + weighted.T @ weighted
        self.means += step * (counts / total)[:, None]
        self.counts += counts

    def on_cpu(self) -> Scatter:
        """Return the sums as arrays."""
        counts, means, within = (x.cpu().numpy() for x in (self.counts.long(), self.means, self.within))
        return Scatter(counts, means, within)
