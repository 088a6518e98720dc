"""Running a network over a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.machine import Machine
from pipeline.network import Network
from pipeline.normalise import Normalise


@dataclass(frozen=True)
class PlainSplit:
    """The plain images of a split on the device.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        normalise: what images go through.
        batch_size: samples of one forward pass.
    """

    images: Tensor
    labels: Tensor
    normalise: Normalise
    batch_size: int = 500

    def batches(self) -> Iterator[Tensor]:
        """Give normalised images (B, C, H, W) in their order."""
        for images in torch.split(self.images, self.batch_size):
            yield self.normalise(images)


@torch.no_grad()
def pooled(network: Network, split: PlainSplit, machine: Machine, index: NDArray[np.int64]) -> Tensor:
    """Return pooled features float32 (n, D) of the samples `index` (n,); the network is in evaluation mode."""
    rows = torch.from_numpy(index).to(split.images.device)
    some = replace(split, images=split.images[rows], labels=split.labels[rows])
    with machine.autocast():
        found = [network.eval().record(image, ["pooled"])["pooled"].float() for image in some.batches()]
    return torch.cat(found)


@torch.no_grad()
def logits(network: Network, split: PlainSplit, machine: Machine) -> Tensor:
    """Return logits float32 (N, K) of a split; the network is in evaluation mode meanwhile."""
    training = network.training
    network.eval()
    with machine.autocast():
        found = torch.cat([network(image).float() for image in split.batches()])
    network.train(training)
    return found
