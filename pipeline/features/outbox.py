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

DEPTH = 3  # of a GPU: one batch is computed, one is copied, one is written
SHARDS = 4  # of a GPU that are hashed and written at a time, each in memory of its own


class Outbox:
    """Takes batches and writes them behind the caller's back; at the end of the block all are written.

    An error of the writer is raised by the next `put`, or at the end of the block. Nothing is written after it: the
    shard that misses a batch would look whole.

    Full shards are handed to `later`. On a GPU several threads hash and write them, for the teacher's maps come faster
    than one does that; on a CPU it is done at once, since the teacher needs the cores.

    Args:
        device: where the values are.
        write: writes a batch; it is called by one thread, in the order of the batches, and keeps none of the values.
        depth: number of batches under way, so memory is bounded; a further one waits for the oldest. None is what the
            device calls for.
        threads: that write shards; None is what the device calls for.
    """

    def __init__(
        self, device: torch.device, write: Write, depth: int | None = None, threads: int | None = None
    ) -> None:
        on_cpu = device.type == "cpu"
        self.write = write
        self.depth = (1 if on_cpu else DEPTH) if depth is None else depth
        self.threads = (0 if on_cpu else SHARDS) if threads is None else threads
        self._offload = Offload(device, self.depth)
        self._waiting: deque[Future[None]] = deque()  # batches
        self._finishing: deque[Future[None]] = deque()  # shards
        self._failed = False

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, "batches")
        self._pool = ThreadPoolExecutor(max(1, self.threads), "shards")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also where the block fails: what was computed is written, and a resumed run need not compute it again.
        with self._pool, self._thread:
            for waiting in (self._waiting, self._finishing):  # the batches first: they make shards
                while waiting and error is None:
                    waiting.popleft().result()

    def put(self, slot: int, start: int, values: Mapping[str, Tensor]) -> None:
        """Take a batch: values (B, ...) by feature of the samples of a slot from `start` on."""
        if len(self._waiting) == self.depth:
            self._waiting.popleft().result()
        copied = self._offload.begin(values)
        self._waiting.append(self._thread.submit(self._write, slot, start, copied))

    def later(self, work: Callable[[], None]) -> None:
        """Write a full shard, by `work`; it is called by `write`."""
        if not self.threads:
            work()
            return
        if len(self._finishing) == self.threads:
            self._finishing.popleft().result()
        self._finishing.append(self._pool.submit(work))

    def _write(self, slot: int, start: int, copied: Callable[[], Mapping[str, Array]]) -> None:
        if self._failed:
            return
        try:
            self.write(slot, start, copied())
        except BaseException:
            self._failed = True
            raise
