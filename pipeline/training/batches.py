"""Training batches on the device; nothing in them depends on what ran before.

What a step reads of an epoch lies in tensors that keep their addresses: the order of the samples, their views, the
slot, and how far the epoch is. They are filled when an epoch starts, so a step copies nothing from the CPU, and one
that was captured as a CUDA graph reads the next batch when it is replayed. Only what is too large for the device is
copied in before a step (`Feed.advance`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from pipeline import seeding
from pipeline.compute.distributed import ALONE, Ranks
from pipeline.data.images import Images, ResidentImages, views
from pipeline.data.mixing import MixingSpace, Mixture
from pipeline.data.normalize import Normalize
from pipeline.data.two_views import own_slot
from pipeline.data.views import slot_of
from pipeline.params.recipe import cut
from pipeline.training.balance import evenly


class Feeding(Protocol):
    """Gives the batches of one epoch after another.

    Attributes:
        fixed: what is copied in stays at one address.
        sizes: samples of each batch; of one that is divided, of this rank's part.
        parts: the samples of each batch of the epoch, int64 (B,) on the CPU.
    """

    fixed: bool
    sizes: list[int]
    parts: list[Tensor]

    def start(self, epoch: int, length: int | None = None) -> None:
        """Begin an epoch; see `Feed.start`."""
        ...

    def advance(self, number: int) -> None:
        """Bring what is not on the device for the batch `number`, the next one."""
        ...

    def views(self, number: int) -> Any:
        """Return the next batch: what an objective reads, with `index` int64 (B,) and `share` as `Views` has them."""
        ...


class Sampled(Protocol):
    """The training split as batches, whatever an image and its label are."""

    @property
    def ranks(self) -> Ranks:
        """Who divide each batch among them."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples a batch."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        ...

    @property
    def samples(self) -> int:
        """Number of samples."""
        ...

    @property
    def sizes(self) -> list[int]:
        """Samples of each batch of an epoch."""
        ...

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        ...

    def slot(self, epoch: int) -> int:
        """Return the slot that `epoch` shows."""
        ...

    def feed(self, *, fixed: bool) -> Feeding:
        """Return what gives the batches."""
        ...

    def plain_image(self) -> Tensor:
        """Return the first normalized image (1, C, H, W)."""
        ...

    def divided(self, ranks: Ranks) -> Self:
        """Return the same batches, which these ranks divide."""
        ...


@dataclass(frozen=True)
class Views:
    """Normalized views of some training samples, all from one slot.

    Attributes:
        slot: the slot, int64 ().
        index: of the samples, int64 (B,).
        image: normalized (B, C, H, W).
        label: int64 (B,).
        share: of the global batch, which the ranks divide among them; 1 in one process.
        mixture: the second label of each sample, where views are mixed.
        strong: normalized strong views (B, C, H, W) of the same samples, from the slot after; None where none is shown.
    """

    slot: Tensor
    index: Tensor
    image: Tensor
    label: Tensor
    share: float = 1.0
    mixture: Mixture | None = None
    strong: Tensor | None = None


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
        groups: samples by class, int64 (n,) each on the CPU, that are drawn equally often; without any, each sample
            comes once an epoch.
        mixing: how the images mix samples; None where they do not.
        paired: whether slots are weak and strong in turns (`pipeline.data.two_views`); `images` are then the weak ones.
        strong: gives the strong views that are shown beside them; None shows none.
    """

    images: Images
    labels: Tensor
    slots: int | None
    normalize: Normalize
    seed: int
    batch_size: int
    drop_last: bool = False
    ranks: Ranks = ALONE
    groups: tuple[Tensor, ...] = ()
    mixing: MixingSpace | None = None
    paired: bool = False
    strong: Images | None = None

    @property
    def device(self) -> torch.device:
        """Where the batches are."""
        return self.labels.device

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.labels)

    @property
    def sizes(self) -> list[int]:
        """Samples of each batch of an epoch."""
        return cut(len(self.labels), self.batch_size, self.drop_last)

    def feed(self, *, fixed: bool) -> Feed:
        """Return what gives the batches."""
        return Feed(self, fixed=fixed)

    def plain_image(self) -> Tensor:
        """Return the first normalized image (1, C, H, W)."""
        return self.normalize(self.images.begin(0, torch.tensor([0]))())

    def divided(self, ranks: Ranks) -> Self:
        """Return the same batches, which these ranks divide."""
        return replace(self, ranks=ranks)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.sizes)

    def slot(self, epoch: int) -> int:
        """Return the slot that `epoch` shows; of a weak and a strong one, that of the weak one."""
        # One slot an epoch is one slice of a store, and still another view for every sample.
        if not self.paired:
            return slot_of(self.seed, epoch, self.slots)
        pair = slot_of(self.seed, epoch, None if self.slots is None else self.slots // 2)
        return max(2 * pair - 1, 0)

    def parts(self, epoch: int) -> list[Tensor]:
        """Return the samples of each batch of `epoch`, int64 (B,) on the CPU; of each, this rank's part."""
        number, generator = len(self.labels), seeding.generator(self.seed, "order", epoch)
        order = torch.randperm(number, generator=generator)
        if self.groups:
            order = evenly(self.groups, number, generator)
        sizes = self.sizes
        # Without the last batch, the end of the order is left out: other samples in every epoch.
        return [self.ranks.part(batch) for batch in torch.split(order[: sum(sizes)], sizes)]

    def epoch(self, epoch: int) -> Iterator[Views]:
        """Give the batches of `epoch`; of each, this rank's part."""
        feed = Feed(self)
        feed.start(epoch)
        for number in range(len(self)):
            feed.advance(number)
            yield feed.views(number)


