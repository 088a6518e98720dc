"""Running a network over a split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.machine import Machine
from pipeline.data.images import Images, open_images, views
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.views import PlainSpace
from pipeline.networks.network import Network

BATCH_SIZE = 500
BATCH_BYTES = 16 << 20  # of large images, fewer than that many


@dataclass(frozen=True)
class PlainSplit:
    """The plain images of a split.

    Attributes:
        images: gives them.
        labels: int64 (N,), on the device.
        normalize: what images go through.
        batch_size: samples of one forward pass.
        rows: int64 (N,), which samples of `images` these are; None is all of them.
    """

    images: Images
    labels: Tensor
    normalize: Normalize
    batch_size: int = BATCH_SIZE
    rows: Tensor | None = None

    @classmethod
    def of(cls, prepared: Prepared, split: str, normalize: Normalize, machine: Machine) -> Self:
        """Open the split of that name."""
        images, labels = open_images(prepared.split(split), PlainSpace(), machine.device)
        most = BATCH_BYTES // (prepared.meta.channels * prepared.meta.size**2)
        return cls(images, labels, normalize, max(1, min(BATCH_SIZE, most)))

    def only(self, index: NDArray[np.int64]) -> Self:
        """Return the samples `index` (n,) of a whole split."""
        rows = torch.from_numpy(index)
        return replace(self, labels=self.labels[rows.to(self.labels.device)], rows=rows)

    def batches(self) -> Iterator[Tensor]:
        """Give normalized images (B, C, H, W) in their order."""
        rows = torch.arange(len(self.labels)) if self.rows is None else self.rows
        for _, image in views(self.images, 0, torch.split(rows, self.batch_size)):
            yield self.normalize(image)


@torch.no_grad()
def logits(network: Network, split: PlainSplit, machine: Machine) -> Tensor:
    """Return logits float32 (N, K) of a split; the network is in evaluation mode meanwhile."""
    training = network.training
    network.eval()
    with machine.autocast():
        found = torch.cat([network(image).float() for image in split.batches()])
    network.train(training)
    return found


@torch.no_grad()
def pooled(
    network: Network, split: PlainSplit, names: Iterable[str], machine: Machine
) -> dict[str, NDArray[Any]]:
    """Return taps of a split averaged over all pixels, float32 (N, C) by name; in evaluation mode."""
    training, wanted = network.training, list(names)
    network.eval()
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in wanted}
    for image in split.batches():
        with machine.autocast():
            taps = network.record(image, wanted)
        for name in wanted:
            x = taps[name].float()
            x = x.flatten(2).mean(dim=2) if x.ndim > 2 else x  # (B, C)
            found[name].append(x.cpu().numpy())
    network.train(training)
    return {name: np.concatenate(parts) for name, parts in found.items()}
