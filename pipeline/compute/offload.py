"""Tensors on their way to the CPU while the device computes on.

A copy into pageable memory makes the CPU wait for the device. Here copies run on a stream of their own, from the moment
the values are there, into page-locked buffers that are used in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute import streams

Array = NDArray[Any]


class HostBuffers:
    """Memory of the CPU for the tensors of a few batches; it is had once, since to lock pages is slow.

    Args:
        depth: number of batches.
        pinned: lock the pages.
    """

    def __init__(self, depth: int, *, pinned: bool) -> None:
        self.pinned = pinned
        self._turns: list[dict[str, Tensor]] = [{} for _ in range(depth)]
        self._turn = -1

    def next(self) -> dict[str, Tensor]:
        """Return the memory of the batch that was given out the longest ago."""
        self._turn = (self._turn + 1) % len(self._turns)
        return self._turns[self._turn]

    def shaped(self, turn: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        """Return an uninitialized tensor of the shape and type of `x` within a batch's memory."""
        memory = turn.get(name)
        if memory is None or memory.numel() < x.nbytes:
            memory = turn[name] = torch.empty(x.nbytes, dtype=torch.uint8, pin_memory=self.pinned)
        return memory[: x.nbytes].view(x.dtype).view(x.shape)


class Offload:
    """Copies batches of tensors to the CPU.

    Args:
        device: where the tensors are; from a CPU nothing is copied.
        depth: number of batches that may be under way at a time.
    """

    def __init__(self, device: torch.device, depth: int) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None
        if self._cuda:
            self._stream = streams.stream(device)
        self._buffers = HostBuffers(depth, pinned=self._cuda)

    def begin(self, values: Mapping[str, Tensor]) -> Callable[[], dict[str, Array]]:
        """Start to copy a batch and return the function that waits for it, in any thread.

        Args:
            values: tensors (B, ...) by name.

        Returns:
            A function that returns the arrays. They hold until `depth` further batches are begun.
        """
        if self._stream is None:
            return lambda: {name: x.numpy() for name, x in values.items()}

        computed, copied = streams.event(), streams.event(blocking=True)
        computed.record(torch.cuda.current_stream(self.device))
        turn, hosts = self._buffers.next(), dict[str, Tensor]()

        with torch.cuda.stream(self._stream):
            self._stream.wait_event(computed)
            for name, x in values.items():
                hosts[name] = self._buffers.shaped(turn, name, x)
                hosts[name].copy_(x, non_blocking=True)
                # Else its memory would be given to the next batch when the caller drops it, before it is copied.
                x.record_stream(self._stream)
            copied.record(self._stream)

        def finish() -> dict[str, Array]:
            copied.synchronize()
            return {name: host.numpy() for name, host in hosts.items()}

        return finish