class Feed:
    """Gives the batches of one epoch after another, from tensors that stay where they are.

    Args:
        batches: what is given.
        fixed: keep also what is copied in at one address; see `Held`.

    Attributes:
        sizes: samples of each batch; of one that is divided, of this rank's part.
        parts: the samples of each batch of the epoch, int64 (B,) on the CPU.
    """

    def __init__(self, batches: Batches, *, fixed: bool = False) -> None:
        device, sizes, ranks = batches.labels.device, batches.sizes, batches.ranks
        self.batches = batches
        self.sizes = [len(ranks.part(torch.empty(size))) for size in sizes]
        self.parts: list[Tensor] = []
        self._shares = [ranks.share(size) for size in sizes]

        self._order = torch.zeros(sum(self.sizes), dtype=torch.int64, device=device)
        self._first = torch.zeros(
            (), dtype=torch.int64, device=device
        )  # place of the next batch in the order
        self._slot = torch.zeros((), dtype=torch.int64, device=device)
        self._ids, self._strong_ids = (
            torch.zeros(len(batches.labels), dtype=torch.int64, device=device) for _ in range(2)
        )
        self._places = {size: torch.arange(size, device=device) for size in set(self.sizes)}
        self.fixed, self._held = fixed, Held(fixed)
        # What gives the views of each name, and the views that follow where they are copied in.
        self._shown = {"image": (batches.images, self._ids)}
        if batches.strong is not None:
            self._shown["strong"] = batches.strong, self._strong_ids
        self._coming: dict[str, Iterator[tuple[Tensor, Tensor]]] = {}

    def start(self, epoch: int, length: int | None = None) -> None:
        """Begin an epoch.

        Args:
            epoch: counted over all phases.
            length: number of its batches, the first ones; None gives all.
        """
        batches, slot = self.batches, self.batches.slot(epoch)
        self.parts = batches.parts(epoch)[:length]
        order = torch.cat(self.parts)
        self._order[: len(order)].copy_(order)
        self._first.zero_()
        self._slot.fill_(slot)

        own = own_slot(slot) if batches.paired else slot
        for name, (images, ids) in self._shown.items():
            if isinstance(images, ResidentImages):
                ids.copy_(images.ids(own))
            else:
                self._coming[name] = views(images, own, self.parts)

    def advance(self, number: int) -> None:
        """Bring what is not on the device for the batch `number`, the next one."""
        for name, coming in self._coming.items():
            _, image = next(coming)
            self._held.put(name, image)

    def views(self, number: int) -> Views:
        """Return the next batch, whose number is `number`; no value is read, and nothing is copied to the device."""
        batches, size = self.batches, self.sizes[number]
        rows = self._order.index_select(0, self._first + self._places[size])
        self._first += size

        image, label = self._views("image", rows), batches.labels.index_select(0, rows)
        strong = None if batches.strong is None else batches.normalize(self._views("strong", rows))
        mixture = self._mixture(rows, image)
        return Views(self._slot, rows, batches.normalize(image), label, self._shares[number], mixture, strong)

    def _mixture(self, rows: Tensor, image: Tensor) -> Mixture | None:
        """Return the second labels of samples (B,) and what they count, which the images (B, C, H, W) were mixed by."""
        batches = self.batches
        if batches.mixing is None:
            return None
        height, width = image.shape[2:]
        draw = batches.mixing.draw(self._slot, rows, len(batches.labels), (height, width))
        return Mixture(batches.labels.index_select(0, draw.partner), draw.coefficient)

    def _views(self, name: str, rows: Tensor) -> Tensor:
        """Return the weak or the strong views uint8 (B, C, H, W) of samples int64 (B,)."""
        images, ids = self._shown[name]
        if isinstance(images, ResidentImages):
            return images.views(ids, rows)
        return self._held.get(name, len(rows))


class Held:
    """Batches of tensors by name, which a step reads.

    Args:
        fixed: keep one of a name and size at the same address always, as a captured step must find it.
    """

    def __init__(self, fixed: bool) -> None:
        self.fixed = fixed
        self._tensors: dict[tuple[str, int], Tensor] = {}

    def put(self, name: str, x: Tensor) -> None:
        """Hold a tensor (B, ...), in the place of the last one of that name and size."""
        key = (name, len(x))
        if self.fixed and key in self._tensors:
            self._tensors[key].copy_(x, non_blocking=True)
        else:
            self._tensors[key] = x

    def get(self, name: str, size: int) -> Tensor:
        """Return what is held of a name and batch size."""
        return self._tensors[name, size]
