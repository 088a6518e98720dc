"""From the device into shards: a thread writes batches of features, in their order, while the teacher computes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compute.offload import Offload

Array = NDArray[Any]
Write = Callable[[int, int, Mapping[str, Array]], None]  # slot, first sample, values by feature

DEPTH = 3  # one batch is computed, one is copied, one is written


class Outbox:
    """Takes batches and writes them behind the caller's back; at the end of the block all are written.

    An error of the writer is raised by the next `put`, or at the end of the block. Nothing is written after it: the
    shard that misses a batch would look whole.

    Args:
        device: where the values are.
        write: writes a batch; it is called by one thread, in the order of the batches, and keeps none of the values.
        depth: number of batches under way, so memory is bounded; a further one waits for the oldest.
    """

    def __init__(self, device: torch.device, write: Write, depth: int = DEPTH) -> None:
        self.write, self.depth = write, depth
        self._offload = Offload(device, depth)
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, "shards")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also where the block fails: what was computed is written, and a resumed run need not compute it again.
        with self._thread:
            while self._waiting:
                written = self._waiting.popleft()
                if error is None:
                    written.result()

    def put(self, slot: int, start: int, values: Mapping[str, Tensor]) -> None:
        """Take a batch: values (B, ...) by feature of the samples of a slot from `start` on."""
        if len(self._waiting) == self.depth:
            self._waiting.popleft().result()
        copied = self._offload.begin(values)
        self._waiting.append(self._thread.submit(self._write, slot, start, copied))

    def _write(self, slot: int, start: int, copied: Callable[[], Mapping[str, Array]]) -> None:
        if self._failed:
            return
        try:
            self.write(slot, start, copied())
        except BaseException:
            self._failed = True
            raise
