"""Views of ranges of samples, slot after slot: what a pass over a whole split asks for.

On a GPU nothing here waits for it. Images that fit lie there, and the view ids of a slot are computed at once, on a
stream of their own: the walk of the permutation looks at its values. Images that do not fit are read ahead by a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from pipeline.compute import streams
from pipeline.data.file_index import FileIndex
from pipeline.data.image_array import ImageArray
from pipeline.data.images import DecodedImages, Forward, Images, MappedImages, ResidentImages, with_partners
from pipeline.data.prepared import Split
from pipeline.data.two_views import TwoViewsImages, TwoViewsRanges, TwoViewsSpace
from pipeline.data.views import ViewSpace, mixing, view_ids

SHARE = 4  # images may take so many times less than what is free on a GPU
BLOCK_BYTES = 64 << 20  # of images that are copied at a time


class Ranges(Protocol):
    """Gives views of ranges of samples."""

    def take(self, slot: int, start: int, stop: int) -> Tensor:
        """Return the views uint8 (n, C, H, W) of samples [start, stop) in `slot`, on the device."""
        ...


class ResidentRanges:
    """All images are on the device.

    Args:
        images: uint8 (N, C, H, W), on the device.
        space: the views.
    """

    def __init__(self, images: Tensor, space: ViewSpace) -> None:
        self.images, self.space = images, space
        self._rows = torch.arange(len(images), device=images.device)
        self._slot, self._ids = -1, self._rows
        self._aside: torch.cuda.Stream | None = None
        if images.is_cuda:
            self._aside = streams.stream(images.device)
            self._aside.wait_stream(torch.cuda.current_stream(images.device))  # for the rows

    def take(self, slot: int, start: int, stop: int) -> Tensor:
        """Cut views out of the images; see `Ranges.take`."""
        if slot != self._slot:
            self._ids, self._slot = self._of(slot), slot
        if mixing(self.space) is not None:
            return ResidentImages(self.images, self.space).views(self._ids, self._rows[start:stop])
        return self.space.apply(self.images[start:stop], self._ids[start:stop], self._rows[start:stop])

    def _of(self, slot: int) -> Tensor:
        """Return the view ids int64 (N,) of a slot."""
        if self._aside is None:
            return view_ids(self.space, slot, self._rows)
        with torch.cuda.stream(self._aside):
            ids = view_ids(self.space, slot, self._rows)

        current = torch.cuda.current_stream(self.images.device)
        current.wait_stream(self._aside)
        ids.record_stream(current)  # its memory is the other stream's
        return ids


class ReadAheadImages:
    """Images are read from the disk by threads, into page-locked memory, while a GPU computes.

    Args:
        images: of copied data.
        space: the views.
        device: where the views go.
    """

    ahead = 3

    def __init__(self, images: ImageArray, space: ViewSpace, device: torch.device) -> None:
        self.images, self.space, self.device = images, space, device
        # One a batch that is under way: to hash images takes longer than to copy them.
        self._threads = ThreadPoolExecutor(self.ahead + 1, "images")

    def begin(self, slot: int, index: Tensor) -> Callable[[], Tensor]:
        """Start to read; see `Images.begin`."""
        reading = self._threads.submit(self._read, slot, index)

        def finish() -> Tensor:
            image, view, rows = (x.to(self.device, non_blocking=True) for x in reading.result())
            return self.space.apply(image, view, rows)

        return finish

    def _read(self, slot: int, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return images uint8 (B, C, H, W), view ids int64 (B,) and sample indices int64 (B,), page-locked on a GPU."""
        pinned = self.device.type == "cuda"
        shape = (len(index), *self.images.pixels.shape[1:])
        image = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        self.images.rows(index.numpy(), image.numpy())

        view = view_ids(self.space, slot, index)
        return (image, view.pin_memory(), index.pin_memory()) if pinned else (image, view, index)


def open_ranges(split: Split, space: ViewSpace, device: torch.device) -> Ranges:
    """Open a split for passes over ranges; memory of the CPU does not depend on the number of samples."""
    images = split.images
    if device.type == "cuda" and not isinstance(images, FileIndex) and _fits(images.nbytes, device):
        on_device = copied(images, device)
        if isinstance(space, TwoViewsSpace):
            return TwoViewsRanges(*(ResidentRanges(on_device, part) for part in (space.weak, space.strong)))
        return ResidentRanges(on_device, space)
    return Forward(open_rows(split, space, device), len(split))


def open_rows(split: Split, space: ViewSpace, device: torch.device) -> Images:
    """Open a split for few samples, or for many that do not fit on the device."""
    if isinstance(space, TwoViewsSpace):
        return TwoViewsImages(*(open_rows(split, part, device) for part in (space.weak, space.strong)))
    images: Images
    if isinstance(split.images, FileIndex):
        images = DecodedImages(split.images, space, device)
    else:
        kind = MappedImages if device.type == "cpu" else ReadAheadImages
        images = kind(split.images, space, device)
    return with_partners(images, split, space)


def copied(images: ImageArray, device: torch.device) -> Tensor:
    """Copy the images of copied data to a device, block by block: uint8 (N, C, H, W)."""
    out = torch.empty(images.pixels.shape, dtype=torch.uint8, device=device)
    size = max(1, BLOCK_BYTES * len(images) // max(1, images.nbytes))
    for start in range(0, len(images), size):
        out[start : start + size] = torch.from_numpy(images.block(start, start + size)).to(device)
    return out


def _fits(size: int, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return size <= free // SHARE
