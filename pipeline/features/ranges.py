"""Stored features of ranges of samples on a device, in the order of the split: what a pass over plain samples reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.features.store import StoredArray


class StoredRanges:
    """Ranges of samples of one slot. For a GPU the next range is read while it computes with this one.

    Args:
        array: the stored feature.
        slot: the slot.
        device: where the values go.
    """

    def __init__(self, array: StoredArray, slot: int, device: torch.device) -> None:
        self.array, self.slot, self.device = array, slot, device
        self._ahead: dict[
            tuple[int, int], Any
        ] = {}  # what is being read, by first sample and the one after the last

    def take(self, start: int, stop: int) -> Tensor:
        """Return samples [start, stop), (n, ...) in the stored type; damaged chunks as in `StoredArray.read`."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.array.range(self.slot, start, stop))

        reading = self._ahead.pop((start, stop), None) or self.array.begin_range(self.slot, start, stop)
        following = stop, min(2 * stop - start, self.array.shape[1])
        self._ahead = {}
        if stop < following[1]:
            self._ahead = {following: self.array.begin_range(self.slot, *following)}
        values = torch.from_numpy(self.array.finish(reading))
        if self.device.type == "cuda":
            values = values.pin_memory()  # else the copy would wait for what the GPU is doing
        return values.to(self.device, non_blocking=True)
