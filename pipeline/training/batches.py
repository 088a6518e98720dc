"""Training batches on the device; nothing in them depends on what ran before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import seeding
from pipeline.compute.distributed import ALONE, Ranks
from pipeline.data.images import Images, views
from pipeline.data.normalize import Normalize
from pipeline.data.views import slot_of
from pipeline.params.recipe import cut


@dataclass(frozen=True)
class Views:
    """Normalized views of some training samples, all from one slot.

    Attributes:
        slot: the slot.
        index: of the samples, int64 (B,), on the CPU.
        image: normalized (B, C, H, W).
        label: int64 (B,).
        share: of the global batch, which the ranks divide among them; 1 in one process.
    """

    slot: int
    index: Tensor
    image: Tensor
    label: Tensor
    share: float = 1.0


@dataclass(frozen=True)
class Batches:
    """The training split as batches; order and views are functions of (seed, epoch, sample).

    Attributes:
        images: gives their views.
        labels: int64 (N,), on the device.
        slots: how many views are shown; None where they are unbounded.
        normalize: what images go through.
        seed: of the run.
        batch_size: samples a batch.
        drop_last: drop the last batch of an epoch when it is not full.
        ranks: who divide each batch among them.
    """

    images: Images
    labels: Tensor
    slots: int | None
    normalize: Normalize
    seed: int
    batch_size: int
    drop_last: bool = False
    ranks: Ranks = ALONE

    @property
    def sizes(self) -> list[int]:
        """Samples of each batch of an epoch."""
        return cut(len(self.labels), self.batch_size, self.drop_last)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.sizes)

    def epoch(self, epoch: int) -> Iterator[Views]:
        """Give the batches of `epoch`; of each, this rank's part."""
        # One slot an epoch is one slice of a store, and still another view for every sample.
        slot = slot_of(self.seed, epoch, self.slots)
        order = torch.randperm(len(self.labels), generator=seeding.generator(self.seed, "order", epoch))

        sizes = self.sizes
        # Without the last batch, the end of the order is left out: other samples in every epoch.
        whole = torch.split(order[: sum(sizes)], sizes)
        parts = [self.ranks.part(batch) for batch in whole]
        shares = [self.ranks.share(len(batch)) for batch in whole]
        for (index, view), share in zip(views(self.images, slot, parts), shares, strict=True):
            label = self.labels[index.to(self.labels.device, non_blocking=True)]
            yield Views(slot, index, self.normalize(view), label, share)
