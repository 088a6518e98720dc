"""Training batches of images with boxes: of any sizes, so lists of tensors; order and views as of other images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from pipeline import seeding
from pipeline.compute.distributed import ALONE, Ranks
from pipeline.data.views import slot_of
from pipeline.detection.images import BoxImages, Picture
from pipeline.detection.sample import Target
from pipeline.params.recipe import cut


@dataclass(frozen=True)
class BoxViews:
    """Views of some training images, all from one slot.

    Attributes:
        index: of the samples, int64 (B,), on the CPU.
        images: normalized, each (3, H, W).
        targets: their boxes.
        share: of the global batch; 1 in one process.
    """

    index: Tensor
    images: list[Tensor]
    targets: list[Target]
    share: float = 1.0


@dataclass(frozen=True)
class BoxBatches:
    """The training split as batches; order and views are functions of (seed, epoch, sample).

    Attributes:
        images: gives the views.
        seed: of the run.
        batch_size: samples a batch.
        drop_last: drop the last batch of an epoch when it is not full.
        ranks: who divide each batch among them.
    """

    images: BoxImages
    seed: int
    batch_size: int
    drop_last: bool = False
    ranks: Ranks = ALONE

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.images.device

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.images.split)

    @property
    def sizes(self) -> list[int]:
        """Samples of each batch of an epoch."""
        return cut(self.samples, self.batch_size, self.drop_last)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.sizes)

    def slot(self, epoch: int) -> int:
        """Return the slot that `epoch` shows."""
        return slot_of(self.seed, epoch, self.images.space.count)

    def parts(self, epoch: int) -> list[Tensor]:
        """Return the samples of each batch of `epoch`, int64 (B,) on the CPU."""
        order = torch.randperm(self.samples, generator=seeding.generator(self.seed, "order", epoch))
        sizes = self.sizes
        return [*torch.split(order[: sum(sizes)], sizes)]

    def feed(self, *, fixed: bool) -> BoxFeed:
        """Return what gives the batches; of images of any sizes none can stay at one address."""
        assert not fixed
        return BoxFeed(self)

    def plain_image(self) -> Tensor:
        """Return the first normalized image (1, 3, H, W)."""
        (picture,) = self.images.begin(0, torch.tensor([0]))()
        return picture.image[None]

    def divided(self, ranks: Ranks) -> Self:
        """Return the same batches, which these ranks divide."""
        return replace(self, ranks=ranks)


class BoxFeed:
    """Gives the batches of one epoch after another; see `batches.Feeding`."""

    fixed = False

    def __init__(self, batches: BoxBatches) -> None:
        self.batches = batches
        self.sizes = batches.sizes
        self.parts: list[Tensor] = []
        self._coming: Iterator[list[Picture]] = iter(())
        self._next: list[Picture] = []

    def start(self, epoch: int, length: int | None = None) -> None:
        """Begin an epoch; see `batches.Feed.start`."""
        self.parts = self.batches.parts(epoch)[:length]
        self._coming = self.batches.images.views(self.batches.slot(epoch), self.parts)

    def advance(self, number: int) -> None:
        """Wait for the batch `number`, the next one."""
        self._next = next(self._coming)

    def views(self, number: int) -> BoxViews:
        """Return the batch that was waited for."""
        images, targets = [one.image for one in self._next], [one.target for one in self._next]
        return BoxViews(self.parts[number], images, targets)
