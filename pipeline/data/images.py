"""Images as training, extraction, the gate and evaluation ask for them: the views of samples in a slot.

One face for copied and for indexed data (`Images`). Copied images are cut on the device. Indexed ones are decoded
by threads, which work ahead while the device computes; a random resized crop is cut out of the whole photograph,
and spaces that need an image of one size see the plain one. In each case the pixels are a function of sample and
view id alone, whoever asks and in whatever order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.resident import shared
from pipeline.data.file_index import Box, FileIndex
from pipeline.data.image_array import ImageArray
from pipeline.data.mixing import MixedImages, mixed
from pipeline.data.prepared import Split
from pipeline.data.raw import image_files
from pipeline.data.two_views import TwoViewsImages, TwoViewsSpace
from pipeline.data.views import StackSpace, ViewSpace, cropped, mixing, view_ids
from pipeline.params.size import sides


class Images(Protocol):
    """Gives views of a split's samples.

    Attributes:
        ahead: batches that are worth beginning before they are needed.
    """

    ahead: int

    def begin(self, slot: int, index: Tensor) -> Callable[[], Tensor]:
        """Start on a batch and return the function that waits for it.

        Args:
            slot: view slot of the batch; 0 is the plain view.
            index: sample indices int64 (B,), on the CPU.

        Returns:
            A function that returns uint8 (B, C, H, W) on the device. Of copied data it raises DamagedArtifactError
            for an image that is not the one that was prepared; of indexed data DataError for a file that is missing,
            no image, or not the one that was indexed.
        """
        ...


class ResidentImages:
    """All images are on the device: no Python a sample.

    Args:
        images: uint8 (N, C, H, W), on the device.
        space: the views.
    """

    ahead = 0

    def __init__(self, images: Tensor, space: ViewSpace) -> None:
        self.images, self.space = images, space
        self._slot = -1
        self._ids = torch.empty(0)

    def begin(self, slot: int, index: Tensor) -> Callable[[], Tensor]:
        """Cut the views when they are taken; see `Images.begin`."""
        # Bound now: by the time this batch is taken, the next slot's ids may have replaced them.
        ids = self.ids(slot)
        return lambda: self.views(ids, index.to(self.images.device, non_blocking=True))

    def ids(self, slot: int) -> Tensor:
        """Return the view that each sample shows in a slot, int64 (N,)."""
        if slot != self._slot:
            # All at once: for a few samples the many small steps of the permutation cost more than the crops.
            every = torch.arange(len(self.images), device=self.images.device)
            self._ids, self._slot = view_ids(self.space, slot, every), slot
        return self._ids

    def views(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Return views uint8 (B, C, H, W); nothing leaves the device, and no value is read.

        Args:
            ids: the view that each sample of the split shows, int64 (N,).
            rows: the samples, int64 (B,), on the device.
        """
        own = self._unmixed(ids, rows)
        mixes = mixing(self.space)
        if mixes is None:
            return own
        height, width = own.shape[2:]
        draw = mixes.draw(ids[rows], rows, len(self.images), (height, width))
        return mixed(own, self._unmixed(ids, draw.partner), draw)

    def _unmixed(self, ids: Tensor, rows: Tensor) -> Tensor:
        return self.space.apply(self.images.index_select(0, rows), ids[rows], rows)


class MappedImages:
    """Images are read from the disk, batch by batch.

    Args:
        images: of copied data.
        space: the views.
        device: where the views go.
    """

    ahead = 0

    def __init__(self, images: ImageArray, space: ViewSpace, device: torch.device) -> None:
        self.images, self.space, self.device = images, space, device

    def begin(self, slot: int, index: Tensor) -> Callable[[], Tensor]:
        """Read when the views are taken; see `Images.begin`."""

        def finish() -> Tensor:
            image = torch.from_numpy(self.images.rows(index.numpy())).to(self.device)
            rows = index.to(self.device)
            return self.space.apply(image, view_ids(self.space, slot, rows), rows)

        return finish


