"""Images with their boxes, as training and evaluation ask for them: decoded by threads, which work ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.normalize import Normalize
from pipeline.data.views import permute
from pipeline.detection.prepared import Split
from pipeline.detection.sample import Target
from pipeline.detection.views import BoxSpace, Shown, moved, pixels

AHEAD = 2  # batches that are begun before they are needed


@dataclass(frozen=True)
class Picture:
    """An image with its boxes.

    Attributes:
        image: normalized (3, H, W), on the device.
        target: its boxes as the image is shown, on the device.
        shown: how it is shown.
    """

    image: Tensor
    target: Target
    shown: Shown


class BoxImages:
    """The views of a split.

    Args:
        split: the images and their boxes.
        space: the views that there are.
        normalize: what images go through, on the device.
        device: where they are computed with.
    """

    def __init__(self, split: Split, space: BoxSpace, normalize: Normalize, device: torch.device) -> None:
        self.split, self.space, self.normalize, self.device = split, space, normalize, device
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)

    def ids(self, slot: int, index: Tensor) -> Tensor:
        """Return the view ids int64 (B,) that samples `index` int64 (B,) show in a slot; 0 is the plain view."""
        if slot == 0:
            return torch.zeros_like(index)
        return permute(torch.full_like(index, slot - 1), self.space.count, key=index)

    def begin(self, slot: int, index: Tensor) -> Callable[[], list[Picture]]:
        """Start on a batch and return the function that waits for it.

        Args:
            slot: view slot of the batch.
            index: sample indices int64 (B,), on the CPU.

        Returns:
            A function that raises DataError for a file that is missing, no image, or not the one that was listed.
        """
        views = self.ids(slot, index).tolist()
        decoding = [
            self._pool.submit(self._decode, row, view)
            for row, view in zip(index.tolist(), views, strict=True)
        ]
        return lambda: [self._placed(*future.result()) for future in decoding]

    def views(self, slot: int, batches: Iterable[Tensor]) -> Iterator[list[Picture]]:
        """Give the views of batches of samples int64 (B,), with the following ones under way."""
        waiting: deque[Callable[[], list[Picture]]] = deque()
        for index in batches:
            waiting.append(self.begin(slot, index))
            if len(waiting) > AHEAD:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()

    def _decode(self, row: int, view: int) -> tuple[Tensor, Target, Shown]:
        image = self.split.image(row)
        shown = self.space.shown(view, image.height, image.width)
        target = moved(self.split.target(row), image.height, image.width, shown)
        return pixels(image, shown), target, shown

    def _placed(self, image: Tensor, target: Target, shown: Shown) -> Picture:
        normalized = self.normalize(image[None].to(self.device))[0]
        parts = (target.boxes, target.labels, target.crowd, target.area)
        return Picture(normalized, Target(*(x.to(self.device) for x in parts)), shown)
