"""Running a network over a split: all that a training needs of an evaluation, since it reruns for an edit of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pipeline.compute import batch_size
from pipeline.compute.machine import Machine
from pipeline.data.images import Images, ResidentImages, open_images, views
from pipeline.data.normalize import Normalize
from pipeline.data.prepared import Prepared
from pipeline.data.views import PlainSpace
from pipeline.networks.network import Network
from pipeline.params.size import area

BATCH_SIZE = 500  # of a CPU
BATCH_BYTES = 16 << 20  # of large images, fewer than that many
GPU_BATCH_SIZE = 2048


@dataclass(frozen=True)
class PlainSplit:
    """The plain images of a split.

    Attributes:
        images: gives them.
        labels: int64 (N,), on the device.
        normalize: what images go through.
        batch_size: samples of one forward pass.
    """

    images: Images
    labels: Tensor
    normalize: Normalize
    batch_size: int = BATCH_SIZE

    @classmethod
    def of(cls, prepared: Prepared, split: str, normalize: Normalize, machine: Machine) -> Self:
        """Open the split of that name."""
        images, labels = open_images(prepared.split(split), PlainSpace(), machine.device)
        image_bytes = prepared.meta.channels * area(prepared.meta.size)
        on_cpu = max(1, min(BATCH_SIZE, BATCH_BYTES // image_bytes))
        size = batch_size.bounded(machine.device, image_bytes, on_cpu, GPU_BATCH_SIZE)
        return cls(images, labels, normalize, size)

    def batches(self, rows: Tensor | None = None) -> Iterator[Tensor]:
        """Give normalized images (B, C, H, W) of the samples `rows` int64 (n,), or of all, in their order."""
        # Once for all batches: a copy for each would make the CPU wait for a GPU.
        place = self.labels.device if isinstance(self.images, ResidentImages) else torch.device("cpu")
        rows = torch.arange(len(self.labels), device=place) if rows is None else rows.to(place)
        for _, image in views(self.images, 0, torch.split(rows, self.batch_size)):
            yield self.normalize(image)


@torch.no_grad()
def logits(network: Network, split: PlainSplit, machine: Machine) -> Tensor:
    """Return logits float32 (N, K) of a split; the network is in evaluation mode meanwhile."""
    training = network.training
    network.eval()
    with machine.autocast():
        scores = torch.cat([network(image).float() for image in split.batches()])
    network.train(training)
    return scores