class DecodedImages:
    """Images are decoded from their files by threads: Pillow releases Python's lock meanwhile.

    Args:
        files: the images.
        space: the views.
        device: where the views go.
        threads: number of threads that decode; None is one a processor.
    """

    ahead = 3

    def __init__(
        self, files: FileIndex, space: ViewSpace, device: torch.device, threads: int | None = None
    ) -> None:
        self.files, self.space, self.device = files, space, device
        self.threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self.threads)

    def begin(self, slot: int, index: Tensor) -> Callable[[], Tensor]:
        """Start to decode; see `Images.begin`."""
        channels, rows = self.files.channels, index.tolist()
        # Page-locked, so that the copy to a GPU does not wait.
        image = torch.empty(
            (len(rows), channels, *sides(self.files.size)),
            dtype=torch.uint8,
            pin_memory=self.device.type == "cuda",
        )
        pixels, boxes = image.numpy(), self._boxes(slot, index)

        def fill(run: NDArray[np.int64]) -> None:
            for place in run.tolist():
                pixels[place] = self.files.pixels(rows[place], boxes[place])

        # Their usual size decides how many threads pay.
        usual = int(self.files.records["bytes"][rows].mean())
        parts = [self._pool.submit(fill, run) for run in image_files.runs(len(rows), usual, self.threads)]

        def finish() -> Tensor:
            for part in parts:
                part.result()  # raises what the thread has raised
            plain = image.to(self.device, non_blocking=True)

            if slot == 0:
                return plain
            samples = index.to(self.device)
            ids = view_ids(self.space, slot, samples)
            # Random boxes were cut out while decoding; other spaces cut them out of the plain image.
            if cropped(self.space) is None:
                return self.space.apply(plain, ids, samples)
            return self.space.after_crop(plain, ids, samples) if isinstance(self.space, StackSpace) else plain

        return finish

    def _boxes(self, slot: int, index: Tensor) -> list[Box] | list[None]:
        """Return the boxes that the views show of the whole photographs; None for the plain view."""
        crop = cropped(self.space)
        if slot == 0 or crop is None:
            return [None] * len(index)
        records = self.files.records[index.numpy()]
        height, width = (torch.from_numpy(records[side].astype(np.int64)) for side in ("height", "width"))
        boxes, mirrored = crop.boxes(view_ids(self.space, slot, index), index, height, width)
        # The columns are top, left, height and width, then the flag: `Box` in its order.
        drawn = zip(*boxes.T.tolist(), mirrored.tolist(), strict=True)
        return [Box(*box) for box in drawn]


def open_images(split: Split, space: ViewSpace, device: torch.device) -> tuple[Images, Tensor]:
    """Open a split for many passes: copied images go to the device whole.

    Returns:
        the images, and labels int64 (N,) on the device.
    """
    if isinstance(space, TwoViewsSpace):
        weak, labels = open_images(split, space.weak, device)
        return TwoViewsImages(weak, open_images(split, space.strong, device)[0]), labels

    labels = torch.from_numpy(np.array(split.labels)).to(device)
    images = split.images
    if isinstance(images, FileIndex):
        return stream_images(split, space, device), labels
    return ResidentImages(
        shared(split.fingerprint, device, lambda: images.block(0, len(images))), space
    ), labels


def stream_images(split: Split, space: ViewSpace, device: torch.device) -> Images:
    """Open a split for one pass: memory does not depend on the number of samples."""
    if isinstance(space, TwoViewsSpace):
        return TwoViewsImages(*(stream_images(split, part, device) for part in (space.weak, space.strong)))
    if isinstance(split.images, FileIndex):
        return with_partners(DecodedImages(split.images, space, device), split, space)
    return with_partners(MappedImages(split.images, space, device), split, space)


def with_partners(images: Images, split: Split, space: ViewSpace) -> Images:
    """Return images that are read batch by batch, mixed with others where the space mixes them."""
    mixes, files = mixing(space), split.images
    if mixes is None:
        return images
    height, width = sides(files.size) if isinstance(files, FileIndex) else files.pixels.shape[2:]
    return MixedImages(images, mixes, len(split), (height, width))


def views(images: Images, slot: int, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the views of batches, with the following ones under way.

    Args:
        images: where they come from.
        slot: the view slot.
        batches: sample indices int64 (B,), on the CPU.

    Returns:
        Indices int64 (B,) as they were given, and views uint8 (B, C, H, W) on the device.
    """
    waiting: deque[tuple[Tensor, Callable[[], Tensor]]] = deque()
    for index in batches:
        waiting.append((index, images.begin(slot, index)))
        if len(waiting) > images.ahead:
            first, finish = waiting.popleft()
            yield first, finish()
    for first, finish in waiting:
        yield first, finish()


class Forward:
    """Views of ranges of samples that mostly follow each other: the next ones are begun when one is taken.

    Args:
        images: where they come from.
        total: number of samples; nothing is begun beyond.
    """

    def __init__(self, images: Images, total: int) -> None:
        self.images, self.total = images, total
        self._waiting: dict[tuple[int, int, int], Callable[[], Tensor]] = {}

    def take(self, slot: int, start: int, stop: int) -> Tensor:
        """Return the views uint8 (n, C, H, W) of samples [start, stop) in `slot`."""
        wanted = [(slot, start, stop)]
        while len(wanted) <= self.images.ahead and wanted[-1][2] < self.total:
            last = wanted[-1][2]
            wanted.append((slot, last, min(last + stop - start, self.total)))
        # Those begun before are kept, and what is no longer wanted is dropped.
        self._waiting = {
            key: self._waiting.get(key) or self.images.begin(key[0], torch.arange(key[1], key[2]))
            for key in wanted
        }
        return self._waiting.pop(wanted[0])()
